"""A task -> the batches of each update: one to each rank, or several where gradients are accumulated."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from mmgpt.errors import TrainingError
from mmgpt.train.ranks import ALONE, Ranks


@runtime_checkable
class Task(Protocol):
    """What is trained: `batch(step)` is a pure function of the step and the task's seed.

    A task may offer more; the loop asks for it where it is there:
    share(step, number, of)  part `number` of the `of` parts of `batch(step)`: for several ranks, and for accumulated gradients.
                             Every part goes through the model as often as the others do (ranks wait for one another there)
    rank, world              instead of `share`: set before the first batch, and each rank draws batches of its own
    counts(batch)            the targets of each head; `losses(batch, counts)` then divides by these instead of by its own numbers,
                             so that parts add up to what the whole would have given
    work(batch)              what is computed for it, a `Work`
    ids(batch)               the names of what is in it, for the report on a batch that could not be learned
    data_state(), load_data_state(state)   where its data stand, where that is no function of the step
    """

    model: nn.Module

    def batch(self, step: int) -> Any: ...
    def losses(self, batch: Any) -> tuple[Tensor, dict[str, float]]: ...  # what is minimised; figures to show
    def size(self, batch: Any) -> int: ...  # positions (or pictures) in a batch, for the rate
    def sample(self, folder: Path, step: int) -> None: ...  # shows what the model can do so far
    def export(self, folder: Path, weights: dict[str, Tensor]) -> None: ...  # the finished checkpoint
    def compile(self) -> None: ...  # torch.compile, in place, what is worth it


@dataclass(frozen=True)
class Work:
    """What a batch costs: floating-point operations of a training step, and positions that hold nothing, of all that are computed."""

    flops: float
    empty: int
    positions: int


def introduce(task: Task, ranks: Ranks, accumulate: int) -> None:
    """Tells a task which rank it works for; refuses one that would give every rank the same."""
    if hasattr(task, "world"):
        task.rank, task.world = ranks.rank, ranks.world
    elif ranks.world > 1 and not hasattr(task, "share"):
        raise TrainingError(
            f"{ranks.world} ranks, and {type(task).__name__} makes batches for 1: give it share(step, number, of), or start without torchrun"
        )
    if ranks.world * accumulate > 1 and hasattr(task, "share"):
        task.share(0, 0, ranks.world * accumulate)  # says at once where a batch has too few parts


def pieces(task: Task, step: int, accumulate: int = 1, ranks: Ranks = ALONE) -> list[Any]:
    """This rank's batches of one update, `accumulate` of them.

    Of a task that shares its batches out they are parts of one batch, which is the same whatever the number of ranks:
    2 ranks, 2 accumulated     rank 0: parts 0 and 2 of 4     rank 1: parts 1 and 3 of 4
    Of another they follow each other.
    """
    parts = accumulate * ranks.world
    if parts > 1 and hasattr(task, "share"):
        return [task.share(step, number * ranks.world + ranks.rank, parts) for number in range(accumulate)]
    return [task.batch(step * accumulate + number) for number in range(accumulate)]


def batches(task: Task, start: int, workers: int, accumulate: int = 1, ranks: Ranks = ALONE) -> Iterator[list[Any]]:
    """The batches of the updates from `start` on. As each is a function of its step alone, any process may make it."""
    if not workers:
        return (pieces(task, step, accumulate, ranks) for step in count(start))
    from torch.utils.data import DataLoader

    made, order = Made(task, accumulate, ranks), range(start, 2**31)
    return iter(DataLoader(made, None, sampler=order, num_workers=workers, collate_fn=as_is, multiprocessing_context="fork", prefetch_factor=4))


class Made:
    """What a loader's worker asks for its steps; the workers are forks, so that nothing is copied."""

    def __init__(self, task: Task, accumulate: int, ranks: Ranks):
        self.task, self.accumulate, self.ranks = task, accumulate, ranks

    def __getitem__(self, step: int) -> list[Any]:
        import torch

        torch.set_num_threads(1)
        return pieces(self.task, step, self.accumulate, self.ranks)


def as_is(batch: Any) -> Any:
    return batch
