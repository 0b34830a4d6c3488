"""PIL image -> one vector a patch: any size and aspect ratio, many pictures at once, nothing padded."""

from collections.abc import Callable
from math import prod

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from mmgpt.encoders.conv import Downsample, ResidualBlock, fold
from mmgpt.encoders.efficientnet import MEAN, STD, STRIDE, WIDTH, LiteBlocks
from mmgpt.encoders.places import Places, on_grid
from mmgpt.errors import InputError
from mmgpt.types import Prepared

TOGETHER = 16  # pictures, with what a network makes of them, that the caches of a CPU hold


def pixels_of(image: Image.Image) -> Float[Tensor, "3 H W"]:
    """RGB pixels in [-1, 1]."""
    if not isinstance(image, Image.Image):
        raise InputError(f"a picture of type {type(image).__name__}: pass a PIL image, or open a file with mmgpt.open_picture")
    array = np.array(opaque(image))
    return rearrange(torch.from_numpy(array), "h w c -> c h w").float() / 127.5 - 1


def opaque(image: Image.Image) -> Image.Image:
    """Upright RGB, on white where the picture is transparent; refused where it is broken or too big."""
    from mmgpt.data.pictures import MAX_PIXELS, check_size, open_picture

    if type(image) is Image.Image and image.mode == "RGB" and not image.info:
        check_size("a picture", *image.size, MAX_PIXELS)
        return image  # decoded already, and nothing that could turn it or make it transparent

    return open_picture(image)


def fitted(image: Image.Image, patch: int, max_patches: int, square: int | None = None) -> Image.Image:
    """The picture with sides that are multiples of `patch`, at most `max_patches` patches, aspect ratio kept as well as that allows."""
    if not image.width or not image.height:
        raise InputError(f"a picture of {image.width}x{image.height} pixels: pass one of at least 1x1")
    if square:
        size = (square, square)
    else:
        scale = min(1.0, (max_patches * patch * patch / (image.width * image.height)) ** 0.5)
        size = tuple(max(1, round(side * scale / patch)) * patch for side in image.size)
        while size[0] * size[1] > max_patches * patch * patch:  # rounding up, or one very long side
            size = (size[0] - patch, size[1]) if size[0] >= size[1] else (size[0], size[1] - patch)
    if size == image.size:
        return image
    from torchvision.transforms import v2  # two seconds to import: only where a picture does not fit yet

    return v2.functional.resize(image, list(size[::-1]), v2.InterpolationMode.BICUBIC, antialias=True)


class PatchEncoder(nn.Module):
    """Raw patches, one linear map (or a small MLP with `hidden`), factorised 2-D positions.

    `square` squeezes every picture to square x square pixels; without it sizes and aspect ratios stay.
    """

    def __init__(self, width: int, patch: int = 8, max_patches: int = 1024, square: int | None = None, hidden: int = 0):
        super().__init__()
        self.patch, self.max_patches, self.square = patch, max_patches, square
        values = 3 * patch * patch
        self.map = nn.Linear(values, width) if not hidden else nn.Sequential(nn.Linear(values, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.places = Places((1, max_patches, max_patches), width)

    def prepare(self, value: Image.Image, /) -> Prepared:
        return self.cut(pixels_of(fitted(opaque(value), self.patch, self.max_patches, self.square)))

    def cut(self, pixels: Float[Tensor, "3 H W"]) -> Prepared:
        """Pixels in [-1, 1], sides multiples of the patch -> patches in reading order."""
        values = rearrange(pixels, "c (h p) (w q) -> (h w) (p q c)", p=self.patch, q=self.patch)
        return on_grid(values, (1, pixels.shape[1] // self.patch, pixels.shape[2] // self.patch))

    def forward(self, prepared: Prepared, /) -> Float[Tensor, "N D"]:
        return self.map(prepared.values_NF.to(self.places.tables[0].dtype)) + self.places(prepared.place_N3)


class ConvEncoder(PatchEncoder):
    """Patches whose vectors come from a small residual network over the whole picture: it learns from far fewer pictures.

    Pictures of one size go through it together. `patch` is a power of two: the network halves the picture until one vector a
    patch is left, from `stem` channels at half size, doubling up to `width`.
    """

    def __init__(self, width: int, patch: int = 16, max_patches: int = 1024, square: int | None = None, stem: int = 32):
        super().__init__(width, patch, max_patches, square)
        if patch < 4 or patch & (patch - 1):
            raise InputError(f"patches of {patch} pixels: this encoder takes a power of two of at least 4")
        widths = [stem]
        layers: list[nn.Module] = [nn.Conv2d(12, stem, 3, padding=1), ResidualBlock(stem)]
        while 2 ** len(widths) < patch:
            widths.append(min(2 * widths[-1], width))
            layers += [Downsample(widths[-2], widths[-1]), ResidualBlock(widths[-1]), ResidualBlock(widths[-1])]
        self.map = nn.Sequential(*layers, nn.GroupNorm(8, widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], width, 1))

    def forward(self, prepared: Prepared, /) -> Float[Tensor, "N D"]:
        def seen(pixels: Tensor, frames: list[int]) -> Tensor:
            return self.see(pixels.contiguous(memory_format=torch.channels_last))

        return together(prepared, self.patch, self.places.tables[0].dtype, seen) + self.places(prepared.place_N3)

    def see(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D h w"]:
        """Pixels in [-1, 1] -> a vector a patch."""
        return self.map(fold(pixels, 2, 2))


def together(
    prepared: Prepared, patch: int, dtype: torch.dtype, network: Callable[[Float[Tensor, "T 3 H W"], list[int]], Float[Tensor, "T D h w"]]
) -> Float[Tensor, "N D"]:
    """What a network sees in pictures or clips. Those of one size go through it together: it is given their frames and how many each has."""
    pieces = prepared.values_NF.to(dtype).split([prod(grid) for grid in prepared.grids])
    found = list(pieces)
    for rows, columns in dict.fromkeys(grid[1:] for grid in prepared.grids):
        numbers = [n for n, grid in enumerate(prepared.grids) if grid[1:] == (rows, columns)]
        values = torch.cat([pieces[n] for n in numbers])
        frames = rearrange(values, "(t h w) (p q c) -> t c (h p) (w q)", h=rows, w=columns, p=patch, q=patch)
        vectors = rearrange(network(frames, [prepared.grids[n][0] for n in numbers]), "t d h w -> (t h w) d")
        for n, vector in zip(numbers, vectors.split([len(pieces[n]) for n in numbers]), strict=True):
            found[n] = vector
    return torch.cat(found)


def enlarged(pixels: Float[Tensor, "B 3 H W"], size: list[int]) -> Float[Tensor, "B 3 h w"]:
    return pixels if list(pixels.shape[2:]) == size else F.interpolate(pixels, size, mode="bicubic", align_corners=False)


class LiteEncoder(ConvEncoder):
    """Patches seen by EfficientNet-Lite0, enlarged until each has its 32 pixels: eyes that have learned on other pictures before."""

    def __init__(self, width: int, patch: int = 16, max_patches: int = 1024, square: int | None = None):
        PatchEncoder.__init__(self, width, patch, max_patches, square)
        self.tower = LiteBlocks().to(memory_format=torch.channels_last)  # 1.6 times as fast on a CPU
        self.map = nn.Sequential(nn.GroupNorm(8, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, width, 1))

    def see(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D h w"]:
        size = [side // self.patch * STRIDE for side in pixels.shape[2:]]
        few = pixels.split(TOGETHER if pixels.device.type == "cpu" else max(1, len(pixels)))
        return self.map(torch.cat([self.tower((enlarged(part, size) * 127.5 + 127.5 - MEAN) / STD) for part in few]))


TOWERS = {"efficientnet-lite0": LiteEncoder}


def square_encoder(width: int, patch: int, side: int, hidden: int = 0, stem: int = 0, tower: str = "") -> PatchEncoder:
    """The encoder of pictures of side x side pixels that these settings name: of a tower, else convolutional, else linear."""
    if tower:
        return TOWERS[tower](width, patch, (side // patch) ** 2, side)
    if stem:
        return ConvEncoder(width, patch, (side // patch) ** 2, side, stem)
    return PatchEncoder(width, patch, square=side, hidden=hidden)
