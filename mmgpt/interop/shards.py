"""A folder of safetensors files -> where each tensor lies -> the tensor: the file's own memory, or read straight to where it belongs.

The format is that of `mmgpt/tensorfile.py`. Tensors that are used as they lie
are mapped, without a copy; neighbours that are one matrix here (gate, up) as one. The rest (q, k, v: others lie between them) is read to
its place. Its own library would map those too, so that what is joined on the way were held twice.
"""

import json
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mmgpt.errors import CheckpointError
from mmgpt.tensorfile import AGAIN, extents, header_length

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: `bytes` bytes at `offset` of `file`."""

    file: Path
    offset: int
    bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self, target: Tensor) -> None:
        """The tensor, into a contiguous one of the same shape; through a buffer where type or device differ."""
        direct = target.dtype == self.dtype and target.device.type == "cpu" and target.is_contiguous()
        buffer = target if direct else torch.empty(self.shape, dtype=self.dtype)
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            found = file.readinto(memoryview(buffer.detach().reshape(-1).view(torch.uint8).numpy())) if self.bytes else 0
        if found != self.bytes:
            raise CheckpointError(f"{self.file} ended after {found} of {self.bytes} bytes of a tensor: {AGAIN}")
        if not direct:
            target.copy_(buffer)


def joined(parts: Sequence[Place]) -> Place | None:
    """Tensors that follow each other in one file, as one tensor with the rows of all; None where they do not."""
    first, rows = parts[0], sum(part.shape[0] for part in parts if part.shape)
    for before, part in zip(parts, parts[1:], strict=False):
        if (part.file, part.offset, part.dtype) != (first.file, before.offset + before.bytes, first.dtype):
            return None
    return first if len(parts) == 1 else replace(first, bytes=sum(part.bytes for part in parts), shape=(rows, *first.shape[1:]))


def view(place: Place, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """The tensor where it lies, in memory that is shared with the file cache until it is written to: such a page is copied first, and no file
    ever changes. None where another type or device is asked for, or its bytes lie askew.

    A mapping of its own for each tensor: the system fetches pages around the one that is touched, and those of others would count as well.
    Whoever replaces a file while a model lies in it must rename a new one over it, as `export` does: what is cut short in place is lost.
    """
    if place.dtype != dtype or device.type != "cpu" or place.offset % dtype.itemsize or not place.bytes:
        return None
    before = place.offset % mmap.ALLOCATIONGRANULARITY  # a mapping begins at a page
    with open(place.file, "rb") as file:
        pages = mmap.mmap(file.fileno(), place.bytes + before, access=mmap.ACCESS_COPY, offset=place.offset - before)
    return torch.frombuffer(pages, dtype=dtype, count=math.prod(place.shape), offset=before).view(place.shape)


def places(folder: Path) -> dict[str, Place]:
    """Every tensor of a folder. All headers and file sizes are checked; no tensor is read."""
    found: dict[str, Place] = {}
    for file in files(folder):
        for name, place in header(file).items():
            if name in found:
                raise CheckpointError(f"{folder}: tensor {name} is in {found[name].file.name} and in {file.name}: {AGAIN}")
            found[name] = place
    return found


def files(folder: Path) -> list[Path]:
    """The shards: those that the index names, else all. Pickles are refused."""
    if (folder / INDEX).is_file():
        try:
            named = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
            good = all(Path(name).name == name and name.endswith(".safetensors") for name in named)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            named, good = [], False
        if not good:
            raise CheckpointError(f"{folder / INDEX} is damaged: {AGAIN}")
        missing = [name for name in named if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{folder / missing[0]} is missing, {len(missing)} of {len(named)} shards in all: {AGAIN}")
        return [folder / name for name in named]
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        pickles = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(kind))
        raise CheckpointError(
            f"{folder} holds 0 safetensors files{f' but the pickle {pickles[0]}, which can run code and is never opened' if pickles else ''}: "
            "pass a folder with *.safetensors"
        )
    return shards


def header(file: Path) -> dict[str, Place]:
    size = file.stat().st_size
    with open(file, "rb") as opened:
        data = opened.read(header_length(opened.read(8), size, str(file)))
    return {name: Place(file, e.offset, e.bytes, e.dtype, e.shape) for name, e in extents(data, size, str(file)).items()}
