"""What a person says, turn by turn -> what the model answers; what was said and written stays read."""

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL.Image import Image, Resampling

from mmgpt.data.files import open_file, save_file, suffix_of
from mmgpt.errors import InputError
from mmgpt.generate.engine import Engine
from mmgpt.generate.request import Delta, Done, Ended, Event, Request
from mmgpt.types import Part, Segment

ORDERS = {"/draw": "image", "/speak": "audio", "/animate": "video", "/any": "any"}  # what is written, where it is not words
TURNS = 8  # of models that do not say how many they have learned to look back on
HELP = """  words, or the names of files, or both     the model answers in words
  /draw WORDS     it draws        /speak WORDS    it says them
  /animate WORDS  it animates     /any WORDS      it writes words, pictures, ... as it likes
  /new            it forgets      /quit           the end"""


class Conversation:
    """Turns of a conversation with a model. It looks back on the last `turns` of them, as far as they fit.

    chat = Conversation(gpt)
    chat.say(picture, "what is this?") -> str      chat.say("a red one", to="image") -> PIL.Image.Image
    """

    def __init__(self, gpt, turns: int | None = None, seed: int = 0):
        self.gpt, self.seed, self.past = gpt, seed, []
        self.turns = turns if turns is not None else getattr(getattr(gpt, "config", None), "turns", TURNS)
        self.engine = Engine(gpt, keep=4 * gpt.max_length)

    def say(self, *parts: Segment | Part, to: str | tuple[str, ...] = "text", **settings) -> Segment:
        """One turn: what is said, what is answered. Settings: see `Request`."""
        return [event.result.value for event in self.stream(*parts, to=to, **settings) if isinstance(event, Done)][0]

    def stream(self, *parts: Segment | Part, to: str | tuple[str, ...] = "text", **settings) -> Iterator[Event]:
        """The same as it is written. A turn that is not listened to until its end is forgotten."""
        said = [part if isinstance(part, Part) else Part(part) for part in parts]
        settings.setdefault("seed", self.seed)
        for event in self.engine.stream(self.request(said, to, settings)):
            if isinstance(event, Done):
                self.past = [*self.past, [*said, *event.result.parts]][-self.turns :] if self.turns else []
                self.seed += 1
            yield event

    def request(self, said: list[Part], to, settings: dict) -> Request:
        """With as many of the last turns as fit."""
        for first in range(len(self.past) + 1):
            request = Request([*(part for turn in self.past[first:] for part in turn), *said], to, **settings)
            if first == len(self.past) or self.engine.fits(request):
                return request
        raise AssertionError("unreachable")

    def forget(self) -> None:
        self.past = []


def talk(gpt, lines: Iterator[str], out: Path, show, turns: int | None = None, colours: bool = False) -> None:
    """A conversation in a terminal: `lines` come from a person, `show(text)` prints. What is no text is saved in the folder `out`."""
    chat, made = Conversation(gpt, turns), 0
    for line in lines:
        words, to = line.strip(), "text"
        if words in ("/quit", "/exit"):
            return
        if words in ("/new", "/help", ""):
            if words == "/new":
                chat.forget()
            show(f"{HELP}\n" if words == "/help" else "")
            continue
        try:
            if words.startswith("/"):
                order, _, words = words.partition(" ")
                to = ORDERS.get(order)
                if to is None or not words.strip():
                    raise InputError(f"{order} {words}: say {', '.join(f'{known} WORDS' for known in ORDERS)}, /new, /help or /quit")
            told = False
            for event in chat.stream(*said(gpt, words), to=to):
                if isinstance(event, Delta):
                    show(event.text)
                    told = True
                elif isinstance(event, Ended) and (suffix := suffix_of(event.part.value)):
                    made += 1
                    path = save_file(event.part.value, free(out, made, suffix))
                    show(("\n" if told else "") + (blocks(event.part.value) if colours and isinstance(event.part.value, Image) else "") + f"{path}")
                    told = True
            show("\n" if told else "(nothing)\n")
        except (InputError, OSError) as error:
            show(f"mmgpt: {error}\n")
        except KeyboardInterrupt:  # of this answer alone
            show(" (stopped)\n")


def said(gpt, line: str) -> Sequence[Segment]:
    """The words of a line, and what is in the files that it names, in their order; of files alone it is asked what they show or say."""
    try:
        pieces = shlex.split(line)
    except ValueError:  # an apostrophe is no quotation
        pieces = line.split()
    found: list[Segment] = []
    for piece in pieces:
        path = Path(os.path.expanduser(piece))
        if suffix_of(path) and path.is_file():
            found.append(open_file(path))
        elif found and isinstance(found[-1], str):
            found[-1] += f" {piece}"
        else:
            found.append(piece)
    if all(isinstance(piece, str) for piece in found):
        return [line]  # as it was typed
    return found if any(isinstance(piece, str) for piece in found) else [*found, gpt.ports[gpt.port_of(found[-1])].asks]


def free(folder: Path, number: int, suffix: str) -> Path:
    """A file name that nobody has yet."""
    while (path := folder / f"chat-{number}{suffix}").exists():
        number += 1
    return path


def blocks(picture: Image, columns: int = 32) -> str:
    """A picture in a terminal of many colours: two pixels a character."""
    rows = max(1, round(columns * picture.height / picture.width / 2))
    small = picture.convert("RGB").resize((columns, 2 * rows), Resampling.BOX)
    lines = []
    for row in range(rows):
        upper, lower = ([small.getpixel((x, 2 * row + half)) for x in range(columns)] for half in (0, 1))
        lines.append("".join("\x1b[38;2;{};{};{}m\x1b[48;2;{};{};{}m▀".format(*a, *b) for a, b in zip(upper, lower, strict=True)) + "\x1b[0m\n")
    return "".join(lines)
