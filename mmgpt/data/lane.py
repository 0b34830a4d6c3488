"""A mixture and a number -> an endless row of packed rows that can be stopped anywhere and goes on bit for bit.

    draw a source -> draw a sample of it -> open it -> write it -> wait -> the fullest row of those that wait -> a stream of one row

A lane is one row of the global batch. Nothing that it makes depends on other lanes, on processes or on how far ahead it is asked.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from mmgpt.data.chance import share
from mmgpt.data.fill import fullest, pieces
from mmgpt.data.mixture import Draws, Mixture
from mmgpt.data.samples import sample_of
from mmgpt.errors import DataError, InputError
from mmgpt.pack import Document, lay, length
from mmgpt.types import Stream

COUNTS = ("samples", "bad", "refused", "split", "rows", "positions")


@dataclass(frozen=True)
class Bad:
    """A sample that was left out: where it is, why, and the lane's number of the draw."""

    source: str
    shard: str
    index: int
    reason: str
    draw: int

    def __str__(self) -> str:
        return f"{self.source}: {self.shard}, sample {self.index}: {self.reason}"


@dataclass(frozen=True)
class Address:
    """A sample of a lane: which source, the place of its slice, its row in the block, and the number of its draw."""

    source: int
    place: int
    row: int
    draw: int


@dataclass(frozen=True)
class Waiting:
    """A document that waits for a row; `piece` of a sample that was too long, else 0."""

    address: Address
    piece: int
    document: Document


@dataclass(frozen=True)
class Packed:
    """A row, the names of the samples in it and of those left out on the way to it, and the state behind it."""

    stream: Stream
    names: tuple[str, ...]
    bad: tuple[Bad, ...]
    state: dict[str, object]


class Lane:
    """`next(lane)` is the next row. `state()` is a small dict of numbers for JSON, and `Lane(mixture, number, state)` goes on from it.

    A sample that is broken, empty, of a kind the model cannot read or with nothing to learn is bad: left out, counted and named. One that is
    too long and not to be cut is refused: counted and named too. The others keep their order. `beat` is called after every sample.
    """

    def __init__(self, mixture: Mixture, number: int, state: Mapping | None = None, beat: Callable[[], None] = lambda: None):
        if not 0 <= number < mixture.lanes:
            raise DataError(f"lane {number} of {mixture.lanes}: lanes are numbered from 0")
        state = state or {}
        self.mixture, self.number, self.beat = mixture, number, beat
        self.counts = {name: 0 for name in COUNTS} | state.get("counts", {})
        self.late: list[int] = list(state.get("late", ()))  # draws among the last `watched` that were bad
        before = state.get("sources", [{}] * len(mixture.sources))
        self.draws = [Draws(mixture, which, number, before[which]) for which in range(len(mixture.sources))]
        self.shares = mixture.shares
        self.waiting = self.read_again(state.get("waiting", []))
        self.noted: list[Bad] = []

    def state(self) -> dict[str, object]:
        waiting = [[*vars(w.address).values(), w.piece] for w in self.waiting]
        sources = [draws.state() for draws in self.draws]
        return {"counts": dict(self.counts), "late": list(self.late), "sources": sources, "waiting": waiting}

    def __iter__(self) -> Iterator[Packed]:
        return self

    def __next__(self) -> Packed:
        begun = self.counts["samples"]
        while len(self.waiting) < self.mixture.waiting:
            self.draw()
            if not self.waiting and self.counts["samples"] - begun >= 10 * self.mixture.watched:
                last = self.noted[-1]
                raise DataError(f"none of {10 * self.mixture.watched} samples fits into a row of {self.mixture.row_length}: use longer rows. {last}")
        chosen = fullest([length(w.document) for w in self.waiting], self.mixture.row_length)
        row = [self.waiting[index] for index in chosen]
        self.waiting = [w for index, w in enumerate(self.waiting) if index not in set(chosen)]
        self.counts["rows"] += 1
        self.counts["positions"] += sum(length(w.document) for w in row)
        bad, self.noted = tuple(self.noted), []
        stream = lay([[w.document for w in row]], dict(self.mixture.heads), self.mixture.row_length)
        return Packed(stream, tuple(self.name(w.address) for w in row), bad, self.state())

    def name(self, address: Address) -> str:
        shard, index = self.draws[address.source].where(address.place, address.row)
        return f"{self.mixture.sources[address.source].name}: {shard}, sample {index}"

    def draw(self) -> None:
        """One more sample: its documents wait, or it is noted as bad."""
        number = self.counts["samples"]
        self.counts["samples"] += 1
        at, which = share(self.mixture.seed, "mixture", self.number, number), 0
        while which < len(self.shares) - 1 and at >= self.shares[which]:
            at, which = at - self.shares[which], which + 1
        address = Address(which, *self.draws[which].next(), number)
        self.late = [draw for draw in self.late if draw > number - self.mixture.watched]
        try:
            document = self.document(address)
        except Exception as error:  # a decoder may raise anything; one sample of a billion is no reason to stop
            self.note(address, error)
            self.watch(number)
        else:
            self.wait(address, document)
        self.beat()

    def document(self, address: Address) -> Document:
        """Reads, opens and writes a sample. Raises where it cannot be used."""
        with limited(self.mixture.seconds):
            row = self.draws[address.source].row(address.place, address.row)
            document = self.mixture.write(sample_of(row, self.mixture.form, self.mixture.seed, "form", self.number, address.draw))
        if not any((written.learn & written.choice_N).any() for written in document):
            raise InputError("nothing to learn: mark a part with learn, or give the assistant an answer")
        return document

    def wait(self, address: Address, document: Document) -> None:
        try:
            found = self.cut(document)
        except InputError as error:
            self.counts["refused"] += 1
            self.note(address, error)
            return
        self.counts["split"] += len(found) > 1
        self.waiting += [Waiting(address, piece, document) for piece, document in enumerate(found)]

    def cut(self, document: Document) -> list[Document]:
        m = self.mixture
        if m.long == "refuse" and length(document) > m.row_length:
            raise InputError(f"a document of {length(document)} positions in rows of {m.row_length}: use longer rows, or long=split")
        return pieces(document, m.row_length, m.begins)

    def note(self, address: Address, error: Exception) -> None:
        """Names a sample that is left out."""
        source = self.mixture.sources[address.source].name
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        self.noted.append(Bad(source, *self.draws[address.source].where(address.place, address.row), reason[:500], address.draw))

    def watch(self, draw: int) -> None:
        """Counts a bad sample; too many of them stop the run."""
        m, seen = self.mixture, min(self.mixture.watched, self.counts["samples"])
        self.counts["bad"] += 1
        self.late.append(draw)
        if len(self.late) > m.max_bad * m.watched:
            raise DataError(
                f"{len(self.late)} of the last {seen} samples of lane {self.number} are bad, at most {m.max_bad:.1%} of {m.watched} may be; "
                f"look at the data with `mmgpt data inspect`, or raise max_bad. The last: {self.noted[-1]}"
            )

    def read_again(self, waiting: list[list[int]]) -> list[Waiting]:
        """The documents that were waiting, from their addresses; block by block, so that each is read once."""
        found: dict[tuple, Waiting] = {}
        documents: dict[Address, list[Document]] = {}
        for *numbers, piece in sorted(waiting):
            address = Address(*numbers)
            try:
                if address not in documents:
                    documents = {address: self.cut(self.document(address))}
                found[(*numbers, piece)] = Waiting(address, piece, documents[address][piece])
                self.beat()
            except Exception as error:
                place = self.draws[address.source].where(address.place, address.row)
                raise DataError(
                    f"{place[0]}, sample {place[1]} was good before and is not now ({error}); bring the data back as they were"
                ) from error
        return [found[tuple(numbers)] for numbers in waiting]


class TooLong(Exception):
    """A sample took more of the processor than it may."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises `TooLong` once the body has used so much time of the processor. In the main thread only: others get no signals.

    Time of the processor, not of the clock, so that a busy machine leaves out no other samples than an idle one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise TooLong(f"more than {seconds:g} seconds of the processor for one sample")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
