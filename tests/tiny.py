"""An untrained tiny GPT and pictures for tests: 2 x 4 codes and 4 patches a picture, bold weights, the same whenever it is built."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from mmgpt.decoders.audio_codec import AudioCodec, AudioCodecConfig
from mmgpt.decoders.image_codec import ImageCodec, ImageCodecConfig
from mmgpt.decoders.transformer import DecoderConfig
from mmgpt.encoders.text import TextCodec
from mmgpt.model import GPT
from mmgpt.native import NativeConfig, SoundConfig, VideoConfig, build, build_from
from mmgpt.types import Audio, Video

GRID = (1, 2, 4)  # the codes of a picture of 16 x 16 pixels


@lru_cache
def text_codec() -> TextCodec:
    return TextCodec.train(["a red apple", "a green apple", "caption: a small cat", "draw: a cat"] * 3, 300)


def tiny_gpt(seed: int = 0, max_length: int = 256, **changes) -> GPT:
    """A new model each time. Weights are five times as large as at the start of training, so that no two vectors are nearly equal."""
    text = text_codec()
    sizes = {"width": 64, "depth": 2, "num_heads": 2, "num_kv_heads": 1, "head_width": 32, "mlp_width": 128} | changes
    config = NativeConfig(DecoderConfig(**sizes), ImageCodecConfig((8, 4), (4, 4), 16, 1), text.num_codes, picture=16, patch=8, max_length=max_length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gpt = build(config, text, ImageCodec(config.codec)).eval()
    with torch.no_grad():
        for parameter in gpt.decoder.parameters():
            parameter.mul_(5 if parameter.ndim == 2 else 1)
        gpt.table.weight.mul_(5)
    return gpt


def picture(seed: int = 0, side: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


def tone(seconds: float = 0.3, pitch: float = 200.0, rate: int = 16_000) -> Audio:
    return Audio(torch.sin(torch.arange(int(seconds * rate)) * (2 * torch.pi * pitch / rate)) * 0.3, rate)


def clip(frames: int = 3, seed: int = 0) -> Video:
    return Video(tuple(picture(seed + n) for n in range(frames)), 3.0)


def any_gpt(seed: int = 0, quantizers: int = 2, words: bool = False, verbatim: bool = False, letters: bool = False, **changes):
    """A tiny model that reads and writes all four modalities."""
    base = tiny_gpt(seed, **changes)
    codec = AudioCodecConfig(levels=(4, 4), quantizers=quantizers, width=16, blocks=1)
    audio = SoundConfig(codec, seconds=1.2 if letters else 0.4, temperature=1.0, words=words, verbatim=verbatim, letters=letters)
    config = replace(base.config, audio=audio, video=VideoConfig(3, 16, 3.0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_from(base, config, AudioCodec(codec)).eval()


def learned(gpt: GPT, stream, head: str, rate: float, steps: int) -> float:
    """The last mean loss of a head after so many steps on one stream, of all weights that may be trained."""
    optimizer = torch.optim.AdamW([p for p in gpt.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = gpt.losses(stream)[head].mean()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def gap(a, b) -> float:
    """The largest difference of two arrays or tensors of one shape."""
    a, b = torch.as_tensor(a).detach(), torch.as_tensor(b).detach()
    assert a.shape == b.shape, f"{tuple(a.shape)} and {tuple(b.shape)}"
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
