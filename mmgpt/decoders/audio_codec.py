"""(B, N) samples of speech at 16 kHz <-> (B, T, K) codes: convolutions over time with finite scalar quantisation between them.

The few bits of a frame cannot say where in its period a voice stands, and a network that has to guess it buzzes. So the decoder says
only the pitch and two spectra each 10 ms, and `vocoder.py` makes pulses of that pitch and noise pass through them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mmgpt.decoders.vocoder import BINS, MIDDLE, OCTAVES, REACH, STEP, Voice, cycles, hertz, pitch, sound, spectra
from mmgpt.encoders.audio import RATE, mono
from mmgpt.encoders.convnext import Block
from mmgpt.errors import InputError
from mmgpt.types import Audio

MELS = 80
FEATURES = MELS + 2
SIDE = 3  # a block of the encoder reads so many frames before and as many behind; one of the decoder twice as many before, none behind
ENOUGH = 32  # frames; fewer are multiplied in another order, and a pitch that differs in its last bit drifts
EDGE = 3  # frames of silence around a sound, in which the features of its ends die away


@dataclass(frozen=True)
class AudioCodecConfig:
    """`hop` samples a frame, a multiple of 160; `quantizers` codes a frame, each of FSQ with `levels`; `width` channels of `blocks` at
    that rate, half of them of `fine` blocks each 10 ms."""

    rate: int = RATE
    hop: int = 640
    quantizers: int = 2
    levels: tuple[int, ...] = (4, 4, 4, 4, 4, 4)
    width: int = 256
    blocks: int = 4
    fine: int = 2

    def __post_init__(self):
        if self.rate != RATE or self.hop < STEP or self.hop % STEP:
            raise InputError(
                f"codec rate {self.rate}, hop {self.hop}: use {RATE} Hz, to which all sound is brought, and a multiple of {STEP} samples"
            )
        if self.quantizers < 1 or not self.levels or min(self.levels) < 3:
            raise InputError(f"codec quantizers {self.quantizers}, levels {self.levels}: at least 1, and levels of at least 3")
        if self.width < 8 or self.width % 2 or min(self.blocks, self.fine) < 1:
            raise InputError(f"codec width {self.width}, blocks {self.blocks}, fine {self.fine}: an even number of at least 8, and at least 1 each")

    @property
    def num_codes(self) -> int:
        """Ids of one quantizer."""
        return prod(self.levels)


class AudioCodec(nn.Module):
    """Samples <-> codes. A frame's codes depend on half a second around it, its sound on what came before and on 30 ms behind it."""

    def __init__(self, config: AudioCodecConfig):
        super().__init__()
        from torchaudio.functional import melscale_fbanks
        from vector_quantize_pytorch import FSQ  # half a second to import: only where a codec is built

        self.config, self.hop, self.quantizers, self.num_codes = config, config.hop, config.quantizers, config.num_codes
        self.steps, width, half, channels = config.hop // STEP, config.width, config.width // 2, len(config.levels) * config.quantizers
        # 1. each frame's features -> what is quantised
        reading = [Block(width, SIDE, SIDE) for _ in range(config.blocks)]
        self.analysis = nn.Sequential(nn.Linear(FEATURES * self.steps, width), *reading, nn.LayerNorm(width), nn.Linear(width, channels))
        # 2. what was quantised -> each step's voice
        saying = [Block(width, 2 * SIDE, 0) for _ in range(config.blocks)]
        self.synthesis = nn.Sequential(nn.Linear(channels, width), *saying, nn.LayerNorm(width), nn.Linear(width, half * self.steps))
        fine = [Block(half, 2 * SIDE, 0) for _ in range(config.fine)]
        self.head = nn.Sequential(*fine, nn.LayerNorm(half), nn.Linear(half, 1 + 2 * BINS))
        nn.init.constant_(self.head[-1].bias[1:], -7.0)  # begins quiet
        with torch.device("cpu"):  # tables are computed while it is built, also inside a model without memory
            self.quantise = FSQ(list(config.levels), num_codebooks=config.quantizers, keep_num_codebooks_dim=True)
            mel_FM = melscale_fbanks(BINS, 50.0, RATE / 2, MELS, RATE, norm="slaney", mel_scale="slaney")
            self.register_buffer("mel_FM", mel_FM, persistent=False)

    def forward(self, samples: Float[Tensor, "B N"]) -> tuple[Float[Tensor, "B N"], Int[Tensor, "B T K"]]:
        """Reconstruction and codes; the gradient passes the rounding straight through."""
        voice, codes = self.voice(samples)
        return sound(voice), codes

    def voice(self, samples: Float[Tensor, "B N"]) -> tuple[Voice, Int[Tensor, "B T K"]]:
        """What it will say of the samples, and codes."""
        quantised, codes = self.quantise(self.analyse(self.features(samples)))
        return self.say(quantised), codes

    @torch.no_grad()
    def features(self, samples: Float[Tensor, "B N"]) -> Float[Tensor, "B S F"]:
        """Each 10 ms: log-mel spectrum, how periodic, and the pitch where it is; all 0 in silence. `EDGE` frames of silence lie around."""
        count = samples.shape[-1]
        if count % self.hop or not count:
            raise InputError(f"{count} samples: they must be a multiple of the codec's hop {self.hop}, and not 0; put silence behind them")
        edge = EDGE * self.hop
        around = F.pad(samples, (edge, edge))
        mel_BSM = (spectra(around).abs() @ self.mel_FM).clamp_min(1e-4).log10() / 2 + 2
        octave_BS, periodic_BS = pitch(around)
        both = torch.stack([periodic_BS, periodic_BS * (octave_BS - OCTAVES / 2)], -1)
        return torch.cat([mel_BSM, both], -1)

    def pitch_in(self, features_BSF: Float[Tensor, "B S F"]) -> tuple[Float[Tensor, "B s"], Float[Tensor, "B s"]]:
        """(octave, how periodic) of each step of the samples that these are the features of."""
        octave, periodic = features_BSF[:, EDGE * self.steps : -EDGE * self.steps, MELS:].unbind(-1)[::-1]
        return octave / periodic.clamp_min(1e-3) + OCTAVES / 2, periodic

    def analyse(self, features_BSF: Float[Tensor, "B S F"]) -> Float[Tensor, "B T C"]:
        """What is quantised. Silence lies around as far as convolutions reach: more of it, as in a batch, changes nothing."""
        reach = SIDE * self.config.blocks
        x = F.pad(rearrange(features_BSF, "b (t k) f -> b t (k f)", k=self.steps), (0, 0, reach - EDGE, reach - EDGE))
        return self.analysis(x)[:, reach:-reach]

    def say(self, quantised: Float[Tensor, "B T C"]) -> Voice:
        found = self.head(rearrange(self.synthesis(quantised), "b t (k c) -> b (t k) c", k=self.steps))
        octave, tone, noise = found.float().split([1, BINS, BINS], -1)
        return Voice(OCTAVES * octave[..., 0].sigmoid(), tone, noise)

    @torch.no_grad()
    def encode(self, samples: Float[Tensor, "B N"]) -> Int[Tensor, "B T K"]:
        return self.quantise(self.analyse(self.features(samples)))[1].long()

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "B T K"]) -> Float[Tensor, "B N"]:
        return sound(self.said(codes)).clamp(-1, 1)

    @torch.no_grad()
    def said(self, codes: Int[Tensor, "B T K"]) -> Voice:
        if codes.shape[-1] != self.quantizers or not codes.shape[1]:
            raise InputError(f"codes of shape {tuple(codes.shape)}: pass (batch, frames, {self.quantizers}), at least 1 frame")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.num_codes:
            raise InputError(
                f"codes {int(codes.min())}..{int(codes.max())} of a codec with {self.num_codes} codes: they run from 0 to {self.num_codes - 1}"
            )
        return self.say(self.quantise.indices_to_codes(codes))

    @property
    def before(self) -> int:
        """Frames before a frame that its voice depends on; it depends on none behind it."""
        return 2 * SIDE * self.config.blocks + -(-2 * SIDE * self.config.fine // self.steps)


class SoundStream:
    """Codes in chunks of any size -> their samples, as soon as they are certain: 30 ms behind. All together they are what `decode` gives.

    codes    0 1 | 2 3 |        samples of frame 1 wait for the pitch of frame 2, which moves their end
    samples  0   | 1 2 | 3      the last ones come with `last=True`
    """

    def __init__(self, codec: AudioCodec, num_words: int = 0):
        self.num_words = num_words
        self.codec, self.said, self.heard = codec, 0, 0  # steps that were said; steps whose samples were given
        self.context: Tensor | None = None  # the last codes, for the convolutions
        self.voice: Voice | None = None  # the last steps, from `begin` on, in the middle of which so many cycles had begun
        self.begin, self.begun = 0, torch.zeros(1, 1, dtype=torch.double)

    @torch.no_grad()
    def push(self, codes: Int[np.ndarray, "T *one K"], last: bool = False) -> Audio | None:
        """What is certain now; None if there is nothing more."""
        if len(codes := sounding(codes, self.codec.num_codes, self.num_words)):
            self.say(codes)
        ready = max(self.heard, self.said - (0 if last else REACH))
        if ready == self.heard:
            return Audio(torch.zeros(self.codec.hop), RATE) if last and self.num_words and not self.said else None
        samples = sound(self.voice, self.begun, self.begin * STEP)[0]
        made = samples[(self.heard - self.begin) * STEP : (ready - self.begin) * STEP].clamp(-1, 1)
        self.heard = ready
        self.forget(max(self.begin, ready - REACH))
        return Audio(made.cpu(), RATE)

    def say(self, codes: Int[np.ndarray, "T *one K"]) -> None:
        new = rows(codes, self.codec)
        codes_1TK = new if self.context is None else torch.cat([self.context, new], 1)
        steps = new.shape[1] * self.codec.steps
        more = codes_1TK[:, -1:].expand(-1, max(0, ENOUGH - codes_1TK.shape[1]), -1)  # nothing depends on what is behind it
        voice = [x[:, : codes_1TK.shape[1] * self.codec.steps][:, -steps:] for x in self.codec.said(torch.cat([codes_1TK, more], 1))]
        self.voice = Voice(*voice) if self.voice is None else Voice(*(torch.cat(both, 1) for both in zip(self.voice, voice, strict=True)))
        self.context, self.said = codes_1TK[:, -self.codec.before :], self.said + steps

    def forget(self, begin: int) -> None:
        """Steps before `begin`."""
        gone = begin - self.begin
        self.begun = cycles(hertz(self.voice.octave_BS), self.begun.to(self.voice.octave_BS.device))[:, gone * STEP + MIDDLE, None] % 1
        self.voice, self.begin = Voice(*(x[:, gone:] for x in self.voice)), begin


def rows(codes: Int[np.ndarray, "T *one K"], codec: AudioCodec) -> Int[Tensor, "1 T K"]:
    """Codes of one sound, frame by frame, also with an axis of 1 between frames and quantizers."""
    found = torch.from_numpy(np.array(codes, np.int64)).to(next(codec.parameters()).device)
    return found.reshape(1, len(found), -1)


class SoundCodec(nn.Module):
    """A codec on sounds of any rate: channels are mixed, silence fills the last frame; what comes back is mono at 16 kHz.

    `num_words` codes behind the codec's own are words (see `FramesLayout`): they are passed over. Words alone are a frame of silence.
    """

    def __init__(self, codec: AudioCodec, max_seconds: float = 600.0, num_words: int = 0):
        super().__init__()
        self.codec, self.max_seconds, self.num_words = codec, max_seconds, num_words
        self.num_codes, self.quantizers, self.rate = codec.num_codes, codec.quantizers, codec.config.rate

    def facts(self) -> dict:
        """What it is built of, but for its weights."""
        return {"codec": asdict(self.codec.config), "max_seconds": self.max_seconds, "num_words": self.num_words}

    @classmethod
    def of(cls, facts: Mapping, place: Path) -> "SoundCodec":
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in facts["codec"].items()}
        with torch.device("cpu"):  # its quantiser holds tensors that are in no file
            return cls(AudioCodec(AudioCodecConfig(**settings)), facts["max_seconds"], facts.get("num_words", 0))

    def encode(self, value: Audio, /) -> Int[np.ndarray, "T K"]:
        sound_N = mono(value, self.max_seconds)
        whole = F.pad(sound_N, (0, -len(sound_N) % self.codec.hop)).to(next(self.parameters()).device)
        return self.codec.encode(whole[None])[0].cpu().numpy()

    def decode(self, codes: Int[np.ndarray, "T *one K"], /) -> Audio:
        codes = sounding(codes, self.num_codes, self.num_words)
        if not len(codes) and self.num_words:
            return Audio(torch.zeros(self.codec.hop), self.rate)
        return Audio(self.codec.decode(rows(codes, self.codec))[0].cpu(), self.rate)

    def stream(self) -> SoundStream:
        """One sound, whose codes come chunk by chunk."""
        return SoundStream(self.codec, self.num_words)


def sounding(codes: Int[np.ndarray, "T *one K"], num_codes: int, num_words: int) -> Int[np.ndarray, "S *one K"]:
    """The codes without the words among them."""
    return codes[codes.reshape(-1) < num_codes] if num_words else codes  # a frame is one code
