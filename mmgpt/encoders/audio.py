"""Sound -> one vector for each 40 ms: raw frames of samples, or log-mel windows; clips of any length at once, nothing padded."""

from functools import cached_property

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from mmgpt.encoders.convnext import Block
from mmgpt.encoders.places import on_grid
from mmgpt.errors import InputError
from mmgpt.types import Audio, Prepared

RATE = 16_000  # Hz that all sound is brought to
FRAME = 640  # samples a vector stands for
RATES = (4_000, 192_000)
RATE_STEP = 25  # Hz: 11,025 is 441 steps. Rates without a common divisor would cost a filter of gigabytes
CHANNELS = 8
PEAK = 10.0  # samples are in [-1, 1]; a hot recording goes somewhat over, 16-bit numbers far


def mono(value: Audio, max_seconds: float) -> Float[Tensor, "N"]:
    """The samples of all channels mixed, at 16 kHz. A rate is rounded to 25 Hz: at most 0.3%, a twentieth of a semitone."""
    check(value, max_seconds)
    sound_N = torch.atleast_2d(value.samples.detach().cpu().float()).mean(0)
    broken = int((~sound_N.isfinite()).sum())
    if broken:
        raise InputError(f"{broken} of {len(sound_N)} samples are NaN or infinite: repair the recording, samples lie in [-1, 1]")
    peak = float(sound_N.abs().max())
    if peak > PEAK:
        raise InputError(f"samples of up to {peak:.4g}, the limit is {PEAK:g}: scale them to [-1, 1] (divide 16-bit samples by 32768)")
    rate = RATE_STEP * round(value.rate / RATE_STEP)
    if rate == RATE:
        return sound_N
    from torchaudio.functional import resample  # only where a rate does not fit yet

    return resample(sound_N, rate, RATE)


def check(value: Audio, max_seconds: float) -> None:
    """Refuses what cannot be read by its size and kind alone, before a sample is looked at."""
    samples, rate = value.samples, value.rate
    if not samples.is_floating_point():
        raise InputError(f"samples of type {samples.dtype}: pass floating point in [-1, 1] (divide 16-bit samples by 32768)")
    if samples.ndim not in (1, 2):
        raise InputError(f"samples with {samples.ndim} dimensions: pass 2, (channels, samples), or 1, (samples,)")
    channels, count = torch.atleast_2d(samples).shape
    if not 1 <= channels <= CHANNELS:
        raise InputError(f"{channels} channels, 1 to {CHANNELS} can be mixed: pass (channels, samples), or fewer channels")
    if not count:
        raise InputError("0 samples: pass a sound of at least 1 sample")
    if not RATES[0] <= rate <= RATES[1] or rate != int(rate):
        raise InputError(f"a rate of {rate} Hz: pass a whole number from {RATES[0]} to {RATES[1]}")
    if count > max_seconds * rate:
        raise InputError(f"a sound of {count / rate:.2f} seconds, the limit is {max_seconds:g}: cut it into shorter ones")


def line(values_NF: Float[Tensor, "N F"]) -> Prepared:
    """Vectors one after the other in time."""
    return on_grid(values_NF, (len(values_NF), 1, 1))


def frames(value: Audio, max_seconds: float) -> Prepared:
    """Frames of 640 raw samples, silence behind the last."""
    sound_N = mono(value, max_seconds)
    return line(rearrange(F.pad(sound_N, (0, -len(sound_N) % FRAME)), "(n f) -> n f", f=FRAME))


class FrameEncoder(nn.Module):
    """Raw frames of 640 samples, one linear map. No loudness is normalised away: silence stays silent, and a frame needs no other."""

    def __init__(self, width: int, max_seconds: float = 30.0):
        super().__init__()
        self.max_seconds = max_seconds
        self.map = nn.Linear(FRAME, width)

    def prepare(self, value: Audio, /) -> Prepared:
        return frames(value, self.max_seconds)

    def forward(self, prepared: Prepared, /) -> Float[Tensor, "N D"]:
        return self.map(prepared.values_NF)


class MelEncoder(nn.Module):
    """Log-mel (25 ms each 10 ms, as Whisper; Radford et al., 2022, arXiv:2212.04356) and two convolutions of stride 2.

    A vector stands for 4 mel frames and reads the 7 that two convolutions reach. `prepare` cuts them out as its raw values:
    the convolutions see one window at a time, so none reaches into another clip.

    mel frame   0 1 2 3 4 5 6 7 8 9 10    beyond both ends of a clip there is silence
    vector 0    x x x x x x x
    vector 1            x x x x x x x

    With `blocks` it listens for context too: each block reads 3 vectors before and 3 behind its own, of the same clip.
    """

    WINDOW, HOP, READS, SIDE = 400, 160, 7, 3

    def __init__(self, width: int, mels: int = 80, max_seconds: float = 30.0, blocks: int = 0):
        super().__init__()
        self.mels, self.max_seconds = mels, max_seconds
        self.stem = nn.Sequential(nn.Conv1d(mels, width, 3, stride=2), nn.GELU(), nn.Conv1d(width, width, 3, stride=2))
        self.blocks = nn.ModuleList(Block(width, self.SIDE, self.SIDE) for _ in range(blocks))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) if blocks else nn.Identity()

    @cached_property  # kept beside the module's parts: it belongs to `prepare` and stays on the CPU
    def spectrogram(self) -> nn.Module:
        from torchaudio.transforms import MelSpectrogram

        return MelSpectrogram(RATE, self.WINDOW, hop_length=self.HOP, n_mels=self.mels, center=False, norm="slaney", mel_scale="slaney")

    def prepare(self, value: Audio, /) -> Prepared:
        sound_N = mono(value, self.max_seconds)
        # n vectors read 4 n + 3 mel frames, 640 n + 720 samples: half of the 720 before the clip, half behind it
        edge = (self.WINDOW + (self.READS - 1) * self.HOP - FRAME) // 2
        power_MT = self.spectrogram(F.pad(sound_N, (edge, -len(sound_N) % FRAME + edge)))
        mel_MT = power_MT.clamp_min(1e-10).log10() / 4 + 1
        return line(rearrange(mel_MT.unfold(1, self.READS, FRAME // self.HOP), "m n k -> n (m k)"))

    def forward(self, prepared: Prepared, /) -> Float[Tensor, "N D"]:
        windows_NMK = rearrange(prepared.values_NF, "n (m k) -> n m k", m=self.mels)
        x_ND = rearrange(self.stem(windows_NMK), "n d 1 -> n d")
        if self.blocks:  # clips side by side, silence behind the shorter ones
            counts = [frames for frames, _, _ in prepared.grids]
            x_BTD = pad_sequence(x_ND.split(counts), batch_first=True)
            heard_BT = torch.arange(x_BTD.shape[1], device=x_ND.device) < torch.tensor(counts, device=x_ND.device)[:, None]
            for block in self.blocks:
                x_BTD = block(x_BTD * heard_BT[..., None])
            x_ND = x_BTD[heard_BT]
        return self.out(x_ND)
