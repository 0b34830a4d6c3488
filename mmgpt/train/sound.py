"""Speech -> a trained sound codec: the task that the loop runs.

A reconstruction is compared in its spectra. Those of two pitches cannot be compared, so it is made at the pitch of the original,
and the pitch that the codes say is learned beside it.
"""

from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, Int16
from torch import Tensor
from torch.nn import functional as F

from mmgpt.checkpoint import load_part, save_part
from mmgpt.decoders.audio_codec import AudioCodec, AudioCodecConfig
from mmgpt.decoders.image_codec import codebook_usage
from mmgpt.decoders.vocoder import added, hisses, power, spectra, tones
from mmgpt.encoders.audio import RATE
from mmgpt.errors import TrainingError
from mmgpt.types import Audio

RESOLUTIONS = ((256, 24), (512, 48), (1024, 96), (2048, 192))  # (samples of a window, mel bands)
VOICED = 0.3  # as periodic as a voice is at least
SHOWN = 4  # seconds


class SoundTask:
    """Random stretches of one long sound, reconstructed. Batches are a function of (seed, step)."""

    def __init__(self, model: AudioCodec, samples: Int16[Tensor, "N"], batch_size: int = 12, seconds: float = 1.6, seed: int = 0):
        self.model, self.samples, self.batch_size, self.seed = model, samples, batch_size, seed
        self.length = max(1, round(seconds * RATE / model.hop)) * model.hop
        if len(samples) < self.length:
            raise TrainingError(f"{len(samples) / RATE:.2f} seconds of sound for stretches of {self.length / RATE:.2f}: use more sound")

    def batch(self, step: int) -> Int16[Tensor, "B n"]:
        return self.share(step, 0, 1)

    def share(self, step: int, number: int, of: int) -> Int16[Tensor, "B n"]:
        if self.batch_size % of:
            raise TrainingError(f"batch_size={self.batch_size} in {of} parts (ranks times accumulate): use a multiple of {of}")
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        begins = torch.randint(len(self.samples) - self.length + 1, (self.batch_size,), generator=generator)[number::of]
        return torch.stack([self.samples[begin : begin + self.length] for begin in begins.tolist()])

    def losses(self, batch: Int16[Tensor, "B n"]) -> tuple[Tensor, dict[str, float]]:
        samples = batch.to(next(self.model.parameters()).device).float() / 2**15
        features = self.model.features(samples)
        quantised, codes = self.model.quantise(self.model.analyse(features))
        voice, (octave, periodic) = self.model.say(quantised), self.model.pitch_in(features)
        # 1. the pitch, where there is one
        voiced = (periodic - VOICED).clamp_min(0)
        pitch = ((voice.octave_BS - octave).abs() * voiced).sum() / voiced.sum().clamp_min(1)
        # 2. the sound at that pitch, beginning anywhere in its period and in the noise
        voice = voice._replace(octave_BS=torch.where(voiced > 0, octave, voice.octave_BS.detach()))
        tone, hiss = tones(voice, torch.rand(len(samples), 1, device=samples.device).double()), hisses(voice, int(torch.randint(1 << 16, ())))
        audio = spectral_loss(added(tone + hiss), samples)
        # 3. what its power is on average: no noise is in this gradient
        mean = F.l1_loss(self.bands(power(tone, voice.noise_BSF)), self.bands(spectra(samples).abs().square()))
        used, _ = codebook_usage(codes.long(), self.model.num_codes)
        figures = {"audio": float(audio.detach()), "mean": float(mean.detach()), "semitones": 12 * float(pitch.detach()), "used": used}
        return audio + mean + pitch, figures

    def bands(self, power_BSF: Float[Tensor, "B S F"]) -> Float[Tensor, "B S M"]:
        """Log-mel power, in bels."""
        return (power_BSF @ self.model.mel_FM).clamp_min(1e-6).log10()

    def compile(self) -> None:
        self.model.analysis.compile()
        self.model.synthesis.compile()
        self.model.head.compile()

    def size(self, batch: Tensor) -> int:
        return batch.numel() // RATE

    @torch.no_grad()
    def sample(self, folder: Path, step: int) -> None:
        """The first seconds, as they are and reconstructed."""
        from mmgpt.data.sound import save_sound

        samples = self.samples[: len(self.samples[: SHOWN * RATE]) // self.model.hop * self.model.hop].float() / 2**15
        ours = self.model.decode(self.model.encode(samples[None].to(next(self.model.parameters()).device)))[0].cpu()
        save_sound(Audio(torch.cat([samples, ours]), RATE), folder / f"{step:07d}.wav")

    def export(self, folder: Path, weights: dict[str, Tensor]) -> None:
        save_codec(folder, self.model, weights)


def spectral_loss(ours: Float[Tensor, "B N"], samples: Float[Tensor, "B N"]) -> Float[Tensor, ""]:
    """L1 of log-mel power, in bels, at several resolutions: phases are free."""
    return torch.stack([F.l1_loss(log_mel(ours, *r), log_mel(samples, *r)) for r in RESOLUTIONS]).mean()


def log_mel(samples: Float[Tensor, "B N"], size: int, bands: int) -> Float[Tensor, "B T M"]:
    window_N, mel_FM = bank(size, bands, samples.device)
    spectrum = torch.stft(samples, size, size // 2, window=window_N, pad_mode="constant", return_complex=True)
    power_BTF = (spectrum.real.square() + spectrum.imag.square()).transpose(1, 2)
    return (power_BTF @ mel_FM).clamp_min(1e-5).log10()


@cache
def bank(size: int, bands: int, device: torch.device) -> tuple[Tensor, Tensor]:
    from torchaudio.functional import melscale_fbanks

    with torch.inference_mode(False):  # what is kept for later may be needed by a gradient
        mel_FM = melscale_fbanks(size // 2 + 1, 0.0, RATE / 2, bands, RATE, norm="slaney") * 1024 / size
        return torch.hann_window(size, device=device), mel_FM.to(device)


def long_sound(sounds: Iterable[Audio]) -> Int16[Tensor, "N"]:
    """All sounds one after the other, mono at 16 kHz."""
    from mmgpt.encoders.audio import mono

    return torch.cat([(mono(sound, float("inf")).clamp(-1, 1) * (2**15 - 1)).round().to(torch.int16) for sound in sounds])


def save_codec(folder: Path, codec: AudioCodec, weights: dict[str, Tensor] | None = None) -> None:
    save_part(folder, "codec", codec, asdict(codec.config), weights)


def load_codec(folder: str | Path) -> AudioCodec:
    return load_part(folder, "codec", lambda **settings: AudioCodec(AudioCodecConfig(**settings)))
