"""Speech in two parts, each 10 ms: its pitch, and the spectra that filter pulses and noise <-> samples at 16 kHz. No weights.

Harmonics plus noise (Serra and Smith, 1990), filtered and added between an STFT and its inverse.
"""

from functools import cache
from math import log2, pi
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Complex, Float, Float64
from torch import Tensor
from torch.nn import functional as F

from mmgpt.encoders.audio import RATE

STEP, WINDOW = 160, 480  # samples: a spectrum each 10 ms, of 30 ms; three of them overlap everywhere
BINS = WINDOW // 2 + 1
REACH = 3  # steps before and behind that a sample depends on
MIDDLE = STEP // 2 - 1  # the last sample of a step before its middle
LOW, HIGH = 60.0, 500.0  # Hz of a voice
OCTAVES = log2(HIGH / LOW)
TOP = 7600.0  # Hz below which pulses have harmonics
LOUDEST = 5.0  # of a filter, log magnitude
HALVED = 2  # periods are looked for at half the rate
HISS = 180.0  # power of a bin of the static, which is the sum of the squares of the window
PERIODS = 512  # samples at that rate, in which they are looked for
QUIET = 1e-5  # power of a sound that is half as periodic as it was


class Voice(NamedTuple):
    """Each 10 ms: octaves above the lowest pitch, log magnitude of the filter of pulses and of the filter of noise."""

    octave_BS: Float[Tensor, "B S"]
    tone_BSF: Float[Tensor, "B S F"]
    noise_BSF: Float[Tensor, "B S F"]


@cache
def window(device: torch.device) -> Float[Tensor, "W"]:
    with torch.inference_mode(False):  # what is kept for later may be needed by a gradient
        return torch.hann_window(WINDOW, device=device)


@cache
def static(device: torch.device) -> Float[Tensor, "N"]:
    """Four seconds of noise, the same every time: it depends on where a sample stands, so that chunks continue one another."""
    with torch.inference_mode(False):
        return torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)).to(device)


def spectra(samples: Float[Tensor, "*B N"]) -> Complex[Tensor, "*B S F"]:
    """The spectrum around the middle of each step; silence beyond both ends."""
    edge = (WINDOW - STEP) // 2
    return torch.fft.rfft(F.pad(samples, (edge, edge)).unfold(-1, WINDOW, STEP) * window(samples.device))


def added(spectra_BSF: Complex[Tensor, "B S F"]) -> Float[Tensor, "B N"]:
    """The inverse of `spectra`: windowed again, overlapped and added."""
    frames = torch.fft.irfft(spectra_BSF, WINDOW) * window(spectra_BSF.device) / 1.125  # what the squares of three windows add up to
    before, here, behind = rearrange(frames, "b s (k n) -> k b s n", n=STEP)
    summed = here + F.pad(before[:, 1:], (0, 0, 0, 1)) + F.pad(behind[:, :-1], (0, 0, 1, 0))
    return rearrange(summed, "b s n -> b (s n)")


def hertz(octave_BS: Float[Tensor, "B S"]) -> Float64[Tensor, "B N"]:
    """The pitch of each sample, on straight lines between the middles of steps."""
    return F.interpolate(LOW * 2 ** octave_BS[:, None].double(), scale_factor=STEP, mode="linear")[:, 0]


def cycles(hertz_BN: Float64[Tensor, "B N"], begun: float | Tensor) -> Float64[Tensor, "B N"]:
    """Periods that have passed, `begun` of them in the middle of the first step: what the pitch is before depends on the step before."""
    passed = (hertz_BN / RATE).cumsum(-1)
    return passed - passed[:, MIDDLE, None] + begun


def pulses(hertz_BN: Float64[Tensor, "B N"], cycles_BN: Float64[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """All harmonics below 7.6 kHz in phase, each as loud as noise is around it.

    cos x + cos 2x + ... + cos kx = sin((k + 1/2) x) / (2 sin(x/2)) - 1/2
    """
    half = pi * (cycles_BN - cycles_BN.round())  # of the angle x
    half = torch.where(half.abs() < 1e-6, 1e-6, half)
    count = (TOP / hertz_BN).floor()
    sums = ((2 * count + 1) * half).sin() / (2 * half.sin()) - 0.5
    return (sums * (2 * hertz_BN / (RATE / 2)).sqrt()).float()


def minimum_phase(log_BSF: Float[Tensor, "B S F"]) -> Complex[Tensor, "B S F"]:
    """The filter of that log magnitude that sounds as early as it can, as throats do; its cepstrum is the even one's, folded."""
    cepstrum = torch.fft.irfft(log_BSF, WINDOW)
    fold = torch.zeros(WINDOW, device=log_BSF.device)
    fold[0] = fold[WINDOW // 2] = 1
    fold[1 : WINDOW // 2] = 2
    return torch.fft.rfft(cepstrum * fold).exp()


def tones(voice: Voice, begun: float | Float64[Tensor, "B 1"] = 0.0) -> Complex[Tensor, "B S F"]:
    """Spectra of the pulses behind their filter. `begun`: see `cycles`."""
    hertz_BN = hertz(voice.octave_BS)
    return spectra(pulses(hertz_BN, cycles(hertz_BN, begun))) * minimum_phase(voice.tone_BSF.clamp(max=LOUDEST))


def hisses(voice: Voice, first: int = 0) -> Complex[Tensor, "B S F"]:
    """Spectra of noise behind its filter. `first`: which sample of the static stands at the first one."""
    noise, size = static(voice.noise_BSF.device), voice.noise_BSF.shape[1] * STEP
    heard_N = noise[(first + torch.arange(size, device=noise.device)) % len(noise)]
    return spectra(heard_N) * voice.noise_BSF.clamp(max=LOUDEST).exp()


def power(tones_BSF: Complex[Tensor, "B S F"], noise_BSF: Float[Tensor, "B S F"]) -> Float[Tensor, "B S F"]:
    """What the power of pulses and noise together is on average over all noise."""
    return tones_BSF.abs().square() + HISS * (2 * noise_BSF.clamp(max=LOUDEST)).exp()


def sound(voice: Voice, begun: float | Float64[Tensor, "B 1"] = 0.0, first: int = 0) -> Float[Tensor, "B N"]:
    return added(tones(voice, begun) + hisses(voice, first))


def pitch(samples: Float[Tensor, "B N"]) -> tuple[Float[Tensor, "B S"], Float[Tensor, "B S"]]:
    """(octaves above 60 Hz, how periodic the sound is from 0 to 1) of each step, by autocorrelation (Boersma, 1993).

    The correlation of five steps counts together, and a longer period costs a little: twice the true one fits every voice as well.
    """
    low = F.avg_pool1d(samples[:, None], HALVED)[:, 0]
    edge = (PERIODS - STEP // HALVED) // 2
    shape = torch.hann_window(PERIODS, device=samples.device)
    frames = F.pad(low, (edge, edge)).unfold(-1, PERIODS, STEP // HALVED) * shape

    def correlation(x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, 2 * PERIODS)
        return torch.fft.irfft(spectrum.real.square() + spectrum.imag.square())

    rate = RATE // HALVED
    shortest, longest = int(rate / HIGH), int(rate / LOW)
    own, found = correlation(shape), correlation(frames)
    found = found[..., : longest + 2] / (found[..., :1] + QUIET * own[0]) / (own / own[0])[: longest + 2]
    smooth = F.avg_pool1d(rearrange(found, "b s l -> b l s"), 5, 1, 2, count_include_pad=False)[:, shortest - 1 :]
    period = torch.arange(shortest - 1, longest + 2, device=samples.device)
    cost = 0.05 * (period / shortest).log2()
    best = (smooth - cost[:, None])[:, 1:-1].argmax(1, keepdim=True) + 1
    left, peak, right = (smooth.gather(1, best + i)[:, 0] for i in (-1, 0, 1))
    between = ((left - right) / (2 * (left - 2 * peak + right)).clamp(max=-1e-6)).clamp(-0.5, 0.5)
    octave = (rate / LOW / (period[best[:, 0]] + between)).log2()
    return octave.clamp(0, OCTAVES), peak.clamp(0, 1)
