"""Frames -> one vector a patch of every frame: the image encoder plus time; clips of any length and size at once, nothing padded."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmgpt.encoders.conv import Downsample, ResidualBlock, fold
from mmgpt.encoders.image import PatchEncoder, together
from mmgpt.encoders.places import on_grid
from mmgpt.errors import InputError
from mmgpt.types import Prepared, Video


def check(value: Video) -> None:
    sizes = sorted({frame.size for frame in value.frames})
    if not sizes:
        raise InputError("a video of 0 frames: pass at least 1")
    if len(sizes) > 1:
        (w, h), (other_w, other_h) = sizes[0], sizes[-1]
        raise InputError(f"frames of {len(sizes)} sizes, {w}x{h} to {other_w}x{other_h} pixels: resize all frames to one size")
    if not min(sizes[0]):
        raise InputError(f"frames of {sizes[0][0]}x{sizes[0][1]} pixels: pass frames of at least 1x1")
    if not 0 < value.fps < float("inf"):
        raise InputError(f"{value.fps} frames a second: pass a number above 0")


def evenly(count: int, limit: int) -> list[int]:
    """At most `limit` of `count` frames, the first and the last among them.

    example: 4 of 10    0 3 6 9
    """
    return np.linspace(0, count - 1, min(count, limit)).round().astype(int).tolist()


class Changes(nn.Module):
    """Pixels of each frame and of the one before -> a vector a patch: what moved, which no frame shows by itself (Simonyan and Zisserman, 2014,
    arXiv:1406.2199: one network for what is seen, one for how it moves). `channels` at a quarter of the size, twice as many with each halving."""

    def __init__(self, width: int, patch: int, channels: int):
        super().__init__()
        if patch < 4 or patch & (patch - 1) or channels < 8 or channels % 8:
            raise InputError(f"changes in {channels} channels, patches of {patch} pixels: use a multiple of 8, and a power of two of at least 4")
        layers: list[nn.Module] = [nn.Conv2d(6 * 16, channels, 3, padding=1), ResidualBlock(channels)]
        while (patch := patch // 2) >= 4:
            layers += [Downsample(channels, 2 * channels), ResidualBlock(2 * channels)]
            channels *= 2
        self.network = nn.Sequential(*layers, nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, width, 1))
        nn.init.zeros_(self.network[-1].weight)  # begins as if nothing moved
        nn.init.zeros_(self.network[-1].bias)

    def forward(self, frames_THW: Float[Tensor, "T 3 H W"], first_T: Bool[Tensor, "T"]) -> Float[Tensor, "T D h w"]:
        """Frames of one size, of many clips one after the other; nothing has changed yet in a clip's `first`."""
        changed = torch.where(first_T[:, None, None, None], 0, frames_THW - frames_THW.roll(1, 0))
        return self.network(fold(torch.cat([frames_THW, changed], 1), 4, 4))


class VideoEncoder(nn.Module):
    """Every frame through the image encoder, and a learned vector for its time; with `changes`, a network of so many channels for what moved.

    Of a longer video `max_frames` are read, evenly spread; each takes as many vectors as a picture of its size. An image encoder that
    pictures share is `shared`, not owned: its weights are saved and counted once, with theirs.
    """

    def __init__(self, image: PatchEncoder, max_frames: int = 16, shared: bool = False, changes: int = 0):
        super().__init__()
        if shared:
            object.__setattr__(self, "image", image)
        else:
            self.image = image
        self.max_frames, width = max_frames, image.places.tables[0].shape[1]
        self.time = nn.Embedding(max_frames, width)
        nn.init.normal_(self.time.weight, std=0.02)
        self.changes = Changes(width, image.patch, changes) if changes else None

    def prepare(self, value: Video, /) -> Prepared:
        check(value)
        stills = [self.image.prepare(value.frames[i]) for i in evenly(len(value.frames), self.max_frames)]
        return on_grid(torch.cat([still.values_NF for still in stills]), (len(stills), *stills[0].grid[1:]))

    def forward(self, prepared: Prepared, /) -> Float[Tensor, "N D"]:
        return self.timed(self.seen(prepared), prepared)

    def seen(self, prepared: Prepared) -> Float[Tensor, "N D"]:
        """Each frame as the image encoder sees it."""
        still_N3 = F.pad(prepared.place_N3[:, 1:], (1, 0))  # a picture's patches all stand at time 0
        stills = tuple((1, rows, columns) for frames, rows, columns in prepared.grids for _ in range(frames))
        return self.image(Prepared(prepared.values_NF, still_N3, stills))

    def timed(self, seen_ND: Float[Tensor, "N D"], prepared: Prepared) -> Float[Tensor, "N D"]:
        """What was seen, when it was seen, and what had changed."""
        found_ND = seen_ND + self.time(prepared.place_N3[:, 0])
        return found_ND if self.changes is None else found_ND + self.changed(prepared)

    def changed(self, prepared: Prepared) -> Float[Tensor, "N D"]:
        def moved(frames: Tensor, counts: list[int]) -> Tensor:
            first_T = torch.zeros(len(frames), dtype=torch.bool, device=frames.device)
            first_T[[sum(counts[:n]) for n in range(len(counts))]] = True
            return self.changes(frames, first_T)

        return together(prepared, self.image.patch, self.time.weight.dtype, moved)
