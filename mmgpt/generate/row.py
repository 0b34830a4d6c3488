"""A request at work: what it has read and written, what may come next, and what it tells on the way."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch

from mmgpt.errors import InputError, LengthError
from mmgpt.generate.guidance import Guidance
from mmgpt.generate.request import ANY, Begun, Chunk, Delta, Done, Ended, Event, Preview, Request, Result
from mmgpt.pack import Document, length
from mmgpt.script import Automaton, Choice, Span, choice_of, without
from mmgpt.types import Grid, Part, Usage, Written, beside


@dataclass
class Branch:
    """One document that is being continued, in one row of the cache. A guided row has two or three of them."""

    document: Document
    base: int = 0  # where the segment that is being written begins
    beside: int = 0  # and how far before that its second axis does
    block: int = 0
    pending: list[int] = field(default_factory=list)  # ids that are written and not yet read, and their places
    places: list[np.ndarray] = field(default_factory=list)
    slot: int = -1  # its row of the cache
    stale: bool = False  # the document is another than what was read: it has to be read anew

    def __post_init__(self):
        self.count()

    def count(self) -> None:
        self.base = sum(written.span for written in self.document)
        self.block = sum(len(written) - int((written.whole_N[1:] & written.whole_N[:-1]).sum()) for written in self.document)

    def become(self, document: Document) -> None:
        self.document, self.pending, self.places, self.stale = document, [], [], True
        self.count()

    @property
    def origin_3(self) -> np.ndarray:
        """What the places of the segment that is being written count from."""
        return self.base - np.array([0, self.beside, 0])

    def push(self, id: int, place_3: np.ndarray) -> None:
        self.pending.append(id)
        self.places.append(place_3 + self.origin_3)

    def take(self) -> tuple[list[int], np.ndarray, int]:
        """The pending ids, their positions and the first one's block; they are pending no more."""
        taken = self.pending, np.array(self.places, np.int64).reshape(-1, 3), self.block
        self.block += len(self.pending)
        self.pending, self.places = [], []
        return taken


class Row:
    """A request at work. The engine asks for `choice` and hands over the id that was drawn with `push`."""

    def __init__(self, gpt, request: Request, listening: bool = False):
        self.gpt, self.request, self.listening = gpt, request, listening
        self.free = request.to == ANY and ANY not in gpt.ports
        self.wanted = [(opening(gpt), request.grid)] if self.free else request.wanted
        for name, _ in self.wanted:
            if name not in gpt.heads:
                raise InputError(f"to={name!r}: this model writes {', '.join(gpt.heads)}")
        self.sizes = [self.size(name, grid) for name, grid in self.wanted]
        if request.stop and not any(issubclass(str, gpt.ports[name].kind) for name, _ in self.wanted):
            raise InputError(f"stop={request.stop}: {', '.join(name for name, _ in self.wanted)} holds no words that could stop it")
        if request.beams > 1 and (self.free or isinstance(request.to, tuple) or request.stop or request.guess or request.sampling is not None):
            raise InputError(f"beams={request.beams}: beams follow one text that has an end, without sampling, guidance, stop and guess; use beams=1")
        parts = request.sample
        self.guidance = {name: self.guidance_of(name, parts) for name in self.names}
        samples = [parts, *self.unconditional(parts)]
        self.branches = [Branch(gpt.write(sample)) for sample in samples]
        self.check_length()
        # torch's generator reads 32 bits of a seed
        self.generator = torch.Generator().manual_seed((request.seed ^ (request.seed >> 32) * 0x9E3779B1) % 2**32)
        self.log_probability, self.all_ids, self.parts, self.number = 0.0, [], [], 0
        self.read, self.written = count(gpt, self.branches[0].document), {}
        self.events: list[Event] = []
        self.error: Exception | None = None
        self.result: Result | None = None
        self.choice: Choice | None = None
        self.open(self.wanted[0][0], [self.sizes[0]])
        self.advance()

    # what is asked

    @property
    def names(self) -> list[str]:
        return list(self.gpt.heads) if self.free else [name for name, _ in self.wanted]

    def size(self, name: str, grid: Grid | None) -> Grid:
        grid, limit = grid or self.gpt.ports[name].grid, self.gpt.max_length
        if grid is None:
            raise InputError(f"to={name!r} has no size of its own: pass grid=(frames, rows, columns) in codes")
        count = self.gpt.ports[name].writes.count(grid) if len(grid) == 3 else prod(grid)
        if len(grid) != 3 or count > limit:  # before a script of that size is made
            raise InputError(f"a size of {count} codes, {grid}: use (frames, rows, columns), together at most {limit}")
        return grid

    def guidance_of(self, name: str, parts: Sequence[Part]) -> Guidance:
        asked = self.request.guidance
        if asked is None:
            has_words = any(isinstance(part.value, str) and part.value and not part.learn for part in parts)
            return Guidance(self.gpt.ports[name].guidance if has_words else 1.0)
        return asked if isinstance(asked, Guidance) else Guidance(float(asked))

    def unconditional(self, parts: Sequence[Part]) -> list[list[Part]]:
        name = next((name for name, guidance in self.guidance.items() if not guidance.off), None)
        return [] if name is None else self.guidance[name].forms(parts, self.gpt.ports[name].unconditional)

    def check_length(self) -> None:
        ways = [self.gpt.ports[name].writes.scripts(size) for (name, _), size in zip(self.wanted, self.sizes, strict=True)]
        if not all(length(branch.document) or Automaton(ways[0]).next().forced is not None for branch in self.branches):
            empty = "its unconditional form has" if length(self.branches[0].document) else "the request has"
            raise InputError(f"{empty} 0 positions to read, and this model opens a document with no id of its own: say more, or use guidance=1")
        self.longest = max(length(branch.document) for branch in self.branches) + sum(max(map(len, scripts)) for scripts in ways)
        if self.longest > self.gpt.max_length:
            raise LengthError(
                f"{self.longest} positions to read and write, this model holds {self.gpt.max_length}: shorten the prompt or ask for less"
            )

    # what is written

    def open(self, name: str, sizes: Sequence[Grid]) -> None:
        """A segment begins."""
        self.name, self.port, self.head = name, self.gpt.ports[name], self.gpt.heads[name]
        writes, owed = self.port.writes, self.port.writes.owed(self.branches[0].document)
        self.automaton = Automaton([script for size in sizes for script in writes.scripts(writes.room(size, owed))], owed)
        if self.parts and not self.guidance[name].off and self.automaton.next().forced is not None:
            self.forget()
        for branch in self.branches:
            branch.beside = self.port.writes.beside(branch.document)
        self.sampling = self.request.sampling or self.port.sampling
        self.ids: list[int] = []
        self.told = 0  # of the segment: characters, or rows or frames of codes
        self.chunks = self.port.codec.stream() if self.listening and hasattr(self.port.codec, "stream") else None
        self.cut: str | None = None  # the text, where a stop ended it
        self.tell(Begun(name, self.automaton.script.grid))

    def forget(self) -> None:
        """Words that the row wrote guide what comes behind them, as given ones do: what guidance compares with has none there."""
        count = len(self.parts)
        for branch in self.branches[1:] if any(isinstance(part.value, str) for part in self.parts) else ():
            parts = zip(self.parts, branch.document[-count:], strict=True)
            written = [self.gpt.write([Part("")])[-1] if isinstance(part.value, str) else written for part, written in parts]
            branch.become([*branch.document[:-count], *written])

    def advance(self) -> None:
        """Pushes what the layout forces, up to the next choice; None when all is written."""
        while True:
            choice = self.automaton.next() if self.cut is None else None
            if choice is None:
                self.close()
                if self.result is not None:
                    self.choice = None
                    return
            elif choice.forced is None:
                self.choice = self.with_begins(choice) if self.free else choice
                return
            else:
                self.note(choice.forced)

    def push(self, id: int, log_probability: float) -> None:
        """An id was drawn: it is noted, and everything that follows from it."""
        self.log_probability += log_probability
        begun = next((name for name, span in self.beginnings().items() if id in span), None) if self.free else None
        if begun is not None:
            self.finish()
            self.open(begun, self.gpt.ports[begun].writes.sizes or [self.size(begun, None)])
        self.note(id)
        if self.request.stop and issubclass(str, self.port.kind):
            value = self.value()
            at = min((found for words in self.request.stop if (found := value.find(words)) >= 0), default=-1)
            self.cut = value[:at] if at >= 0 else None
        if self.listening:
            self.tell_what_is_new()
        self.advance()

    def follow(self, ids: Sequence[int], log_probabilities: Sequence[float]) -> None:
        """Ids were drawn one after the other, and all but the last one are read already."""
        for branch in self.branches:
            branch.pending, branch.places, branch.block = [], [], branch.block + len(ids)
        self.automaton.length += len(ids) - 1
        self.ids += ids[:-1]
        for log_probability in log_probabilities[:-1]:
            self.log_probability += log_probability
        self.push(ids[-1], log_probabilities[-1])

    def guesses(self) -> list[int]:
        """How what was read and written went on the last time that it stood as it stands now: ids that may come next, at most as many as were asked
        for (prompt lookup: Saxena, 2023; checked as in Leviathan et al., 2023, arXiv:2211.17192)."""
        script, slot = self.automaton.script, self.automaton.length
        if not self.request.guess or len(self.automaton.scripts) > 1 or script.moves or self.done:
            return []
        history = [*(int(id) for written in self.branches[0].document for id in written.ids_N), *self.ids]
        found = []
        for n, id in enumerate(went_on(history)[: self.request.guess]):
            if (
                slot + n + 1 >= len(script)
                or id in script.stops
                or id not in choice_of(int(script.first_N[slot + n]), int(script.last_N[slot + n]), script.hole)
            ):
                break
            found.append(id)
        return found

    def note(self, id: int) -> None:
        self.automaton.push(id)
        place_3 = self.automaton.place
        self.ids.append(id)
        for branch in self.branches:
            branch.push(id, place_3)

    def with_begins(self, choice: Choice) -> Choice:
        """The choice of a text, and the ids that may begin something else there: such an id stands in it once, or not at all."""
        spans = list(choice.spans)
        for begin in self.beginnings().values():
            spans = [part for span in spans for part in without(span, begin) if part != begin]
        return Choice((*spans, *self.begins()))

    def beginnings(self) -> dict[str, Span]:
        """The ids with which the model may begin a segment of another modality, by name."""
        names = [name for name in self.gpt.heads if name != self.name and getattr(self.gpt.ports[name].writes, "begin", None) is not None]
        return {name: Span(self.gpt.ports[name].writes.begin, self.gpt.ports[name].writes.begin + 1) for name in names}

    def begins(self) -> list[Span]:
        """Those for which there is room, in a text."""
        if self.name != self.wanted[0][0]:
            return []
        room = self.gpt.max_length - max(length(branch.document) for branch in self.branches) - len(self.ids) - len(self.automaton.script)
        fits = {name: self.gpt.ports[name].writes.sizes or [self.gpt.ports[name].grid] for name in self.beginnings()}
        fits = {name: [script for size in sizes if size for script in self.gpt.ports[name].writes.scripts(size)] for name, sizes in fits.items()}
        return [self.beginnings()[name] for name, scripts in fits.items() if scripts and max(map(len, scripts)) <= room]

    def value(self):
        """What is written of the segment so far, as a value."""
        return self.port.codec.decode(self.codes())

    def id_of(self, code: int) -> int:
        """The id of a code of the segment that is being written."""
        return self.port.writes.id_of(code)

    def codes(self, slots: int | None = None) -> np.ndarray:
        script, ids = self.automaton.script, np.asarray(self.ids[:slots], np.int64)
        return self.port.writes.codes(ids[script.open_N[: len(ids)]], script.grid)

    def finish(self) -> None:
        """The segment is complete: it becomes a part, and a piece of the documents."""
        if self.free and not self.ids:  # a picture was begun at once
            return
        script, ids, n = self.automaton.script, np.asarray(self.ids, np.int64), len(self.ids)
        part = Part(self.value(), True, self.codes()) if self.cut is None else Part(self.cut, True)
        span = int(script.place_N3[:n].max(initial=-1)) + 1
        written = Written(ids, script.open_N[:n], np.zeros(n, bool), script.places(ids), span, True, head=self.name)
        for branch in self.branches:
            branch.document = [*branch.document, beside(written, branch.beside)]
            branch.base += span
        self.parts.append(part)
        self.all_ids += self.ids
        self.written[self.name] = self.written.get(self.name, 0) + n
        if self.listening:
            self.tell_what_is_new(part.value)
        self.tell(Ended(part))

    def close(self) -> None:
        """After a segment comes the next one that was asked for, or the result."""
        name = self.name
        self.finish()
        self.number += 1
        if self.free and name != self.wanted[0][0]:
            self.open(self.wanted[0][0], [self.sizes[0]])
        elif not self.free and self.number < len(self.wanted):
            self.open(self.wanted[self.number][0], [self.sizes[self.number]])
        else:
            several = self.free or isinstance(self.request.to, tuple)
            values = [part.value for part in self.parts]
            usage = Usage(self.read, self.written)
            value = values if several else values[0]
            self.result = Result(value, self.codes(), tuple(self.all_ids), self.log_probability, usage, tuple(self.parts))
            self.tell(Done(self.result))

    @property
    def done(self) -> bool:
        return self.result is not None or self.error is not None

    # what is told

    def tell(self, event: Event) -> None:
        if self.listening:
            self.events.append(event)

    def tell_what_is_new(self, whole=None) -> None:
        """More of a text, whole characters; one more row or frame of codes; more of a sound."""
        if issubclass(str, self.port.kind):
            text = whole if whole is not None else self.value().rstrip("\ufffd") if self.cut is None else self.cut
            held = 0 if whole is not None else max((len(words) - 1 for words in self.request.stop), default=0)  # may be the beginning of a stop
            until = max(self.told, len(text) - held)
            if until > self.told:
                self.tell(Delta(text[self.told : until]))
                self.told = until
            return
        if self.chunks is not None:  # the codec itself goes on from where it was
            codes = self.codes()
            if len(codes) > self.told or whole is not None:
                chunk = self.chunks.push(codes[self.told :], whole is not None)
                self.told = len(codes)
                if chunk is not None:
                    self.tell(Chunk(chunk))
            return
        script = self.automaton.script
        frames, rows, columns = script.grid
        one, of = self.port.writes.step(script.grid)
        done = int(script.open_N[: len(self.ids)].sum()) // one
        if self.told < done < of:
            self.told = done
            codes = np.asarray(self.ids, np.int64)[script.open_N[: len(self.ids)]][: done * one]
            grid = (1, done, columns) if frames == 1 else (done, rows, columns)
            self.tell(Preview(self.port.codec.decode(self.port.writes.codes(codes, grid)), done, of))


def went_on(history: Sequence[int], most: int = 3) -> Sequence[int]:
    """What stood behind the last earlier place where the last `most` ids stood, or fewer of them."""
    for n in range(min(most, len(history) - 1), 0, -1):
        last = history[-n:]
        for at in range(len(history) - n - 1, -1, -1):
            if history[at : at + n] == last:
                return history[at + n :]
    return []


def opening(gpt) -> str:
    """The modality in which the model says itself when it is done."""
    for name, port in gpt.ports.items():
        if name in gpt.heads and getattr(port.writes, "ends", ()):
            return name
    raise InputError(f'to="any": this model writes {", ".join(gpt.heads)}, none of which it ends itself')


def count(gpt, document: Document) -> dict[str, int]:
    """Positions of a document by modality; control ids that belong to no segment stand alone."""
    found: dict[str, int] = {}
    for written in document:
        name = written.encoder or written.head or "control"
        found[name] = found.get(name, 0) + len(written)
    return found
