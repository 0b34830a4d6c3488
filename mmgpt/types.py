"""What flows through the library, with shapes: segments, samples, prepared values, written segments, the stream.

Shape letters, the same everywhere:
    B rows of a batch      T positions of a row     S positions in the cache    D width of the decoder
    N vectors or slots     F raw values of a vector V ids a head can choose     H heads, K key/value heads, E width of a head
    C channels, h and w rows and columns of a grid of codes or patches; 3 = (time, row, column)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL.Image import Image
from torch import Tensor

Grid = tuple[int, int, int]  # (frames, rows, columns) of a segment's vectors
VECTOR = -1  # stands where an encoder's vector goes instead of an id


@dataclass(frozen=True)
class Audio:
    """Sound: `samples` in [-1, 1], shape (channels, samples) or (samples,); `rate` in Hz."""

    samples: Float[Tensor, "*C N"]
    rate: int


@dataclass(frozen=True)
class Video:
    """Moving pictures: frames of one size, shown `fps` a second."""

    frames: tuple[Image, ...]
    fps: float


Segment = object  # str, PIL.Image.Image, Audio, Video, or what a port of one's own takes: `GPT.port_of` refuses the rest


@dataclass(frozen=True)
class Part:
    """One segment of a sample: `learn` marks what the model is to write, the rest is given to read.

    `codes` may carry the codec's codes of the value, (h, w), when they are known already.
    """

    value: Segment
    learn: bool = False
    codes: Int[np.ndarray, "*grid"] | None = None


Sample = list[Part]


@dataclass(frozen=True)
class Prepared:
    """Segments ready for their encoder: raw values of each vector and where the vector stands, (time, row, column).

    `Encoder.prepare` makes one segment of it, `join` the ragged batch that `Encoder.forward` takes; `grids` has an entry a segment.
    """

    values_NF: Float[Tensor, "N F"]
    place_N3: Int[Tensor, "N 3"]
    grids: tuple[Grid, ...]

    @property
    def grid(self) -> Grid:
        """The size of the one segment."""
        (grid,) = self.grids
        return grid

    def __len__(self) -> int:
        return len(self.values_NF)


def join(prepared: list[Prepared]) -> Prepared:
    """Many segments as one ragged batch."""
    values = torch.cat([p.values_NF for p in prepared])
    return Prepared(values, torch.cat([p.place_N3 for p in prepared]), tuple(grid for p in prepared for grid in p.grids))


@dataclass(frozen=True)
class Written:
    """One segment as it stands in the stream, slot by slot.

    example: a 1x2 picture that is written     begin code code end
    ids_N      the id of each slot, VECTOR where a vector goes
    choice_N   the slot was chosen by a head (the codes), not forced by the layout (begin, end)
    whole_N    the slot belongs to the one block that is read as a whole
    place_N3   (time, row, column) relative to where the segment begins
    span       how far the next segment's positions start behind this one's
    head       the head that learns the chosen slots; without, the one whose ids they are
    beside     how far before the segment its second axis begins, with the segment that it stands beside; part of place_N3
    """

    ids_N: Int[np.ndarray, "N"]
    choice_N: Bool[np.ndarray, "N"]
    whole_N: Bool[np.ndarray, "N"]
    place_N3: Int[np.ndarray, "N 3"]
    span: int
    learn: bool = False
    encoder: str = ""
    prepared: Prepared | None = None
    head: str = ""
    beside: int = 0

    def __len__(self) -> int:
        return len(self.ids_N)


def beside(written: Written, far: int) -> Written:
    """The segment with its second axis so far before it."""
    if far == written.beside:
        return written
    return replace(written, place_N3=written.place_N3 + np.array([0, written.beside - far, 0]), beside=far)


@dataclass(frozen=True)
class Input:
    """What one encoder has to embed, and the flat positions (row * T + column) its vectors go to."""

    encoder: str
    prepared: Prepared
    slot_N: Int[Tensor, "N"]


@dataclass(frozen=True)
class Target:
    """What one head has to predict: `id_N` from the vectors at the flat positions `slot_N`."""

    head: str
    slot_N: Int[Tensor, "N"]
    id_N: Int[Tensor, "N"]


@dataclass(frozen=True)
class Stream:
    """A batch: many documents in B rows of T positions, nothing padded but the tail of each row.

    document_BT is 0 where nothing stands; block_BT grows along a document, see `attention.may_read`.
    """

    ids_BT: Int[Tensor, "B T"]
    document_BT: Int[Tensor, "B T"]
    block_BT: Int[Tensor, "B T"]
    position_BT3: Int[Tensor, "B T 3"]
    inputs: tuple[Input, ...] = ()
    targets: tuple[Target, ...] = ()

    @property
    def fill(self) -> float:
        """Share of positions that hold something."""
        return float((self.document_BT > 0).float().mean())

    def to(self, device: torch.device | str) -> "Stream":
        def move(x):
            if isinstance(x, Tensor):
                return x.to(device, non_blocking=True)
            if isinstance(x, tuple) and x and not isinstance(x[0], int):
                return tuple(move(y) for y in x)
            if isinstance(x, (Input, Target, Prepared)):
                return type(x)(**{k: move(v) for k, v in vars(x).items()})
            return x

        return Stream(**{k: move(v) for k, v in vars(self).items()})


@dataclass(frozen=True)
class Usage:
    """How many positions a request took, by modality where that is known: read (prefill) and written."""

    read: Mapping[str, int] = field(default_factory=dict)
    written: Mapping[str, int] = field(default_factory=dict)
