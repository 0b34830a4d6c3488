"""Sources, weights, one way to write -> what all lanes share; and the order in which one lane reads one source."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mmgpt.data.chance import number, permuted
from mmgpt.data.row import Row, Source
from mmgpt.data.samples import Form
from mmgpt.errors import DataError
from mmgpt.pack import Document
from mmgpt.script import Span
from mmgpt.types import Sample


@dataclass(frozen=True)
class Mixture:
    """What is read and how it is packed; with a lane's number and state it decides every row of the lane.

    sources       with `weights` (the sources' sizes where there are none) to the power of 1 / `temperature`: 1 as they are, infinity all alike
    write, heads  `GPT.write` and `GPT.spans`; `begins` is 1 where every document is led by a control id
    lanes         how many there are: the rows of the global batch
    waiting       documents among which those are chosen that fill a row best
    long          what happens to documents longer than a row: "split" between segments, or "refuse"
    window        blocks of a source that a lane has open at once, and mixes
    max_bad       share of the last `watched` samples of a lane that may be bad; more stop the run
    seconds       of the processor, for one sample
    """

    sources: tuple[Source, ...]
    write: Callable[[Sample], Document]
    heads: Mapping[str, Span]
    row_length: int
    lanes: int
    begins: int = 0
    weights: tuple[float, ...] = ()
    temperature: float = 1.0
    form: Form = field(default_factory=Form)
    seed: int = 0
    waiting: int = 48
    long: str = "split"
    window: int = 4
    max_bad: float = 0.05
    watched: int = 1000
    seconds: float = 5.0

    def __post_init__(self):
        if not self.sources or len(self.weights) not in (0, len(self.sources)) or any(not weight > 0 for weight in self.weights):
            raise DataError(
                f"{len(self.sources)} sources with weights {self.weights}: give at least one source, and a weight above 0 for each or for none"
            )
        if min(self.row_length, self.lanes, self.waiting, self.window, self.watched) < 1 or not 0 <= self.max_bad <= 1 or self.long not in LONG:
            raise DataError(
                f"row_length={self.row_length}, lanes={self.lanes}, waiting={self.waiting}, window={self.window}, max_bad={self.max_bad}, "
                f"long={self.long!r}: use at least 1 of each, a share from 0 to 1, and one of {', '.join(LONG)}"
            )
        if not self.temperature > 0 or not self.seconds > 0:
            raise DataError(f"temperature={self.temperature}, seconds={self.seconds}: use numbers above 0")

    @property
    def shares(self) -> list[float]:
        """How often each source is drawn from."""
        weights = self.weights or tuple(float(source.size) for source in self.sources)
        tempered = [(weight / max(weights)) ** (1 / self.temperature) for weight in weights]
        return [weight / sum(tempered) for weight in tempered]

    @property
    def stamp(self) -> dict[str, object]:
        """What must be the same for a lane's state to mean the same."""
        sources = [[source.name, source.stamp, source.num_blocks] for source in self.sources]
        return {"sources": sources, "shares": self.shares, "form": vars(self.form).copy()} | {
            name: getattr(self, name) for name in ("lanes", "row_length", "seed", "waiting", "long", "window", "max_bad", "watched")
        }


LONG = ("split", "refuse")


class Draws:
    """One source as one lane reads it, for ever: each epoch every sample once among all lanes, in an order of its own.

    Blocks are cut into slices where there are fewer blocks than lanes. The slices of an epoch are permuted and dealt to the lanes in
    turn; a lane has `window` of its slices open and draws from them at random, and the rows of a slice are permuted too.
    The state is how many slices were opened, how many samples drawn, and how far each open slice is.
    """

    def __init__(self, mixture: Mixture, which: int, lane: int, state: Mapping):
        self.source, self.mixture, self.lane, self.key = mixture.sources[which], mixture, lane, (mixture.seed, "source", which)
        self.slices = -(-mixture.lanes // self.source.num_blocks)
        self.num = self.slices * self.source.num_blocks
        self.opened, self.drawn, self.open = state.get("opened", 0), state.get("drawn", 0), [list(at) for at in state.get("open", ())]
        self.held: dict[int, tuple[int, int, Sequence]] = {}  # the open blocks, by place; read again after a resume

    def state(self) -> dict[str, object]:
        return {"opened": self.opened, "drawn": self.drawn, "open": [list(at) for at in self.open]}

    def next(self) -> tuple[int, int]:
        """(place, row) of the next sample: the place of its slice in the endless order of all epochs, and its index in the block."""
        self.fill()
        chosen = number(*self.key, "pick", self.lane, self.drawn) % len(self.open)
        place, taken = self.open[chosen]
        count = self.count(place)
        row = self.opened_at(place)[1] + self.slices * permuted(taken, count, *self.key, "rows", place)
        self.drawn, self.open[chosen][1] = self.drawn + 1, taken + 1
        if taken + 1 == count:
            self.open.pop(chosen)
        return place, row

    def fill(self) -> None:
        """Opens slices, of one epoch at a time: no sample comes twice before all have come once."""
        empty = 0
        while len(self.open) < self.mixture.window:
            place = self.opened * self.mixture.lanes + self.lane
            if self.open and place // self.num != self.open[0][0] // self.num:
                return
            self.opened += 1
            if self.count(place):
                self.open.append([place, 0])
            elif not self.open and (empty := empty + 1) > self.num:
                raise DataError(f"{self.source.name!r} has 0 samples for lane {self.lane} in {self.num} places; put some into it, or use fewer rows")

    def unit(self, place: int) -> tuple[int, int]:
        """(block, which slice of it) at a place."""
        return divmod(permuted(place % self.num, self.num, *self.key, "blocks", place // self.num), self.slices)

    def count(self, place: int) -> int:
        """How many rows the slice has."""
        _, first, rows = self.opened_at(place)
        return len(range(first, len(rows), self.slices))

    def opened_at(self, place: int) -> tuple[int, int, Sequence]:
        """(block, slice, rows of the block) at a place. Only those of open slices are kept."""
        if place not in self.held:
            kept = {at for at, _ in self.open}
            self.held = {at: unit for at, unit in self.held.items() if at in kept}
            block, first = self.unit(place)
            self.held[place] = (block, first, self.source.rows(block))
        return self.held[place]

    def row(self, place: int, row: int) -> Row:
        """The sample at an address; raises a `MmgptError` where it is broken."""
        return self.opened_at(place)[2][row]

    def where(self, place: int, row: int) -> tuple[str, int]:
        return self.source.where(self.unit(place)[0], row)
