"""How each modality is written in the stream: one frozen dataclass a modality, compiled into scripts (`mmgpt.script`).

codes, or an encoder's vectors -> slots; ids of slots -> codes. `TextLayout`, `CodesLayout` (pictures), `FramesLayout` (sound),
`VectorsLayout` (all that is only read); `SpritesLayout` (video) is in `mmgpt.decoders.sprite_layout`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod

import numpy as np

from mmgpt.errors import InputError
from mmgpt.script import Script, Span, framed, line, script
from mmgpt.types import VECTOR, Grid, Prepared, Written


class WrittenLayout:
    """What the layouts of all that is written have in common: one script for each size, unless they say otherwise. Each has `script`,
    `write` (codes -> slots), `codes` (ids of open slots -> codes) and `id_of` (code -> id) of its own."""

    ids: Span  # that its head scores
    sizes: tuple[Grid, ...] = ()  # what may be generated; () = whatever the caller asks for

    def scripts(self, grid: Grid) -> tuple[Script, ...]:
        """All the ways in which a segment of this size may be written."""
        return (self.script(grid),)

    def count(self, grid: Grid) -> int:
        """How many codes a segment of this size has at most: known before a script is made."""
        return prod(grid)

    @property
    def hideable(self) -> Span:
        """The ids that may be hidden from those behind them while they are learned."""
        return self.ids

    def beside(self, before: Sequence[Written]) -> int:
        """How far before where the segment begins its second axis does, behind these segments."""
        return 0

    def owed(self, before: Sequence[Written]) -> Sequence[int] | None:
        """The ids that have to be written behind these segments, of those that say how far it is; None: whichever."""
        return None

    def room(self, grid: Grid, owed: Sequence[int] | None) -> Grid:
        """The size of a segment for which `grid` was asked, where these ids have to be written in it."""
        return grid

    def step(self, grid: Grid) -> tuple[int, int]:
        """(codes of which something new can be shown, how often they come): rows of a picture, frames of a video."""
        frames, rows, columns = grid
        return (columns, rows) if frames == 1 else (rows * columns, frames)


@dataclass(frozen=True)
class TextLayout(WrittenLayout):
    """text: one slot an id, then `end` (None: nothing marks the end, the caller stops). Causal.

    `other_ends` end a written text too (Llama 3's turn ends); without `end_given` only a text that is learned has an end, so
    that a given one is continued. `hole` are ids of another modality in the midst of the text's (Chameleon).
    """

    ids: Span  # all ids that a text may hold, its ends among them
    end: int | None
    other_ends: tuple[int, ...] = ()
    end_given: bool = True
    hole: Span | None = None

    @property
    def ends(self) -> tuple[int, ...]:
        return (*(() if self.end is None else (self.end,)), *self.other_ends)

    @lru_cache(maxsize=256)  # noqa: B019 - a handful of frozen layouts live as long as the program
    def script(self, grid: Grid, ended: bool = True) -> Script:
        length = grid[2]
        if length < 0:
            raise InputError(f"a text of {length} ids: use 0 or more")
        steps = [*[self.ids] * length, *([self.end] if ended and self.end is not None else [])]
        return script(steps, line(len(steps)) if steps else np.zeros((1, 3), np.int64)[:0], grid, stops=self.ends, hole=self.hole)

    def write(self, codes: np.ndarray, learn: bool = False) -> Written:
        ended = self.end is not None and (learn or self.end_given)
        written = self.script((1, 1, len(codes)), ended).write(codes, learn)
        if ended:  # where a head wrote text it also chose to end it
            written.choice_N[-1] = True
        return written

    def codes(self, ids: np.ndarray, grid: Grid) -> np.ndarray:
        return ids[~np.isin(ids, self.ends)]

    def id_of(self, code: int) -> int:
        return self.ids.start + code


@dataclass(frozen=True)
class CodesLayout(WrittenLayout):
    """A grid of a codec's codes: begin, size, start, rows, end. Causal in code order. All but `codes` may be absent.

    Emu3:     begin "H*W" start  H x (W codes, row_end)  end_codes end
    Emu3.5:   begin "H*W" start  H x (W codes, row_end); the last row_end is `end` itself (end_is_row_end)
    Janus:    begin  576 codes
    Chameleon begin  1024 codes  end; `table` maps code -> id
    Lumina    begin  height width  H x (W codes, row_end)  end
    """

    begin: int
    ids: Span
    end: int | None = None
    row_end: int | None = None
    end_codes: int | None = None
    start: int | None = None
    digits: tuple[int, ...] | None = None  # ids of "0" .. "9" and "*": the size is written as text
    end_is_row_end: bool = False
    table: tuple[int, ...] | None = None
    sizes: tuple[Grid, ...] = ()  # what may be generated; () = whatever the caller asks for
    flat: bool = False  # positions in a line, as in the text: models whose decoder knows one axis
    sized: tuple[int, int] | None = None  # (id of size 0, codes a step): rows and columns are written as one id each (Lumina-mGPT)

    def __post_init__(self):
        if self.table is not None and (len(set(self.table)) != len(self.table) or len(self.table) != len(self.ids)):
            raise InputError(f"a table of {len(self.table)} ids, {len(set(self.table))} of them different, for {len(self.ids)} codes: one id a code")

    def header(self, grid: Grid) -> list[int]:
        if self.sized is not None:
            zero, step = self.sized
            if grid[1] % step or grid[2] % step:
                raise InputError(f"{grid[1]}x{grid[2]} codes cannot be written by this layout: use multiples of {step}")
            return [zero + grid[1] // step, zero + grid[2] // step]
        if self.digits is None:
            return []
        return [self.digits[10] if c == "*" else self.digits[int(c)] for c in f"{grid[1]}*{grid[2]}"]

    @lru_cache(maxsize=256)  # noqa: B019
    def script(self, grid: Grid) -> Script:
        frames, rows, columns = grid
        if min(grid) < 1 or (self.sizes and grid not in self.sizes):
            raise InputError(f"{rows}x{columns} codes cannot be written by this layout: it writes {self.sizes or 'grids of at least 1x1'}")
        before = [self.begin, *self.header(grid), *([] if self.start is None else [self.start])]
        row = [self.ids] * columns + ([] if self.row_end is None else [self.row_end])
        body = row * (rows * frames)
        after = [id for id in (self.end_codes, self.end) if id is not None]
        if self.end_is_row_end:
            body[-1], after = after[-1], []
        steps = [*before, *body, *after]
        return script(steps, line(len(steps)) if self.flat else framed(grid, len(before), self.row_end is not None, len(after)), grid)

    def write(self, codes: np.ndarray, learn: bool = False) -> Written:
        codes = np.asarray(codes)
        if not np.issubdtype(codes.dtype, np.integer):
            raise InputError(f"codes of type {codes.dtype}: pass whole numbers")
        if codes.size and not 0 <= codes.min() <= codes.max() < len(self.ids):
            raise InputError(f"codes {codes.min()}..{codes.max()}: this layout writes codes 0..{len(self.ids) - 1}")
        grid = (1,) * (3 - codes.ndim) + codes.shape
        ids = codes.reshape(-1) + self.ids.start if self.table is None else np.asarray(self.table)[codes.reshape(-1)]
        return self.script(grid).write(ids, learn)

    def codes(self, ids: np.ndarray, grid: Grid) -> np.ndarray:
        """Ids of the open slots -> codes (frames, rows, columns)."""
        if self.table is None:
            return (ids - self.ids.start).reshape(grid)
        order = np.argsort(self.table)
        return order[np.searchsorted(np.asarray(self.table), ids, sorter=order)].reshape(grid)

    def id_of(self, code: int) -> int:
        return self.ids.start + code if self.table is None or code >= len(self.table) else self.table[code]


@dataclass(frozen=True)
class FramesLayout(WrittenLayout):
    """Frames of `quantizers` codes each, as many as it takes (sound): each quantizer has ids of its own. Causal.

    begin  a b  a b  ...  a b  end      `ids`: end, all a's, all b's; `end` may come wherever a frame may, but for the first one
    begin  w a a a  w a a  ...    end    with `num_words`: behind those so many ids more, of words, each before the frames that say it

    Words among the frames say which one is being said, and whoever writes them need not find it out (inner monologue: Défossez et al., 2024,
    arXiv:2410.00037; before the frames of each: Song et al., 2024, arXiv:2401.07333). They are codes of their own, behind the codec's. On the second
    axis they begin where the segment before does, the text where speech is asked for, and each stands, with its frames, beside its like there: what
    is said next always lies one place further. `says`: the words' codes for the ids of a text; of a text before it all words are said, and no others.

    begin  c a  t a a  . a  . a a  end    with `ahead` (2 here) each letter of "cat" stands where the one so many before it is heard

    What a text writes with one id of its own has to be known by heart to be said; letters and phones do not, if some that follow are known too.
    The last ones have none to come with them, there code 0 stands. At most `most` frames stand beside them (0: whatever there is room for).

    Every code has a slot of its own. A frame's later codes are drawn knowing its first, as by a depth predictor (Lee et al., 2022,
    arXiv:2203.01941), but by the decoder itself; none is drawn blindly, as in a delay pattern (Copet et al., 2023, arXiv:2306.05284).
    """

    begin: int
    ids: Span
    quantizers: int = 1
    num_words: int = 0
    says: Callable[[Sequence[int]], Sequence[int]] | None = field(default=None, hash=False)
    ahead: int = 0
    most: int = 0

    def __post_init__(self):
        if self.quantizers < 1 or len(self.ids) <= 1 + self.num_words or (len(self.ids) - 1 - self.num_words) % self.quantizers:
            raise InputError(
                f"{len(self.ids)} ids for {self.quantizers} quantizers and {self.num_words} words: one for the end, as many of each, and the words"
            )
        if self.num_words < 0 or self.num_words and self.quantizers > 1:
            raise InputError(f"{self.num_words} words among frames of {self.quantizers} codes: words need frames of one code")
        if self.ahead < 0 or self.ahead and self.says is None:
            raise InputError(f"{self.ahead} words ahead: use 0 or more, and `says`, the words of a text")

    @property
    def end(self) -> int:
        return self.ids.start

    @property
    def num_codes(self) -> int:
        """Of one quantizer."""
        return (len(self.ids) - 1 - self.num_words) // self.quantizers

    @property
    def hideable(self) -> Span:
        """Not the words: they are what is left to go by."""
        return Span(self.ids.start, self.ids.stop - self.num_words)

    @lru_cache(maxsize=2048)  # noqa: B019 - as many lengths as clips may have
    def script(self, grid: Grid) -> Script:
        frames, rows, columns = grid
        if frames < 1 or (rows, columns) != (1, self.quantizers):
            raise InputError(f"{grid} codes cannot be written by this layout: use (frames, 1, {self.quantizers}), at least 1 frame")
        spans = [Span(self.end + 1 + n * self.num_codes, self.end + 1 + (n + 1) * self.num_codes) for n in range(self.quantizers)]
        if self.num_words:
            spans = [Span(self.end + 1, self.ids.stop)]
        later = [Span(self.end, spans[0].stop), *spans[1:]]
        places_N3 = np.array([0, *np.repeat(np.arange(1, frames + 1), columns), frames + 1])[:, None].repeat(3, 1)
        moves = None
        if self.num_words:
            places_N3[:, 1], moves = 0, Span(self.hideable.stop, self.ids.stop)
        return script([self.begin, *spans, *later * (frames - 1), self.end], places_N3, grid, stops=(self.end,), moves=moves, ahead=self.ahead)

    def beside(self, before: Sequence[Written]) -> int:
        return before[-1].span if self.num_words and before else 0

    def owed(self, before: Sequence[Written]) -> Sequence[int] | None:
        if self.says is None or not before:
            return None
        codes = self.says(before[-1].ids_N.tolist())
        if any(not 0 <= code < self.num_words for code in codes):
            raise InputError(f"a text is said in codes of words beyond 0..{self.num_words - 1}: use those alone")
        said = [self.hideable.stop + code for code in codes]
        return [*said, *[self.hideable.stop] * self.ahead] if said else None

    def room(self, grid: Grid, owed: Sequence[int] | None) -> Grid:
        return (min(grid[0], self.most + len(owed or ())), *grid[1:]) if self.most else grid

    def write(self, codes: np.ndarray, learn: bool = False) -> Written:
        codes = np.asarray(codes)
        if not np.issubdtype(codes.dtype, np.integer):
            raise InputError(f"codes of type {codes.dtype}: pass whole numbers")
        codes = codes.reshape(-1, codes.shape[-1]) if codes.ndim else codes.reshape(1, 1)
        if codes.size and not 0 <= codes.min() <= codes.max() < self.num_codes + self.num_words:
            raise InputError(f"codes {codes.min()}..{codes.max()}: this layout writes codes 0..{self.num_codes + self.num_words - 1}")
        ids = codes + self.end + 1 + np.arange(codes.shape[1]) * self.num_codes
        written = self.script((len(codes), 1, codes.shape[1])).write(ids, learn)
        written.choice_N[-1] = True  # where a head wrote codes it also chose to end them
        if self.ahead:  # the first ones come whatever a head says
            written.choice_N[1 : 1 + self.ahead] &= written.ids_N[1 : 1 + self.ahead] < self.hideable.stop
        return written

    def codes(self, ids: np.ndarray, grid: Grid) -> np.ndarray:
        """Ids of the open slots -> codes (frames, 1, quantizers) of all frames that are complete, and of the words among them."""
        ids = ids[ids != self.end]
        frames_TK = ids[: len(ids) // self.quantizers * self.quantizers].reshape(-1, self.quantizers)
        return (frames_TK - self.end - 1 - np.arange(self.quantizers) * self.num_codes)[:, None]

    def id_of(self, code: int) -> int:
        return self.end + 1 + code


@dataclass(frozen=True)
class VectorsLayout:
    """A segment that is only read: begin, N vectors of an encoder, end. With `whole` the vectors read each other."""

    begin: int
    end: int
    whole: bool = True
    flat: bool = False

    @lru_cache(maxsize=256)  # noqa: B019
    def script(self, grid: Grid) -> Script:
        if min(grid) < 1:
            raise InputError(f"a segment of {grid} vectors: nothing to read; pass at least one vector")
        count = grid[0] * grid[1] * grid[2]
        places = line(count + 2) if self.flat else framed(grid, 1, False, 1)
        return script([self.begin, *[VECTOR] * count, self.end], places, grid, self.whole)

    def write(self, prepared: Prepared, encoder: str) -> Written:
        return self.script(prepared.grid).write(encoder=encoder, prepared=prepared)
