"""What one segment of the stream is, slot by slot: which ids may stand where.

A layout (`mmgpt.layout`) compiles one script for each size. Everything is read off it, so that nothing can disagree:
    writing     fill the script's open slots with codes
    targets     the open slots are what a head learns; forced slots are never sampled, hence never learned
    generation  walk the script: one forced id, or a choice from a span of ids
    parsing     find the script that the ids fit, take the ids of its open slots
    positions, blocks and the number of slots are columns of the script
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mmgpt.errors import InputError
from mmgpt.types import VECTOR, Grid, Prepared, Written


@dataclass(frozen=True, order=True)
class Span:
    """Neighbouring ids `start .. stop - 1`: the rows of one head's table."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __contains__(self, id: int) -> bool:
        return self.start <= id < self.stop


@dataclass(frozen=True)
class Choice:
    """What may come next: any id of these spans. A single id is forced and needs no head. One of the ids `any_of` among them scores as all of those
    together: which one it would be is known. The ids `steers` say how a segment goes on, and are drawn as often as they are likely, however coldly
    the others are drawn, which are many and each of them unlikely."""

    spans: tuple[Span, ...]
    any_of: Span | None = None
    steers: tuple[int, ...] = ()

    @property
    def forced(self) -> int | None:
        return self.spans[0].start if len(self.spans) == 1 and len(self.spans[0]) == 1 else None

    def __contains__(self, id: int) -> bool:
        return any(id in span for span in self.spans)

    def at(self, index: int) -> int:
        """The id that is number `index` of them all."""
        for span in self.spans:
            if index < len(span):
                return span.start + index
            index -= len(span)
        raise IndexError(index)

    def index(self, id: int) -> int | None:
        """Which number an id has; None for one that may not come next."""
        before = 0
        for span in self.spans:
            if id in span:
                return before + id - span.start
            before += len(span)
        return None


@dataclass(frozen=True)
class Script:
    """The slots of one segment.

    example: a picture of 1 x 2 codes, codes are ids 90 .. 99, begin 7, end 8
    first_N  7 90 90 8     an id at slot n is in first_N[n] .. last_N[n];
    last_N   7 99 99 8     first = last: forced; VECTOR: an encoder's vector stands here
    """

    first_N: np.ndarray
    last_N: np.ndarray
    place_N3: np.ndarray
    whole_N: np.ndarray
    span: int
    grid: Grid
    stops: tuple[int, ...] = ()  # one of these ids, where it may be chosen, ends the segment early (text)
    hole: Span | None = None  # ids that may not stand in an open slot although they lie in its range (codes within a text vocabulary)
    moves: Span | None = None  # each such id but the first stands one further along the second axis, and all behind it do (words among frames)
    ahead: int = 0  # so many of these come first, where an order of them is owed

    def __len__(self) -> int:
        return len(self.first_N)

    @property
    def open_N(self) -> np.ndarray:
        return self.first_N < self.last_N

    def places(self, ids_N: np.ndarray) -> np.ndarray:
        """Where the first slots stand if they hold these ids."""
        places_N3 = self.place_N3[: len(ids_N)]
        if self.moves is None:
            return places_N3
        moved_N = ((ids_N >= self.moves.start) & (ids_N < self.moves.stop)).cumsum() - 1
        return places_N3 + moved_N.clip(0)[:, None] * np.array([0, 1, 0])

    def write(self, ids: Sequence[int] | np.ndarray = (), learn: bool = False, encoder: str = "", prepared: Prepared | None = None) -> Written:
        filled = self.first_N.copy()
        ids = np.asarray(ids, dtype=np.int64).reshape(-1)
        if len(ids) != self.open_N.sum():
            raise InputError(f"{len(ids)} codes for a layout of {int(self.open_N.sum())} open slots (grid {self.grid}): pass one code a slot")
        if ((ids < self.first_N[self.open_N]) | (ids > self.last_N[self.open_N])).any():
            raise InputError(f"ids {ids.min()}..{ids.max()} leave the layout's range {self.first_N[self.open_N][0]}..{self.last_N[self.open_N][0]}")
        if self.hole is not None and ((ids >= self.hole.start) & (ids < self.hole.stop)).any():
            raise InputError(f"ids {self.hole.start}..{self.hole.stop - 1} belong to another modality: this layout may not write them")
        filled[self.open_N] = ids
        return Written(filled, self.open_N, self.whole_N, self.places(filled), self.span, learn, encoder, prepared)


def script(
    steps: Iterable[int | Span],
    places: np.ndarray,
    grid: Grid,
    whole: bool = False,
    stops: tuple[int, ...] = (),
    hole: Span | None = None,
    moves: Span | None = None,
    ahead: int = 0,
) -> Script:
    """Steps as a script: ids are forced, spans are open. Scripts are shared by all segments of their size, hence read-only."""
    steps = list(steps)
    first = np.array([s.start if isinstance(s, Span) else s for s in steps], dtype=np.int64)
    last = np.array([s.stop - 1 if isinstance(s, Span) else s for s in steps], dtype=np.int64)
    whole_N = (first == VECTOR) & whole
    for column in (first, last, places, whole_N):
        column.setflags(write=False)
    return Script(first, last, places, whole_N, int(places.max(initial=-1)) + 1, grid, stops, hole, moves, ahead)


def line(n: int) -> np.ndarray:
    """Places of n slots in reading order, the same on all three axes: 1-D positions."""
    return np.repeat(np.arange(n)[:, None], 3, axis=1)


def framed(grid: Grid, before: int, row_ends: bool, after: int) -> np.ndarray:
    """Places of a segment: `before` slots in a line, a grid of (time, row, column), `after` slots behind its far corner.

    example: begin, 2 rows of 2, end    begin 000 | 111 112 121 122 | end 333
    """
    frames, rows, columns = grid
    inner = np.stack(np.meshgrid(np.arange(frames), np.arange(rows), np.arange(columns + row_ends), indexing="ij"), -1).reshape(-1, 3) + before
    far = before + max(frames, rows, columns + row_ends)
    return np.concatenate([line(before), inner, line(after) + far]).astype(np.int64)


def without(span: Span, hole: Span | None) -> list[Span]:
    """What is left of a choice of ids: one span, or what lies before and behind the hole."""
    if hole is None or len(span) == 1 or hole.stop <= span.start or span.stop <= hole.start:
        return [span]
    return [part for part in (Span(span.start, hole.start), Span(hole.stop, span.stop)) if part.start < part.stop]


@lru_cache(maxsize=4096)
def choice_of(first: int, last: int, hole: Span | None) -> Choice:
    """What may stand in a slot of a script."""
    return Choice(tuple(without(Span(first, last + 1), hole)))


class Automaton:
    """What may come next while one segment is generated, id by id: the scripts that still fit what was written.

    One script when the size is fixed by the caller; several when the model chooses the size (it writes the header). Of the ids that move what is
    behind them only those that are `owed` may come, one after the other, and nothing ends before they are all written; None: any may.
    """

    def __init__(self, scripts: Sequence[Script], owed: Sequence[int] | None = None):
        if not scripts:
            raise InputError("0 scripts to generate from: pass at least one size")
        self.scripts, self.length, self.stopped, self.moved = list(scripts), 0, False, -1
        self.owed = owed if self.script.moves else None
        if self.owed is not None and len(self.owed) >= (room := int(self.script.open_N.sum())):
            raise InputError(f"{len(self.owed)} pieces of words to say in {room} slots, and frames that say them: say less at once")

    def next(self) -> Choice | None:
        """The choice for the next slot; None when the segment is complete."""
        if self.stopped or self.length == len(self.scripts[0]):
            return None
        slots = [(int(s.first_N[self.length]), int(s.last_N[self.length]), s.hole) for s in self.scripts]
        if self.owed is not None and slots[0][0] < slots[0][1]:
            return self.rest(*slots[0])
        return choice_of(*slots[0]) if len(slots) == 1 else Choice(tuple(sorted({span for slot in slots for span in choice_of(*slot).spans})))

    def rest(self, first: int, last: int, hole: Span | None) -> Choice:
        """The choice of a slot in which of the owed ids only the next may stand: and nothing else, where there is room for no more."""
        left = self.owed[self.moved + 1 :]
        spans = [part for span in choice_of(first, last, hole).spans for part in without(span, self.script.moves)]
        if not left:
            stops = self.script.stops
            for stop in stops:
                spans = [part for span in spans for part in without(span, Span(stop, stop + 1))]
            return Choice((*spans, *[Span(stop, stop + 1) for stop in stops]), steers=stops)
        owed = Span(left[0], left[0] + 1)
        if self.moved + 1 < self.script.ahead or self.script.open_N[self.length :].sum() <= len(left):
            return Choice((owed,))
        for stop in self.script.stops:
            spans = [part for span in spans for part in without(span, Span(stop, stop + 1))]
        return Choice((*spans, owed), self.script.moves, (owed.start,))

    def push(self, id: int) -> None:
        choice = self.next()
        if choice is None or id not in choice:
            raise InputError(f"id {id} at slot {self.length}: the layout allows {choice}")
        self.scripts = [s for s in self.scripts if s.first_N[self.length] <= id <= s.last_N[self.length]]
        self.stopped = choice.forced is None and id in self.scripts[0].stops
        self.moved += self.script.moves is not None and id in self.script.moves
        self.length += 1

    @property
    def place(self) -> np.ndarray:
        """(time, row, column) of the slot that was filled last, relative to the segment's beginning. Scripts that still fit agree on it."""
        place_3 = self.script.place_N3[self.length - 1]
        return place_3 if self.script.moves is None else place_3 + np.array([0, max(0, self.moved), 0])

    @property
    def script(self) -> Script:
        return self.scripts[0]


def parse(ids: Sequence[int] | np.ndarray, scripts: Sequence[Script]) -> tuple[np.ndarray, Script]:
    """(ids of the open slots, the script they fit) of one complete segment; InputError where no script fits."""
    walk = Automaton(scripts)
    for id in ids:
        walk.push(int(id))
    if walk.next() is not None:
        raise InputError(f"{len(ids)} ids are not a complete segment: the layout goes on with {walk.next()}")
    return np.asarray(ids, np.int64)[walk.script.open_N[: len(ids)]], walk.script
