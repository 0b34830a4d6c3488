"""How clips as sprites are written in the stream: what moves, once, and how it stands in each frame."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from mmgpt.errors import InputError
from mmgpt.layout import WrittenLayout
from mmgpt.script import Script, Span, framed, line, script
from mmgpt.types import Grid, Written


@dataclass(frozen=True)
class SpritesLayout(WrittenLayout):
    """Shots: a picture of rows x columns codes, framed as a picture is, then a few codes for each frame in which it is shown. Causal.

    begin  open codes close  f f f  g g g g  g g g g  ...  [cut  open codes close  f f f  g g g g  ...]  end

    `first` (f) and `later` (g) count the ids of each slot of a shot's first frame and of its others. `ids`: the picture's codes, those of the
    frames, slot by slot, and `cut`, with which one more shot may begin wherever a frame may. A grid is (frames, rows, columns).
    """

    begin: int
    open: int
    close: int
    ids: Span
    end: int
    rows: int
    columns: int
    first: tuple[int, ...]
    later: tuple[int, ...]

    def __post_init__(self):
        if self.num_pictures < 2 or not self.first or not self.later or min((*self.first, *self.later)) < 2:  # a single id is no choice
            raise InputError(f"{len(self.ids)} ids for frames of {self.first} and {self.later} codes: 2 at least for each, and one to cut")

    @property
    def num_pictures(self) -> int:
        """Codes of pictures."""
        return len(self.ids) - sum(self.first) - sum(self.later) - 1

    @property
    def cut(self) -> int:
        return self.ids.stop - 1

    def slots(self, counts: Sequence[int], start: int) -> list[Span]:
        """The ids of each slot of a frame."""
        return [Span(start + sum(counts[:n]), start + sum(counts[: n + 1])) for n in range(len(counts))]

    @lru_cache(maxsize=256)  # noqa: B019
    def script(self, grid: Grid, cut: int = 0) -> Script:
        """One shot, or two of which the second begins with frame number `cut`."""
        frames, rows, columns = grid
        if frames < 1 or not 0 <= cut < frames or (rows, columns) != (self.rows, self.columns):
            raise InputError(f"{grid} codes, cut at {cut}, cannot be written by this layout: use (frames, {self.rows}, {self.columns}), cut between")
        start = self.ids.start + self.num_pictures
        first, later = self.slots(self.first, start), self.slots(self.later, start + sum(self.first))
        codes = Span(self.ids.start, start)
        steps: list[int | Span] = [self.begin]
        places = [line(1)]
        for number, count in enumerate([cut, frames - cut] if cut else [frames]):
            shown = [*first, *later * (count - 1)]
            picture = framed((1, rows, columns), 1, False, 1)
            at = int(places[-1].max()) + 1 + (number > 0)
            steps += [*([self.cut] if number else []), self.open, *[codes] * (rows * columns), self.close, *shown]
            places += [*([line(1) + at - 1] if number else []), picture + at, line(len(shown)) + at + int(picture.max()) + 1]
        places.append(line(1) + int(places[-1].max()) + 1)
        return script([*steps, self.end], np.concatenate(places), grid)

    def scripts(self, grid: Grid) -> tuple[Script, ...]:
        return tuple(self.script(grid, cut) for cut in range(max(1, grid[0])))

    def count(self, grid: Grid) -> int:
        return 2 * (self.rows * self.columns + len(self.first)) + grid[0] * len(self.later)

    def step(self, grid: Grid) -> tuple[int, int]:
        return self.rows * self.columns, 2  # what it is that will move, then how it does

    def write(self, codes: np.ndarray, learn: bool = False) -> Written:
        codes = np.asarray(codes)
        if not np.issubdtype(codes.dtype, np.integer) or codes.ndim != 1:
            raise InputError(f"codes of type {codes.dtype} and shape {codes.shape}: pass whole numbers, one after the other")
        frames = self.frames_of(codes)
        written = self.script((sum(frames), self.rows, self.columns), frames[0] if len(frames) > 1 else 0).write(codes + self.ids.start, learn)
        written.choice_N[written.ids_N == self.cut] = True  # where a head wrote a frame it also chose not to cut
        return written

    def frames_of(self, codes: np.ndarray) -> list[int]:
        """How many frames each shot has."""
        shown = [end - begin - self.rows * self.columns - len(self.first) for begin, end in shots_of(codes, self.num_pictures)]
        if not 1 <= len(shown) <= 2 or any(count < 0 or count % len(self.later) for count in shown):
            raise InputError(f"{len(codes)} codes of {len(shown)} shots: use 1 or 2, of whole pictures and frames")
        return [1 + count // len(self.later) for count in shown]

    def codes(self, ids: np.ndarray, grid: Grid) -> np.ndarray:
        """Ids of the open slots -> codes, one after the other."""
        return ids - self.ids.start

    def id_of(self, code: int) -> int:
        return self.ids.start + code


def shots_of(codes: np.ndarray, num_pictures: int) -> list[tuple[int, int]]:
    """Where each shot begins and ends: with the first code of a picture, behind codes that are none."""
    seen = codes < num_pictures
    begins = np.flatnonzero(seen & ~np.concatenate([[False], seen[:-1]])).tolist()
    return [*pairwise([*begins, len(codes)])]
