"""What is asked of the engine, what it answers, and what it tells on the way."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mmgpt.errors import InputError
from mmgpt.generate.guidance import Guidance
from mmgpt.generate.sampling import Sampling
from mmgpt.types import Grid, Part, Segment, Usage

MAX_BEST_OF = 1024
ANY = "any"  # the model says what it writes


@dataclass(frozen=True)
class Request:
    """What one row is to do. What is None takes the port's own: how to sample, the scale of guidance, the size to write in codes.

    `to`        a modality; several, one behind the other; or "any": text, in which the model begins a picture where it likes
    `grid`      (frames, rows, columns) in codes, for text (1, 1, at most so many ids); of several modalities one each
    `guidance`  a scale or a `Guidance`. The port's own applies where there are words to leave out; one that is asked for applies or is refused
    `stop`      words that end a text, and are no part of it
    `best_of`   of so many results the best is kept, see `generate.best`
    `guess`     so many next ids are guessed from how what was read and written went on before, and checked in one step: the result is the same
    `beams`     so many continuations of a text are followed side by side, see `generate.beam`, and compared by their log-probability divided by
                their length to the power of `length_penalty`
    """

    parts: Sequence[Segment | Part]
    to: str | tuple[str, ...] = "text"
    sampling: Sampling | None = None
    guidance: float | Guidance | None = None
    seed: int = 0
    grid: Grid | tuple[Grid | None, ...] | None = None
    best_of: int = 1
    stop: tuple[str, ...] = ()
    guess: int = 0
    beams: int = 1
    length_penalty: float = 1.0

    def __post_init__(self):
        if not isinstance(self.best_of, int) or not 1 <= self.best_of <= MAX_BEST_OF:
            raise InputError(f"best_of={self.best_of}: use a whole number from 1 to {MAX_BEST_OF}")
        if self.best_of > 1 and (self.beams > 1 or not isinstance(self.to, str) or self.to == ANY):
            raise InputError(
                f"best_of={self.best_of} of to={self.to!r} with beams={self.beams}: the best of several is of one segment, without beams"
            )
        if not isinstance(self.beams, int) or not 1 <= self.beams <= 64 or not -10 <= self.length_penalty <= 10:
            raise InputError(f"beams={self.beams}, length_penalty={self.length_penalty}: use 1 to 64 beams, a penalty from -10 to 10")
        if not isinstance(self.guess, int) or not 0 <= self.guess <= 64:
            raise InputError(f"guess={self.guess}: use 0 to 64 ids")
        names = self.to if isinstance(self.to, tuple) and self.to else (self.to,)
        if not all(isinstance(name, str) for name in names) or not isinstance(self.guidance, (int, float, Guidance, type(None))):
            raise InputError(f"to={self.to!r}, guidance={self.guidance!r}: use the name of a modality or several in a tuple, and a number or None")
        if not isinstance(self.sampling, (Sampling, type(None))):
            raise InputError(f"sampling={self.sampling!r}: pass mmgpt.Sampling(temperature=...) or None")
        sizes = self.grid if isinstance(self.to, tuple) and isinstance(self.grid, tuple) else (self.grid,)
        if len(sizes) != len(names) and self.grid is not None:
            raise InputError(f"{len(sizes)} sizes for {len(names)} segments: pass one each, None for its own")
        for size in sizes:
            if size is not None and not (isinstance(size, tuple) and all(isinstance(n, int) for n in size)):
                raise InputError(f"grid={size!r}: use (frames, rows, columns) in codes; (1, 1, n) for at most n ids of text")
        if isinstance(self.parts, str) or not isinstance(self.parts, Sequence) or not self.parts:
            raise InputError(f"parts of type {type(self.parts).__name__}: pass a list of at least one segment, for example [picture, 'caption:']")
        if all(isinstance(part, str) and not part.strip() for part in self.parts):
            raise InputError('0 words to go by: say what to write (Part("") asks for what the model writes unasked)')
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise InputError(f"seed={self.seed}: use a whole number from 0 to 2^63 - 1")
        if not isinstance(self.stop, (tuple, list)) or not all(isinstance(words, str) and words for words in self.stop):
            raise InputError(f"stop={self.stop!r}: use a tuple of texts of at least 1 character")

    @property
    def wanted(self) -> list[tuple[str, Grid | None]]:
        """The segments to write, with their sizes."""
        names = self.to if isinstance(self.to, tuple) else (self.to,)
        sizes = self.grid if isinstance(self.to, tuple) and self.grid is not None else (self.grid,) * len(names)
        return list(zip(names, sizes, strict=True))

    @property
    def sample(self) -> list[Part]:
        return [part if isinstance(part, Part) else Part(part) for part in self.parts]


@dataclass(frozen=True)
class Result:
    """What a row wrote: the value (a list of them where several were asked for), the last one's codes, every id, their log-probability, and
    what it took. `parts` go into the next request behind what was asked here, and a conversation goes on."""

    value: Segment
    codes: np.ndarray
    ids: tuple[int, ...]
    log_probability: float
    usage: Usage = field(default_factory=Usage)
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Begun:
    """A segment of this modality begins; of this size, if it has one."""

    to: str
    grid: Grid


@dataclass(frozen=True)
class Delta:
    """More text. All deltas of a segment together are its value."""

    text: str


@dataclass(frozen=True)
class Preview:
    """What there is of a segment of codes: so many of its rows, or of its frames where it has several (of a clip of sprites 1 of 2: what moves)."""

    value: Segment
    rows: int
    of: int


@dataclass(frozen=True)
class Chunk:
    """More of a sound. All chunks of a segment behind each other are its value."""

    value: Segment


@dataclass(frozen=True)
class Ended:
    """A segment is complete."""

    part: Part


@dataclass(frozen=True)
class Done:
    """The request is."""

    result: Result


Event = Begun | Delta | Preview | Chunk | Ended | Done
