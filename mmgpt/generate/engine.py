"""Requests (given parts, what to write, how) -> values. One loop for all modalities: rows of a batch may write different ones.

A row reads its document once, then goes on id by id: the layout's automaton says what may come next, the port's head scores
just those ids, one is drawn, and whatever the layout forces after it rides along into the same next step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from torch import Tensor

from mmgpt.errors import GuidanceError, InputError
from mmgpt.generate.best import best
from mmgpt.generate.guidance import guide
from mmgpt.generate.sampling import Sampling, choose
from mmgpt.layout import Automaton, Choice, Span
from mmgpt.model import evaluating
from mmgpt.pack import Document, length, pack
from mmgpt.types import Grid, Part, Segment, Stream, Usage, Written

BATCH = 64  # rows that step together; more requests wait for the next batch
MAX_BEST_OF = 1024


@dataclass(frozen=True)
class Request:
    """What one row is to do. What is None takes the port's own: how to sample, the scale of guidance, the size to write in codes.

    The port's own guidance applies where there are words to leave out; one that is asked for applies or is refused.
    Of `best_of` results the best is kept, see `generate.best`.
    """

    parts: Sequence[Segment | Part]
    to: str = "text"
    sampling: Sampling | None = None
    guidance: float | None = None
    seed: int = 0
    grid: Grid | None = None
    best_of: int = 1

    def __post_init__(self):
        if not isinstance(self.best_of, int) or not 1 <= self.best_of <= MAX_BEST_OF:
            raise InputError(f"best_of={self.best_of}: use a whole number from 1 to {MAX_BEST_OF}")
        if not isinstance(self.to, str) or not isinstance(self.guidance, (int, float, type(None))):
            raise InputError(f"to={self.to!r}, guidance={self.guidance!r}: use a modality's name, and a number or None")
        if not isinstance(self.sampling, (Sampling, type(None))):
            raise InputError(f"sampling={self.sampling!r}: pass mmgpt.Sampling(temperature=...) or None")
        grid = () if self.grid is None else self.grid
        if not isinstance(grid, tuple) or not all(isinstance(n, int) for n in grid):
            raise InputError(f"grid={grid!r}: use (frames, rows, columns) in codes; (1, 1, n) for at most n ids of text")
        if isinstance(self.parts, str) or not isinstance(self.parts, Sequence) or not self.parts:
            raise InputError(f"parts of type {type(self.parts).__name__}: pass a list of at least one segment, for example [picture, 'caption:']")
        if all(isinstance(part, str) and not part.strip() for part in self.parts):
            raise InputError('0 words to go by: say what to write (Part("") asks for what the model writes unasked)')
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise InputError(f"seed={self.seed}: use a whole number from 0 to 2^63 - 1")


@dataclass(frozen=True)
class Result:
    """What a row wrote: the value, its codes, every id of the segment, their log-probability, and what it took."""

    value: Segment
    codes: np.ndarray
    ids: tuple[int, ...]
    log_probability: float
    usage: Usage = field(default_factory=Usage)


@dataclass
class Row:
    """One document that is being continued. A guided request has two: its own and the unconditional one."""

    document: Document
    automaton: Automaton
    pending: list[int] = field(default_factory=list)
    base: int = 0
    block: int = 0

    def __post_init__(self):
        self.base = sum(written.span for written in self.document)
        self.block = sum(len(written) - int((written.whole_N[1:] & written.whole_N[:-1]).sum()) for written in self.document)


class Task:
    """A request at work: its rows, its random numbers, what it has written."""

    def __init__(self, gpt, request: Request):
        if request.to not in gpt.heads:
            raise InputError(f"to={request.to!r}: this model writes {', '.join(gpt.heads)}")
        self.request, self.port, self.head = request, gpt.ports[request.to], gpt.heads[request.to]
        parts = [part if isinstance(part, Part) else Part(part) for part in request.parts]
        grid = request.grid or self.port.grid
        if grid is None:
            raise InputError(f"to={request.to!r} has no size of its own: pass grid=(frames, rows, columns) in codes")
        if len(grid) != 3 or prod(grid) > gpt.max_length:  # before a script of that size is made
            raise InputError(f"a size of {prod(grid)} codes, {grid}: use (frames, rows, columns), together at most {gpt.max_length}")
        self.script = self.port.writes.script(grid)
        self.sampling = request.sampling or self.port.sampling
        self.guidance = self.scale(parts)
        samples = [parts] if self.guidance == 1 else [parts, self.port.unconditional(parts)]
        self.rows = [Row(gpt.write(sample), Automaton([self.script])) for sample in samples]
        self.check_length(gpt.max_length)
        # torch's generator reads 32 bits of a seed
        self.generator = torch.Generator().manual_seed((request.seed ^ (request.seed >> 32) * 0x9E3779B1) % 2**32)
        self.ids: list[int] = []
        self.log_probability = 0.0

    def scale(self, parts: Sequence[Part]) -> float:
        asked = self.request.guidance
        if asked is not None:
            if not 0 <= asked <= 100:
                raise GuidanceError(f"guidance={asked}: use 0 to 100 (1 is none)")
            return float(asked)
        has_words = any(isinstance(part.value, str) and part.value and not part.learn for part in parts)
        return self.port.guidance if has_words else 1.0

    def check_length(self, limit: int) -> None:
        if not all(length(row.document) or row.automaton.next().forced is not None for row in self.rows):
            empty = "its unconditional form has" if length(self.rows[0].document) else "the request has"
            raise InputError(f"{empty} 0 positions to read, and this model opens a document with no id of its own: say more, or use guidance=1")
        longest = max(length(row.document) for row in self.rows) + len(self.script)
        if longest > limit:
            raise InputError(f"{longest} positions to read and write, this model holds {limit}: shorten the prompt or ask for less")

    def push(self, id: int) -> None:
        """Notes an id, and every forced id behind it."""
        self.ids.append(id)
        for row in self.rows:
            row.automaton.push(id)
            row.pending.append(id)

    def push_forced(self) -> Choice | None:
        """Pushes what the layout forces; the choice that a head has to make then, None when the segment is complete."""
        while (choice := self.rows[0].automaton.next()) is not None and choice.forced is not None:
            self.push(choice.forced)
        return choice

    def result(self) -> Result:
        open_N = self.script.open_N[: len(self.ids)]
        codes = self.port.writes.codes(np.asarray(self.ids, np.int64)[open_N], self.script.grid)
        usage = Usage({"positions": length(self.rows[0].document)}, {self.request.to: len(self.ids)})
        return Result(self.port.codec.decode(codes), codes, tuple(self.ids), self.log_probability, usage)


@torch.inference_mode()
def run(gpt, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None) -> list[Result]:
    """All requests' results, in order. `progress(done, of)` is called after each step. The model is left as it was found."""
    with evaluating(gpt):
        if any(request.best_of > 1 for request in requests):
            return best(gpt, requests, lambda some: run(gpt, some, progress))
        tasks = [Task(gpt, request) for request in requests]  # every mistake is found before anything is computed
        results = []
        for start in range(0, len(tasks), BATCH):
            results += run_batch(gpt, tasks[start : start + BATCH], progress, start, len(tasks))
        return results


def run_batch(gpt, tasks: list[Task], progress, done: int, of: int) -> list[Result]:
    choices = [task.push_forced() for task in tasks]
    rows = [row for task in tasks for row in task.rows]
    cache = gpt.decoder.new_cache(len(rows), cache_length(rows, tasks))
    h_RD = prefill(gpt, rows, cache)
    while any(choice is not None for choice in choices):
        draw_all(tasks, choices, h_RD)
        choices = [task.push_forced() for task in tasks]
        if progress is not None:
            progress(done + sum(choice is None for choice in choices), of)
        if all(choice is None for choice in choices):
            break
        h_RD = step(gpt, rows, cache)
    return [task.result() for task in tasks]


def cache_length(rows: Sequence[Row], tasks: Sequence[Task]) -> int:
    """Columns that suffice: the longest prompt, every sampled slot, and every forced slot of every request, as they may not align."""
    forced = sum(int((~task.script.open_N).sum()) for task in tasks)
    return max(length(row.document) + len(row.pending) for row in rows) + max(len(task.script) for task in tasks) + forced


def draw_all(tasks: Sequence[Task], choices: Sequence[Choice | None], h_RD: Tensor) -> None:
    """Draws an id for each task that has a choice; tasks that choose among the same ids of a head are scored together."""
    groups: dict[tuple, list[tuple[Task, Choice, Tensor]]] = {}
    for task, choice, h in zip(tasks, choices, h_RD.split([len(task.rows) for task in tasks]), strict=True):
        if choice is not None:
            groups.setdefault((task.request.to, choice), []).append((task, choice, h))
    for (_, choice), members in groups.items():
        rows = Span(choice.spans[0].start, choice.spans[-1].stop)
        logits_RV = members[0][0].head.logits(torch.cat([h for *_, h in members]), rows).float()
        for (task, *_), logits in zip(members, logits_RV.split([len(h) for *_, h in members]), strict=True):
            draw(task, choice, rows, logits)


def draw(task: Task, choice: Choice, rows: Span, logits_RV: Tensor) -> None:
    """Guides the scores of the ids `rows`, draws one that may come next."""
    logits_V = logits_RV[0] if len(logits_RV) == 1 else guide(logits_RV[0], logits_RV[1], task.guidance)
    if len(choice.spans) > 1:  # ids between the spans may not come next
        allowed = torch.tensor([any(rows.start + i in span for span in choice.spans) for i in range(len(rows))], device=logits_V.device)
        logits_V = logits_V.masked_fill(~allowed, -torch.inf)
    before = set(task.ids) if task.sampling.repetition_penalty != 1 else ()
    seen = torch.tensor([id - rows.start for id in before if id in rows], dtype=torch.long, device=logits_V.device)
    index = choose(logits_V, task.sampling, task.generator, seen)
    task.log_probability += float(logits_V.log_softmax(-1)[index])
    task.push(rows.start + index)


def prefill(gpt, rows: Sequence[Row], cache) -> Tensor:
    """Reads all documents and the ids forced after them in one pass; the vector at the last position of each row."""
    documents = [[*row.document, continued(row)] for row in rows]
    stream = pack(documents, {}).to(gpt.device)
    h_RTD = gpt(stream, cache)
    last = torch.tensor([length(document) - 1 for document in documents], device=h_RTD.device)
    return h_RTD[torch.arange(len(rows), device=h_RTD.device), last]


def continued(row: Row) -> Written:
    """The pending ids of a row as a written segment; they are pending no more."""
    ids, places = np.asarray(row.pending, np.int64), places_of(row)
    row.block += len(ids)
    row.pending = []
    none = np.zeros(len(ids), bool)
    return Written(ids, none, none, places, 0)


def places_of(row: Row) -> np.ndarray:
    """Places of the pending ids, the last ones that the automaton has passed."""
    stop = row.automaton.length
    return row.automaton.script.place_N3[stop - len(row.pending) : stop]


def step(gpt, rows: Sequence[Row], cache) -> Tensor:
    """Reads every row's pending ids; the vector at each row's last one. Rows with fewer ids leave holes (document 0)."""
    columns = max(1, max(len(row.pending) for row in rows))
    ids, document, block = (torch.zeros(len(rows), columns, dtype=torch.long) for _ in range(3))
    position = torch.zeros(len(rows), columns, 3, dtype=torch.long)
    last = torch.zeros(len(rows), dtype=torch.long)
    for r, row in enumerate(rows):
        n = len(row.pending)
        if n:
            ids[r, :n], document[r, :n] = torch.tensor(row.pending), 1
            position[r, :n] = torch.from_numpy(places_of(row) + row.base)
            block[r, :n] = torch.arange(row.block, row.block + n)
            last[r], row.block, row.pending = n - 1, row.block + n, []
    h_RTD = gpt(Stream(ids, document, block, position).to(gpt.device), cache)
    return h_RTD[torch.arange(len(rows), device=h_RTD.device), last.to(h_RTD.device)]
