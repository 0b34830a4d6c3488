"""A stored row -> a sample: a caption pair, an interleaved page, a chat or a text. This file defines what lines may hold.

    {"image": "cat.png", "text": "a cat"}                                 a pair: the picture is captioned, or drawn (`Form.draws`)
    {"text": "words"}                                                     a text, learned as a whole
    {"parts": [{"text": "a cat:"}, {"image": "cat.png", "learn": true}]}  a page; text is learned unless `learn` says no, the rest if it says so
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"image": "cat.png"}, {"text": "a cat"}]}]}
                                                                          a chat: what the assistant says is learned, nothing else

`parts` and `messages` may be columns of parquet too, or the .json of a sample in a tar; an `image` there is a member of the sample.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mmgpt.data.chance import share
from mmgpt.data.moving import open_video
from mmgpt.data.pictures import open_picture
from mmgpt.data.read import TEXT_COLUMNS, checked_text
from mmgpt.data.row import Row
from mmgpt.data.sound import open_sound
from mmgpt.errors import DataError
from mmgpt.generate.guidance import without_condition
from mmgpt.types import Part, Sample, Segment

MAX_PARTS = 1000  # segments of one page or chat


@dataclass(frozen=True)
class Kind:
    """How a cell becomes a segment: `file` where it holds a name or bytes; `learn` where a page learns it without saying so."""

    open: Callable[..., Segment]
    file: bool = True
    learn: bool = False


KINDS = {
    "text": Kind(lambda words: checked_text(words, "a part"), False, True),
    "image": Kind(open_picture),
    "audio": Kind(open_sound),
    "video": Kind(open_video),
}


@dataclass(frozen=True)
class Form:
    """How pairs become samples: `draws` is the share that is drawn, `drop` that of drawings without their words (for guidance)."""

    question: str = "caption:"
    draws: float = 0.0
    drop: float = 0.1
    text: str = ""  # the column of words; text, caption or label where it is empty

    def __post_init__(self):
        if not (0 <= self.draws <= 1 and 0 <= self.drop <= 1):
            raise DataError(f"draws={self.draws}, drop={self.drop}: use shares from 0 to 1")


def sample_of(row: Row, form: Form, *key: int | str) -> Sample:
    """The sample of a row. What is left to chance is a function of the key. Raises a `MmgptError` where the row cannot be used."""
    columns = row.columns
    if columns.get("parts") is not None:
        return page(listed(columns["parts"], "parts"), row)
    if columns.get("messages") is not None:
        return chat(listed(columns["messages"], "messages"), row)
    names = [form.text] if form.text else [name for name in TEXT_COLUMNS if columns.get(name) is not None]
    if not names or columns.get(names[0]) is None:
        raise DataError(f"no text in columns {', '.join(columns) or 'none'}: name one text, or say which it is with text=")
    words = checked_text(columns[names[0]], f"column {names[0]!r}")
    found = next(((kind, columns[name]) for name, kind in KINDS.items() if kind.file and columns.get(name) is not None), None)
    return [Part(words, learn=True)] if found is None else pair(opened(*found, row), words, form, *key)


def pair(value: Segment, words: str, form: Form, *key: int | str) -> Sample:
    """Either the question and the answer about the value, or the words and the value to be made of them."""
    if share(*key, "draws") >= form.draws:
        return [Part(value), Part(form.question), Part(words, learn=True)]
    drawn = [Part(words), Part(value, learn=True)]
    return without_condition(drawn) if share(*key, "drop") < form.drop else drawn


def page(parts: list, row: Row) -> Sample:
    return [part_of(part, row) for part in parts]


def chat(messages: list, row: Row) -> Sample:
    """The contents in order, without the roles: the models here tell turns by the ends of texts."""
    sample: Sample = []
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or message.get("content") is None:
            raise DataError("a message without role or content: write {'role': 'user', 'content': 'words'}")
        content = message["content"]
        parts = [{"text": content}] if isinstance(content, str) else listed(content, "content")
        sample += [part_of(part, row, message["role"] == "assistant") for part in parts]
    return sample


def part_of(part: object, row: Row, learn: bool | None = None) -> Part:
    """One part: {"text": "words"} or {"image": name or bytes}, with `learn` where the row itself may say."""
    if not isinstance(part, Mapping):
        raise DataError(f"a part is a {type(part).__name__}: write one such as {{'text': 'words'}}")
    names = [name for name in KINDS if part.get(name) is not None]
    if len(names) != 1:
        raise DataError(f"a part with {len(names)} of {', '.join(KINDS)}: give exactly one")
    kind, asked = KINDS[names[0]], part.get("learn")
    if not isinstance(asked, bool | None):
        raise DataError(f"learn is a {type(asked).__name__}: write true or false")
    if learn is None:
        learn = kind.learn if asked is None else asked
    return Part(opened(kind, part[names[0]], row), learn)


def opened(kind: Kind, stored: object, row: Row) -> Segment:
    """The segment of a cell. Files are bytes, a name, or {"bytes": ..., "path": ...} as Hugging Face writes it."""
    if not kind.file:
        return kind.open(stored)
    if isinstance(stored, Mapping):
        stored = stored["bytes"] if isinstance(stored.get("bytes"), bytes) else stored.get("path")
    if isinstance(stored, str):
        stored = row.find(stored)
    if stored is None:
        raise DataError("a cell holds neither bytes nor a name: store one of them")
    return kind.open(stored)


def listed(value: object, name: str) -> list:
    """A list of a row, or the JSON of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise DataError(f"{name} is not JSON: write a list") from None
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_PARTS:
        found = f"{len(value)} entries" if isinstance(value, list) else f"a {type(value).__name__}"
        raise DataError(f"{name} holds {found}: write a list of 1 to {MAX_PARTS}")
    return value
