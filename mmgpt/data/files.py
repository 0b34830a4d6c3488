"""A file of any modality -> its value, by the suffix; a value -> a file. Where a suffix lies, the opener of its modality finds out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from mmgpt.data.moving import open_video, save_video
from mmgpt.data.pictures import open_picture, save_picture
from mmgpt.data.sound import open_sound, save_sound
from mmgpt.errors import InputError
from mmgpt.types import Audio, Segment, Video


@dataclass(frozen=True)
class Files:
    """The files of one modality. With the first suffix its values are saved where nobody says."""

    kind: type
    suffixes: tuple[str, ...]
    open: Callable[[str | Path], Segment]
    save: Callable[[Segment, str | Path], Path]


FILES = (
    Files(Image, (".png", ".jpg", ".jpeg", ".webp"), open_picture, save_picture),
    Files(Audio, (".wav", ".flac", ".mp3", ".ogg"), open_sound, save_sound),
    Files(Video, (".gif", ".mp4", ".webm", ".mov"), open_video, save_video),
)


def suffix_of(value: Segment | Path) -> str:
    """A path's suffix, if files of it can be opened; the suffix that a value is saved with; "" for a text and for other files."""
    for files in FILES:
        if isinstance(value, files.kind):
            return files.suffixes[0]
        if isinstance(value, Path) and value.suffix.lower() in files.suffixes:
            return value.suffix
    return ""


def open_file(path: str | Path) -> Segment:
    for files in FILES:
        if Path(path).suffix.lower() in files.suffixes:
            return files.open(path)
    known = ", ".join(suffix for files in FILES for suffix in files.suffixes)
    raise InputError(f"{str(path)!r} has the unknown suffix {Path(path).suffix!r}; known are {known}")


def save_file(value: Segment, path: str | Path) -> Path:
    for files in FILES:
        if isinstance(value, files.kind):
            return files.save(value, path)
    raise InputError(f"a {type(value).__name__} is saved in no file: {', '.join(files.kind.__name__ for files in FILES)} are")
