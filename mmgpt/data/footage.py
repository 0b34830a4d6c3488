"""Parquet of clips (tools/build_clips.py) -> rows of (video, words, motion)."""

from dataclasses import dataclass, field
from pathlib import Path

from mmgpt.data.moving import open_video
from mmgpt.errors import DataError
from mmgpt.types import Video

COLUMNS = ("video", "text", "things", "motion", "style", "split")


@dataclass(frozen=True)
class Clip:
    """One clip: the bytes of an animation, its words, the things in it and how they move, and who drew them."""

    stored: bytes = field(repr=False)
    text: str
    things: tuple[str, ...]
    motion: str
    style: str
    split: str

    @property
    def video(self) -> Video:
        return open_video(self.stored)


def load_clips(path: str | Path) -> list[Clip]:
    """All rows of the file, in its order."""
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    remedy = "give a file that tools/build_clips.py makes"
    if not Path(path).is_file():
        raise DataError(f"no file {str(path)!r}: {remedy}")
    try:
        rows = parquet.read_table(path, columns=list(COLUMNS)).to_pylist()
    except (ArrowException, OSError, KeyError) as error:
        raise DataError(f"{str(path)!r} cannot be read ({str(error).splitlines()[0]}): {remedy}") from error
    return [Clip(row["video"]["bytes"], row["text"], tuple(row["things"]), row["motion"], row["style"], row["split"]) for row in rows]
