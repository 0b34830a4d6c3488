"""A word of the command line -> a source: a folder of pictures, JSON lines, parquet, tar shards, a data set of the hub.

pictures/                  pictures with captions, as data/read.py reads them; or a folder of .parquet, .jsonl or .tar files
pages.jsonl  a-*.parquet   one file, or all that a pattern finds, as one source
hub:owner/name:train       the parquet files of a data set on the Hugging Face Hub, read by row group as they are needed
"""

import glob
import json
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from mmgpt.data.parquet import ParquetSource, hub_files
from mmgpt.data.read import captioned, existing, pictures_in
from mmgpt.data.row import Row, Source, Unreadable, stamp_of
from mmgpt.data.tars import TarSource
from mmgpt.errors import DataError, MmgptError

MAX_LINE = 2**24  # bytes of one line of JSON


def open_source(word: str, text: str = "") -> Source:
    """Opens what a word names. Headers and line ends are read, no sample. `text` names the column of words of parquet."""
    if word.startswith("hub:"):
        return ParquetSource(word, hub_files(word), text)
    path = Path(word)
    if path.is_dir() and (path / "metadata.jsonl").is_file():
        return LineSource(word, [path / "metadata.jsonl"])
    found = files_of(path) if path.is_dir() else [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(word, recursive=True))]
    if path.is_dir() and not found:
        return FolderSource(word, path)
    kinds = sorted({file.suffix.lower() for file in found})
    if len(kinds) != 1 or kinds[0] not in KINDS:
        asked = f"{word!r} names {len(found)} files" + (f" of the kinds {', '.join(kinds)}" if found else "")
        raise DataError(f"{asked}; name a folder, or files of one of the kinds {', '.join(KINDS)} (a .tar.gz must be unpacked to .tar)")
    try:
        return KINDS[kinds[0]](word, found, text)
    except OSError as error:
        raise DataError(f"{word!r} cannot be read: {error.strerror or 'broken file'}; check the path and its permissions") from error


def files_of(folder: Path) -> list[Path]:
    """The shards in a folder; those of two kinds are not one source, which `open_source` says."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in KINDS and not file.name.startswith("."))


class FolderSource:
    """Pictures with captions; a block is a picture."""

    def __init__(self, name: str, folder: Path):
        self.name, self.folder, self.files = name, folder, list(pictures_in(folder))
        self.size = self.num_blocks = len(self.files)
        if not self.files:
            raise DataError(f"{name!r} holds 0 pictures and 0 files of the kinds {', '.join(KINDS)}; put some into it")
        self.stamp = stamp_of([file.relative_to(folder) for file in self.files], [file.stat().st_size for file in self.files])

    def rows(self, block: int) -> Sequence:
        try:
            record = captioned(self.folder, self.files[block])
        except (MmgptError, OSError) as error:
            return Unreadable(1, str(error))
        return [Row({"image": {"path": str(record.picture)}, "text": record.text}, Path)]

    def where(self, block: int, index: int) -> tuple[str, int]:
        return str(self.files[block].relative_to(self.folder)), 0


class LineSource:
    """JSON lines: pairs, pages, chats or texts, see data/samples.py; a block is a line. In memory are 8 bytes a line: where it begins."""

    def __init__(self, name: str, files: list[Path], text: str = ""):
        self.name, self.files = name, files
        self.begins = [line_begins(file) for file in files]
        self.behind = list(accumulate(len(begins) - 1 for begins in self.begins))
        self.size = self.num_blocks = self.behind[-1]
        self.stamp = stamp_of(files, [int(begins[-1]) for begins in self.begins])
        if not self.size:
            raise DataError(f"{name!r} holds 0 lines in {len(files)} files; write one object a line")

    def place(self, block: int) -> tuple[int, int]:
        """(file, line) from 0."""
        file = bisect_right(self.behind, block)
        return file, block - (self.behind[file - 1] if file else 0)

    def rows(self, block: int) -> Sequence:
        file, line = self.place(block)
        begin, end = (int(at) for at in self.begins[file][line : line + 2])
        if end - begin > MAX_LINE:
            return Unreadable(1, f"a line of {end - begin} bytes, at most {MAX_LINE} are read; store the pictures beside the file")
        with open(self.files[file], "rb") as content:
            content.seek(begin)
            stored = content.read(end - begin)
        if not stored.strip():
            return []
        try:
            columns = json.loads(stored.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            return Unreadable(1, "not JSON; write one object a line, in UTF-8")
        if not isinstance(columns, dict):
            return Unreadable(1, f"a {type(columns).__name__}; write one object a line")
        if "file_name" in columns:  # as metadata.jsonl names its pictures
            columns["image"] = columns.pop("file_name")
        folder = self.files[file].parent
        return [Row(columns, lambda name: existing(folder / name, "this line"))]

    def where(self, block: int, index: int) -> tuple[str, int]:
        """The file, and the number of the line from 1, as editors count."""
        file, line = self.place(block)
        return self.files[file].name, line + 1


def line_begins(file: Path) -> np.ndarray:
    """Where each line begins, and at last where the file ends."""
    found, at = [np.zeros(1, np.int64)], 0
    with open(file, "rb") as content:
        while piece := content.read(2**24):
            found.append(np.flatnonzero(np.frombuffer(piece, np.uint8) == 10) + at + 1)
            at += len(piece)
    begins = np.concatenate(found)
    return begins if begins[-1] == at else np.append(begins, at)


def parquet_source(name: str, files: list[Path], text: str = "") -> Source:
    return ParquetSource(name, [str(file) for file in files], text)


KINDS = {".parquet": parquet_source, ".jsonl": LineSource, ".tar": TarSource}
