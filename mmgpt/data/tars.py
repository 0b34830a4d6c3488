"""WebDataset shards, `.tar` -> rows. Nothing is unpacked: names stay keys, and the bytes of a member are read where they lie.

A sample is what follows each other with the same name up to the first dot of its last part:
    cat.png cat.txt dog.png dog.txt     two rows, each {"image": ..., "text": ...}; `cat.json` gives further columns
"""

import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

from mmgpt.data.read import PICTURES, checked_text
from mmgpt.data.row import Row, stamp_of
from mmgpt.errors import DataError

MAX_MEMBER = 25 * 2**20  # bytes of one member
MAX_MEMBERS = 1000  # of one sample
MAX_HEADER = 2**20  # bytes of a long name or of extended headers
SUFFIXES = {**dict.fromkeys((kind[1:] for kind in PICTURES), "image"), "wav": "audio"}
WORDS = ("txt", "text", "caption")

Member = tuple[str, int, int]  # what stands behind the first dot, where its bytes begin, how many they are


class TarSource:
    """A block is a shard: its headers are read when it is opened, about a kilobyte a sample; where samples lie is all that is held.

    `size` counts the first shard and takes the others to be alike: it only weighs sources against each other.
    """

    def __init__(self, name: str, files: list[Path], text: str = ""):
        self.name, self.files, self.num_blocks = name, files, len(files)
        sizes = [file.stat().st_size for file in files]
        self.stamp = stamp_of(files, sizes)
        self.size = max(1, round(len(index_of(files[0])) * sum(sizes) / max(1, sizes[0])))

    def rows(self, block: int) -> Sequence:
        return TarRows(self.files[block], index_of(self.files[block]))

    def where(self, block: int, index: int) -> tuple[str, int]:
        """The shard, and the number of the sample in it from 0."""
        return self.files[block].name, index


class Bounded:
    """A file of which no more than a header is read at once: tarfile itself would read one of any length."""

    def __init__(self, file):
        self.file, self.seek, self.tell, self.name, self.mode = file, file.seek, file.tell, file.name, "rb"

    def read(self, count: int) -> bytes:
        if not 0 <= count <= MAX_HEADER:
            raise DataError(f"a header of {count} bytes, at most {MAX_HEADER} are read: this tar was not made by an ordinary program")
        return self.file.read(count)


def index_of(path: Path) -> list[list[Member] | str]:
    """The members of each sample, or why the shard cannot be read from there on."""
    samples: list[list[Member] | str] = []
    last = None
    length = path.stat().st_size
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=Bounded(file), mode="r:") as tar:
            for member in tar:
                tar.members = []  # tarfile would keep them all
                if not member.isreg() or member.issparse():
                    continue  # folders; links and devices, which a shard has no use for
                folder, _, name = member.name.rpartition("/")
                key, _, kind = name.partition(".")
                if (folder, key) != last:
                    samples.append([])
                    last = (folder, key)
                samples[-1].append((kind.lower(), member.offset_data, member.size))
                if member.offset_data + member.size > length:
                    return samples  # cut short in the midst of this member: reading it says so
            file.seek(tar.offset)
            if file.read(512).strip(b"\0"):  # tarfile takes any broken header for the end
                samples.append("the shard is broken from here on (no header); write or download it again")
    except (tarfile.TarError, DataError, ValueError, EOFError) as error:
        samples.append(f"the shard is broken from here on ({type(error).__name__}); write or download it again")
    return samples


class TarRows(Sequence):
    """The samples of one shard, read one at a time."""

    def __init__(self, path: Path, samples: list[list[Member] | str]):
        self.path, self.samples = path, samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Row:
        members = self.samples[index]
        if isinstance(members, str):
            raise DataError(members)
        if len(members) > MAX_MEMBERS:
            raise DataError(f"{len(members)} members, at most {MAX_MEMBERS} belong to a sample; give each sample a name of its own")
        with open(self.path, "rb") as file:
            stored = {kind: member_bytes(file.fileno(), kind, begin, size) for kind, begin, size in members}
        if len(stored) != len(members):
            raise DataError(f"{len(members)} members with {len(stored)} kinds; give each sample a name of its own")

        def find(name: str) -> bytes:
            if name.lower() not in stored:
                raise DataError(f"no member {name[:80]!r}, only {', '.join(stored)}; name what stands behind the first dot")
            return stored[name.lower()]

        return Row(columns_of(stored), find)


def columns_of(stored: dict[str, bytes]) -> dict[str, object]:
    """Members by their last suffix: pictures and sounds, words, and the columns of a .json."""
    columns: dict[str, object] = {}
    if "json" in stored:
        try:
            columns = json.loads(stored["json"].decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise DataError("the .json is no JSON; write an object in UTF-8") from error
        if not isinstance(columns, dict):
            raise DataError(f"the .json holds a {type(columns).__name__}; write an object")
    for kind, content in stored.items():
        suffix = kind.rpartition(".")[2]
        if suffix in SUFFIXES:
            columns.setdefault(SUFFIXES[suffix], content)
        elif suffix in WORDS:
            try:
                columns["text"] = checked_text(content.decode("utf-8-sig").strip(), f"the .{kind}")
            except UnicodeDecodeError as error:
                raise DataError(f"the .{kind}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    return columns


def member_bytes(file: int, kind: str, begin: int, size: int) -> bytes:
    if size > MAX_MEMBER:
        raise DataError(f"the .{kind} has {size} bytes, at most {MAX_MEMBER} are read; make it smaller")
    content = os.pread(file, size, begin)
    if len(content) != size:
        raise DataError(f"the .{kind} has {len(content)} of {size} bytes: the shard is cut short; write or download it again")
    return content
