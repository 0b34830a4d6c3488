"""Frames -> one vector a patch of every frame: the image encoder plus time; clips of any length and size at once, nothing padded."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmgpt.encoders.image import PatchEncoder
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


class VideoEncoder(nn.Module):
    """Every frame through the image encoder, and a learned vector for its time.

    Of a longer video `max_frames` are read, evenly spread; each takes as many vectors as a picture of its size. An image encoder that
    pictures share is `shared`, not owned: its weights are saved and counted once, with theirs.
    """

    def __init__(self, image: PatchEncoder, max_frames: int = 16, shared: bool = False):
        super().__init__()
        if shared:
            object.__setattr__(self, "image", image)
        else:
            self.image = image
        self.max_frames = max_frames
        self.time = nn.Embedding(max_frames, image.places.tables[0].shape[1])
        nn.init.normal_(self.time.weight, std=0.02)

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
        return seen_ND + self.time(prepared.place_N3[:, 0])
