"""emoji.parquet -> rows of (picture, name, tags, group, style), and which of them may be trained on."""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from mmgpt.errors import DataError

COLUMNS = ("image", "label", "tags", "group", "style", "skin", "split")
STYLES = ("fluent-3d", "twemoji", "fluent-flat", "emojione", "fxemoji")
ARTIST = {"fluent-3d": "fluent", "fluent-flat": "fluent"}  # the same drawings, shaded differently; every other style is its own artist

ONE_TONE = re.compile(r"[^:]+: (light|medium-light|medium|medium-dark|dark) skin tone")
COLOUR = "red|orange|yellow|green|blue|purple|brown|black|white|pink|grey"
TINT = re.compile(rf"(?<=: )(light|medium-light|medium|medium-dark|dark)(?= skin tone$)|\b({COLOUR})\b")
HELD_OUT_TONES = 16  # one of so many skin tone variants is never trained on
HELD_OUT_COLOURS = (
    # the thing stays in training in other colours; the red apple, the red heart and the purple circle are in the test split anyway
    "red apple", "blue book", "green circle", "purple circle", "small blue diamond",
    "orange heart", "red heart", "yellow heart", "brown square", "green square",
)  # fmt: skip

SEEN_EXCLUDED_GROUPS = ("flags", "component")  # poor subjects for drawing: near-identical rectangles and colour swatches
SEEN_EXCLUDED_WORDS = ("keycap", "button")


@dataclass(frozen=True)
class Emoji:
    """One picture of 64x64 pixels (`image`: the bytes of a WebP file) by one artist (`style`); `skin`: a skin tone variant."""

    image: bytes
    label: str
    tags: tuple[str, ...]
    group: str
    style: str
    skin: bool
    split: str


def load_emoji(path: str | Path) -> list[Emoji]:
    """All rows in file order; raises DataError where the file is missing, not parquet, or lacks a column."""
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    remedy = "give the path of an emoji.parquet"
    if not Path(path).is_file():
        raise DataError(f"no file {str(path)!r}: {remedy}")
    try:
        file = parquet.ParquetFile(path)
        missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
        if missing:
            raise DataError(f"{str(path)!r} lacks {len(missing)} of {len(COLUMNS)} columns ({', '.join(missing)}): {remedy}")
        rows = file.read(columns=list(COLUMNS)).to_pylist()
    except (ArrowException, OSError) as error:
        raise DataError(f"{str(path)!r} cannot be read as parquet ({str(error).splitlines()[0]}): {remedy}") from error
    return [_emoji(number, row) for number, row in enumerate(rows)]


def _emoji(number: int, row: dict) -> Emoji:
    if not (isinstance(row["image"], dict) and row["image"].get("bytes")) or not row["label"]:
        raise DataError(f"row {number} has no picture or no label: image must be {{bytes, path}} with bytes, label a text; rebuild the file")
    return Emoji(row["image"]["bytes"], row["label"], tuple(row["tags"] or ()), row["group"], row["style"], bool(row["skin"]), row["split"])


def picture(row: Emoji):
    """The row's picture, a PIL image in RGB; raises DataError where the bytes are no picture."""
    from io import BytesIO

    from PIL import Image

    try:
        return Image.open(BytesIO(row.image)).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        message = f"the {len(row.image)} bytes of {row.label!r}, {row.style} are no readable picture ({error}): rebuild the file"
        raise DataError(message) from error


def is_held_out(label: str) -> bool:
    """An unseen combination of the drawing test: a known thing in a colour or skin tone that is never trained on, in no style.

    "guard: dark skin tone"          True    one tone, and the hash picks it
    "guard: light skin tone"         False   one tone, not picked
    "kiss: man, man, dark skin tone" False   more than a thing and a tone
    "orange heart"                   True    one of the named colours
    """
    if ONE_TONE.fullmatch(label):
        return int(sha256(label.encode()).hexdigest(), 16) % HELD_OUT_TONES == 0
    return label in HELD_OUT_COLOURS


def training_rows(rows: Sequence[Emoji], leave_out: str | None = None) -> list[Emoji]:
    """What may be trained on: the train split without unseen combinations and without the artist of the style `leave_out`."""
    if leave_out and leave_out not in STYLES:
        raise DataError(f"leave_out={leave_out!r} is none of the {len(STYLES)} styles: use one of {', '.join(STYLES)}")
    left_out = ARTIST.get(leave_out, leave_out) if leave_out else None
    return [r for r in rows if r.split == "train" and not is_held_out(r.label) and ARTIST.get(r.style, r.style) != left_out]


def unseen_combinations(rows: Sequence[Emoji]) -> list[str]:
    """Held-out labels that have pictures and whose thing is known: "guard: dark skin tone" counts when another guard is trained on."""
    known = {row.label.split(":")[0] for row in training_rows(rows)}
    return sorted({r.label for r in rows if is_held_out(r.label) and (r.label in HELD_OUT_COLOURS or r.label.split(":")[0] in known)})


def untinted(label: str) -> str:
    """What all variants of a thing share: "small blue diamond" -> "small * diamond", "guard: dark skin tone" -> "guard: * skin tone"."""
    return TINT.sub("*", label)


def seen_concepts(rows: Sequence[Emoji], n: int = 300, seed: int = 0) -> list[str]:
    """`n` labels drawn at random among those that are trained on in at least two styles and make good subjects for drawing."""
    styles = defaultdict(set)
    for row in training_rows(rows):
        dull = row.group in SEEN_EXCLUDED_GROUPS or any(word in row.label for word in SEEN_EXCLUDED_WORDS)
        if not row.skin and not dull:
            styles[row.label].add(row.style)
    labels = sorted(label for label, where in styles.items() if len(where) >= 2)
    if len(labels) < n:
        raise DataError(f"{n} seen concepts asked for, {len(labels)} labels have pictures in two styles: ask for at most {len(labels)}")
    return random.Random(seed).sample(labels, n)


def drawing_prompt(label: str, style: str) -> str:
    return f"{label}, {style} style"
