"""(B, C, H, W) -> (B, c, h, w): the convolutional pieces that the picture encoder and the picture codec share."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def fold(pixels: Float[Tensor, "B C H W"], rows: int, columns: int) -> Float[Tensor, "B c h w"]:
    return rearrange(pixels, "b c (h p) (w q) -> b (c p q) h w", p=rows, q=columns)


def unfold(x: Float[Tensor, "B c h w"], rows: int, columns: int) -> Float[Tensor, "B C H W"]:
    return rearrange(x, "b (c p q) h w -> b c (h p) (w q)", p=rows, q=columns)


class ResidualBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.spatial = nn.Conv2d(width, width, 3, padding=1)
        self.mix = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        return x + self.mix(F.silu(self.spatial(F.silu(self.norm(x)))))


class Downsample(nn.Module):
    def __init__(self, width_in: int, width_out: int, factor: tuple[int, int] = (2, 2)):
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(width_in * factor[0] * factor[1], width_out, 1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c h w"]:
        return self.conv(fold(x, *self.factor))


class Upsample(nn.Module):
    def __init__(self, width_in: int, width_out: int, factor: tuple[int, int] = (2, 2)):
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(width_in, width_out * factor[0] * factor[1], 1)

    def forward(self, x: Float[Tensor, "B c h w"]) -> Float[Tensor, "B C H W"]:
        return unfold(self.conv(x), *self.factor)
