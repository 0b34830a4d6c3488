"""(B, 3, H, W) pixels in [-1, 1] <-> (B, h, w) codes: a convolutional auto-encoder with finite scalar quantisation.

FSQ (Mentzer et al., 2023, arXiv:2309.15505) rounds each of a few channels to a handful of levels; the code of a
position is the mixed-radix number of its channels, so every code is reachable and there is no codebook to collapse.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from PIL.Image import Image, fromarray
from torch import Tensor, nn
from torch.nn import functional as F

from mmgpt.encoders.conv import Downsample, ResidualBlock, Upsample, fold, unfold
from mmgpt.encoders.image import fitted, opaque, pixels_of
from mmgpt.errors import InputError

PATCH = 4  # the first and last step fold 4x4 pixels into channels: no convolution runs at full resolution


@dataclass(frozen=True)
class ImageCodecConfig:
    """`stride` (rows, columns) of pixels a code, powers of two, at least 4; `levels` of each FSQ channel; `width` channels at stride 4."""

    stride: tuple[int, int] = (8, 8)
    levels: tuple[int, ...] = (8, 8, 8, 8)
    width: int = 64
    blocks: int = 2

    def __post_init__(self):
        if len(self.stride) != 2 or any(side < PATCH or side & (side - 1) for side in self.stride):
            raise InputError(f"codec stride {self.stride}: use two powers of two of at least {PATCH}, (rows, columns)")
        if self.width < 8 or self.width % 8 or self.blocks < 1 or not self.levels or min(self.levels) < 2:
            raise InputError(
                f"codec width {self.width}, blocks {self.blocks}, levels {self.levels}: a multiple of 8, at least 1, and levels of at least 2"
            )

    @property
    def num_codes(self) -> int:
        return prod(self.levels)


def factors(stride: tuple[int, int]) -> list[tuple[int, int]]:
    """Halvings that lead from PATCH to the stride: (16, 8) -> [(2, 2), (2, 1)]."""
    rows, columns = (side // PATCH for side in stride)
    steps = []
    while rows > 1 or columns > 1:
        steps.append((min(rows, 2), min(columns, 2)))
        rows, columns = max(1, rows // 2), max(1, columns // 2)
    return steps


class ImageCodec(nn.Module):
    """Pixels <-> codes. Sizes must be multiples of `stride`; any aspect ratio works, the network is convolutional."""

    def __init__(self, config: ImageCodecConfig):
        super().__init__()
        from vector_quantize_pytorch import FSQ  # half a second to import: only where a codec is built

        self.config, self.stride, self.num_codes = config, config.stride, config.num_codes
        steps = factors(config.stride)
        widths = [config.width * min(2**i, 4) for i in range(len(steps) + 1)]

        def stage(width: int) -> list[nn.Module]:
            return [ResidualBlock(width) for _ in range(config.blocks)]

        down: list[nn.Module] = [nn.Conv2d(3 * PATCH**2, widths[0], 3, padding=1), *stage(widths[0])]
        up: list[nn.Module] = [*stage(widths[0]), nn.GroupNorm(8, widths[0]), nn.Conv2d(widths[0], 3 * PATCH**2, 3, padding=1)]
        for narrow, wide, factor in zip(widths, widths[1:], steps, strict=False):
            down += [Downsample(narrow, wide, factor), *stage(wide)]
            up = [*stage(wide), Upsample(wide, narrow, factor), *up]
        self.analysis = nn.Sequential(*down, nn.GroupNorm(8, widths[-1]), nn.Conv2d(widths[-1], len(config.levels), 1))
        self.synthesis = nn.Sequential(nn.Conv2d(len(config.levels), widths[-1], 3, padding=1), *up)
        with torch.device("cpu"):  # it computes its tables while it is built, also inside a model without memory
            self.quantise = FSQ(list(config.levels), channel_first=True)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B 3 H W"], Int[Tensor, "B h w"]]:
        """Reconstruction and codes; the gradient passes the rounding straight through."""
        height, width = pixels.shape[-2:]
        rows, columns = self.stride
        if height % rows or width % columns or not height or not width:
            raise InputError(f"a picture of {height} rows x {width} columns: they must be multiples of the codec's stride {self.stride}; resize it")
        quantised, codes = self.quantise(self.analysis(fold(pixels, PATCH, PATCH)))
        return unfold(self.synthesis(quantised), PATCH, PATCH), codes

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B h w"]:
        return self(pixels.to(next(self.parameters()).dtype))[1].long()

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "B h w"]) -> Float[Tensor, "B 3 H W"]:
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.num_codes:
            raise InputError(
                f"codes {int(codes.min())}..{int(codes.max())} of a codec with {self.num_codes} codes: they run from 0 to {self.num_codes - 1}"
            )
        values = self.quantise.indices_to_codes(codes).to(next(self.parameters()).dtype)
        return unfold(self.synthesis(values), PATCH, PATCH).clamp(-1, 1)


def reconstruction_loss(ours: Float[Tensor, "B 3 H W"], pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, ""]:
    """L1 on pixels and on their horizontal and vertical differences at three scales: edges are what an eye misses first."""
    loss = F.l1_loss(ours, pixels)
    for _ in range(3):
        loss = loss + 0.5 * (F.l1_loss(ours.diff(dim=-1), pixels.diff(dim=-1)) + F.l1_loss(ours.diff(dim=-2), pixels.diff(dim=-2)))
        ours, pixels = F.avg_pool2d(ours, 2), F.avg_pool2d(pixels, 2)
    return loss


def codebook_usage(codes: Int[Tensor, "..."], num_codes: int) -> tuple[float, float]:
    """(share of codes used at least once, perplexity / num_codes): 1.0 each when every code is equally common."""
    share_V = torch.bincount(codes.flatten(), minlength=num_codes).double() / max(1, codes.numel())
    entropy = -(share_V * share_V.clamp_min(1e-12).log()).sum()
    return float((share_V > 0).double().mean()), float(entropy.exp() / num_codes)


class PictureCodec(nn.Module):
    """A codec on PIL images: every picture is resized to `side` x `side` pixels, composited on white."""

    def __init__(self, codec: ImageCodec, side: int):
        super().__init__()
        self.codec, self.side, self.num_codes = codec, side, codec.num_codes

    def facts(self) -> dict:
        """What it is built of, but for its weights."""
        return {"codec": asdict(self.codec.config), "side": self.side}

    @classmethod
    def of(cls, facts: Mapping, place: Path) -> "PictureCodec":
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in facts["codec"].items()}
        with torch.device("cpu"):  # its quantiser holds tensors that are in no file
            return cls(ImageCodec(ImageCodecConfig(**settings)), facts["side"])

    def encode(self, value: Image, /) -> Int[np.ndarray, "h w"]:
        return self.encode_all([value])[0]

    def encode_all(self, values: Sequence[Image], /) -> Int[np.ndarray, "B h w"]:
        """Several at once, which is three times as fast."""
        pixels = torch.stack([pixels_of(fitted(opaque(value), 1, self.side**2, self.side)) for value in values])
        return self.codec.encode(pixels.to(next(self.parameters()).device)).cpu().numpy()

    def decode(self, codes: Int[np.ndarray, "1 h w"], /) -> Image:
        device = next(self.parameters()).device
        pixels = self.codec.decode(torch.from_numpy(np.ascontiguousarray(codes)).reshape(1, *codes.shape[-2:]).to(device))[0].float()
        return fromarray(rearrange(((pixels + 1) * 127.5).round().to(torch.uint8).cpu(), "c h w -> h w c").numpy())
