"""Parquet files, here or on the hub -> rows, one row group at a time."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from mmgpt.data.read import TEXT_COLUMNS, class_names, existing
from mmgpt.data.row import Row, Unreadable, no_names, stamp_of
from mmgpt.errors import DataError

USED = ("image", "audio", "parts", "messages", *TEXT_COLUMNS)  # columns that are read; the others are left in the file


class ParquetSource:
    """A block is a row group: what parquet reads at once. Files of the hub are read by range, only the groups that are asked for.

    Make groups of 100 to 1,000 rows where they hold pictures: each lane holds `window` of them.
    """

    def __init__(self, name: str, files: Sequence[str], text: str = ""):
        self.name, self.files, self.text = name, list(files), text
        self.groups: list[int] = []  # rows of each group
        firsts, sizes = [], []
        for file in self.files:
            content = self.open(file)
            meta = content.metadata
            if not {*USED, text} & set(content.schema_arrow.names):
                asked = f"{file!r} has columns {', '.join(content.schema_arrow.names) or 'none'}"
                raise DataError(f"{asked}, none of {', '.join(USED)}; name the column of words with text=")
            firsts.append(meta.num_row_groups)
            self.groups += [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
            sizes.append(meta.num_rows)
            content.close(force=True)
        self.behind = list(accumulate(firsts))
        self.num_blocks, self.size = len(self.groups), sum(sizes)
        if not self.size:
            raise DataError(f"{name!r} holds 0 rows in {len(self.files)} files; at least 1 is needed")
        self.stamp = stamp_of(self.files, sizes)

    def open(self, file: str):
        """The file by its footer; `hf://` through fsspec, which huggingface_hub gives that name."""
        import pyarrow
        import pyarrow.parquet

        try:
            if "://" in file:
                import fsspec

                return pyarrow.parquet.ParquetFile(fsspec.open(file, "rb").open())
            return pyarrow.parquet.ParquetFile(file)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{file!r} cannot be read as Parquet; write or download the file again") from error

    def place(self, block: int) -> tuple[int, int]:
        """(file, group) from 0."""
        file = bisect_right(self.behind, block)
        return file, block - (self.behind[file - 1] if file else 0)

    def rows(self, block: int) -> Sequence:
        import pyarrow

        file, group = self.place(block)
        try:
            content = self.open(self.files[file])
            columns = [name for name in content.schema_arrow.names if name in USED or name == self.text]
            table = content.read_row_group(group, columns=columns, use_threads=False)
            content.close(force=True)
        except (pyarrow.ArrowException, OSError, DataError) as error:
            return Unreadable(self.groups[block], f"row group {group} cannot be read ({type(error).__name__}); write or download the file again")
        return TableRows(table, Path(self.files[file]).parent if "://" not in self.files[file] else None)

    def where(self, block: int, index: int) -> tuple[str, int]:
        """The file, and the row in it from 0."""
        file, group = self.place(block)
        before = sum(self.groups[block - group : block])
        return Path(self.files[file]).name, before + index


class TableRows(Sequence):
    """Rows of an Arrow table, made one at a time: pictures stay encoded where they are."""

    def __init__(self, table, folder: Path | None):
        self.table, self.folder = table, folder
        self.names = {name: class_names(table.schema.metadata, name) for name in table.column_names}

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: int) -> Row:
        (row,) = self.table.slice(index, 1).to_pylist()
        for name, names in self.names.items():  # a ClassLabel
            if isinstance(row[name], int) and 0 <= row[name] < len(names):
                row[name] = names[row[name]]
        folder = self.folder
        return Row(row, no_names if folder is None else lambda name: existing(folder / name, "this row"))


def hub_files(word: str) -> list[str]:
    """`hub:owner/name` or `hub:owner/name:split` -> the addresses of its parquet files, as `datasets` finds them."""
    import datasets

    _, name, *rest = word.split(":")
    split = rest[0] if rest else "train"
    try:
        found = datasets.load_dataset_builder(name).config.data_files or {}
    except Exception as error:  # offline, unknown, gated: whatever the hub says
        raise DataError(f"{word!r} cannot be opened ({type(error).__name__}); check the name and the network") from error
    files = [str(file) for file in found.get(split, [])]
    if not files or not all(file.endswith(".parquet") for file in files):
        asked = f"{word!r} has {len(files)} files in {split!r} (splits: {', '.join(map(str, found)) or 'none'})"
        raise DataError(f"{asked}; parquet is read: name another split, or download it and name the folder")
    return files
