"""What a source hands out: one stored record, not yet opened, and what every source can do."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol, runtime_checkable

from mmgpt.errors import DataError


@dataclass(frozen=True)
class Row:
    """One record as it is stored: its columns, and `find`, which turns a name in them into bytes or the path of a file."""

    columns: Mapping[str, object]
    find: Callable[[str], bytes | Path]


@runtime_checkable
class Source(Protocol):
    """Samples in blocks; a block is what is read at once: a line, a picture, a row group of parquet, a tar.

    `size` is the number of samples, `stamp` says which files these are. `rows(block)` is a sequence that raises a `MmgptError` at
    a sample that is broken, and only there. `where` names a sample for people: its shard, and its index in that.
    """

    name: str
    size: int
    num_blocks: int
    stamp: str

    def rows(self, block: int, /) -> Sequence: ...  # of Row
    def where(self, block: int, index: int, /) -> tuple[str, int]: ...


def no_names(name: str) -> bytes | Path:
    """`find` where a row holds all that belongs to it."""
    raise DataError(f"{name[:80]!r} is the name of a file, and this row can hold none: store the bytes in it")


class Unreadable(Sequence):
    """Rows of which only the number is known: each is a bad sample."""

    def __init__(self, count: int, reason: str):
        self.count, self.reason = count, reason

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Row:
        raise DataError(self.reason)


def stamp_of(files: Sequence[str | Path], sizes: Sequence[int]) -> str:
    """Which files these are, by name and size, as a short word."""
    return sha256(json.dumps([[Path(file).name, int(size)] for file, size in zip(files, sizes, strict=True)]).encode()).hexdigest()[:16]
