"""A folder of pictures with captions, a .jsonl or a .parquet file -> a list of records: picture, text, other fields.

Parquet is read with pyarrow, on which Hugging Face `datasets` rests too: the same files, no second copy in a cache, no network.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from mmgpt.errors import DataError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
TEXT_COLUMNS = ("text", "caption", "label")


@dataclass(frozen=True)
class Record:
    """One picture, encoded (the bytes or the path of a file), the text that goes with it, and all other columns."""

    picture: bytes | Path
    text: str
    fields: Mapping[str, object] = field(default_factory=dict)


def read_records(source: str | Path, text: str | None = None, limit: int | None = None) -> list[Record]:
    """The records of `source`, at most `limit` of them. `text` names the text column where it is not text, caption or label.

    folder    `metadata.jsonl` (file_name, text) if there is one; else every picture in it and below it, in order of path, with the
              text of `name.txt` beside `name.png`, or the name of its sub-folder, or of the file (red_apple.png -> "red apple")
    .jsonl    one object a line: `image` (a path relative to the file) and the text
    .parquet  columns `image` ({bytes, path} as Hugging Face writes it) and the text; numbers of a ClassLabel become their names
    """
    source = Path(source)
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}, at least 1 record must be read; leave limit out to read all")
    try:
        records = list(islice(records_of(source, text), limit))
    except OSError as error:
        raise DataError(f"{str(source)!r} cannot be read: {error.strerror or 'broken file'}; check the path and its permissions") from error
    if not records:
        raise DataError(f"{str(source)!r} holds 0 records, at least 1 is needed; put pictures ({', '.join(PICTURES)}) or rows into it")
    return records


def records_of(source: Path, text: str | None) -> Iterator[Record]:
    if source.is_dir():
        metadata = source / "metadata.jsonl"
        return read_jsonl(metadata, "file_name", text) if metadata.is_file() else read_folder(source)
    if not source.is_file():
        raise DataError(f"{str(source)!r} does not exist; give a folder of pictures, a .jsonl or a .parquet file")
    if source.suffix.lower() == ".jsonl":
        return read_jsonl(source, "image", text)
    if source.suffix.lower() == ".parquet":
        return read_parquet(source, text)
    raise DataError(f"{str(source)!r} has the suffix {source.suffix!r}; give a folder of pictures, a .jsonl or a .parquet file")


def read_folder(folder: Path) -> Iterator[Record]:
    return (captioned(folder, path) for path in pictures_in(folder))


def pictures_in(folder: Path) -> Iterator[Path]:
    """Every picture in the folder and below it, in order of path; nothing hidden."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in PICTURES and not hidden and path.is_file():
            yield path


def captioned(folder: Path, path: Path) -> Record:
    """A picture of the folder with its words: of the text file beside it, or the name of its sub-folder, or its own."""
    caption = path.with_suffix(".txt")
    if caption.is_file():
        try:
            words = caption.read_text(encoding="utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise DataError(f"{str(caption)!r}: byte {error.start} is not UTF-8; save the caption as UTF-8") from error
    else:
        caption, words = path, (path.stem if path.parent == folder else path.parent.name).replace("_", " ")
    return Record(path, checked_text(words, repr(str(caption))))


def read_jsonl(path: Path, picture_column: str, text: str | None) -> Iterator[Record]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{str(path)!r} line {number}"
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{place} is not JSON; write one object a line, in UTF-8") from error
            if not isinstance(row, dict):
                raise DataError(f"{place} holds a {type(row).__name__}; write one object a line, such as {{{picture_column!r}: …, 'text': …}}")
            text_column = choose_columns(list(row), picture_column, text, place)
            name = row[picture_column]
            if not isinstance(name, str):
                raise DataError(f"{place}: {picture_column!r} is a {type(name).__name__}; write the path of the picture, relative to the file")
            yield record(row, picture_column, text_column, existing(path.parent / name, place), place)


def read_parquet(path: Path, text: str | None) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    place, number = repr(str(path)), 0
    with open(path, "rb") as content:
        try:
            file = pyarrow.parquet.ParquetFile(content)
            text_column = choose_columns(file.schema_arrow.names, "image", text, place)
            names = dict(enumerate(class_names(file.schema_arrow.metadata, text_column)))
            for batch in file.iter_batches(256):
                for row in batch.to_pylist():
                    number += 1
                    place = f"{str(path)!r} row {number}"
                    if isinstance(row[text_column], int):
                        row[text_column] = names.get(row[text_column], row[text_column])
                    yield record(row, "image", text_column, encoded(row["image"], path.parent, place), place)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{place} cannot be read as Parquet; write or download the file again") from error


def choose_columns(columns: list[str], picture_column: str, text: str | None, place: str) -> str:
    """The text column; raises if it or the column of pictures is missing."""
    found = [name for name in ((text,) if text else TEXT_COLUMNS) if name in columns]
    if picture_column in columns and found:
        return found[0]
    wanted = picture_column if picture_column not in columns else (text or " or ".join(TEXT_COLUMNS))
    raise DataError(f"{place} has no column {wanted}, only {', '.join(columns) or 'none'}; rename one, or name the text column with text=")


def class_names(metadata: Mapping[bytes, bytes] | None, column: str) -> list[str]:
    """The names of a Hugging Face ClassLabel column, from the file's own metadata."""
    try:
        return json.loads((metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return []


def encoded(picture: object, folder: Path, place: str) -> bytes | Path:
    """The `image` cell of a Parquet row: bare bytes, or bytes and path of which one may be missing."""
    content, name = (picture.get("bytes"), picture.get("path")) if isinstance(picture, dict) else (picture, None)
    if isinstance(content, bytes):
        return content
    if isinstance(name, str):
        return existing(folder / name, place)
    raise DataError(f"{place}: 'image' holds neither bytes nor a path; write it with the Image feature of datasets")


def existing(path: Path, place: str) -> Path:
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):
        pass  # a name too long or with a NUL in it
    raise DataError(f"{place}: the picture {str(path)[:300]!r} does not exist; paths are relative to the file that names them")


def record(row: dict, picture_column: str, text_column: str, picture: bytes | Path, place: str) -> Record:
    fields = {name: value for name, value in row.items() if name not in (picture_column, text_column)}
    return Record(picture, checked_text(row[text_column], f"{place} column {text_column!r}"), fields)


def checked_text(words: object, place: str) -> str:
    """Text that can be learned from: a string, not blank, valid Unicode."""
    if not isinstance(words, str):
        raise DataError(f"{place} holds a {type(words).__name__}, not text; name the text column with text=")
    if not words.strip():
        raise DataError(f"{place}: the text is empty; write a text or remove the picture")
    try:
        words.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: character {error.start} is half a surrogate pair; write the text as UTF-8") from error
    return words
