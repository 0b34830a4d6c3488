"""A task (a model, its batches, its losses) + settings -> a trained model in a folder. The whole loop is in this file.

Everything that decides the next update is either in the checkpoint (weights, optimizer, EMA, step) or a function of
(seed, step): so a run that was stopped goes on exactly as if it had not been. (With `minutes` the learning rate follows the
clock: such a run goes on from where it was, but no two of them are alike.)
"""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mmgpt.errors import CheckpointError, TrainingError
from mmgpt.model import evaluating
from mmgpt.train.log import Log
from mmgpt.train.muon import Muon, matrices
from mmgpt.train.saves import Saves, State, about_run, begin, data_of, give_data


@dataclass(frozen=True)
class Settings:
    """How to train. `minutes` ends a run by the clock instead of by `steps`: the learning rate then decays by the clock too."""

    steps: int = 1000
    minutes: float = 0.0
    learning_rate: float = 1e-3
    warmup: int = 100
    decay: float = 1.0  # share of the run, at its end, over which the rate falls (cosine) to a fiftieth
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    muon: bool = False  # for the weights of linear and convolutional layers, at the same learning rate; AdamW for the rest
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    save_every: int = 500
    keep_last: int = 2  # saved states; there must be room for one more, which is written before an old one goes
    keep_every: int = 0  # and for good those at every so many steps; 0: none
    sample_every: int = 500  # 0: never
    log_every: int = 20
    compile: bool = False
    workers: int = 0  # processes that prepare batches ahead: the same batches, whatever their number

    def __post_init__(self):
        if self.steps < 1 or not 0 < self.learning_rate < 1e9 or not 0 <= self.ema < 1 or not 0 < self.decay <= 1 or not self.minutes >= 0:
            raise TrainingError(
                f"steps={self.steps}, learning_rate={self.learning_rate}, ema={self.ema}, decay={self.decay}, minutes={self.minutes}: "
                "use at least 1 step, a positive rate, ema from 0 to below 1, decay above 0 and at most 1, minutes of 0 or more"
            )
        if (
            not self.clip > 0
            or min(self.log_every, self.keep_last) < 1
            or min(self.warmup, self.save_every, self.keep_every, self.sample_every, self.weight_decay, self.workers) < 0
            or len(self.betas) != 2
        ):
            raise TrainingError(
                f"clip={self.clip}, log_every={self.log_every}, keep_last={self.keep_last}, warmup={self.warmup}, "
                f"save_every={self.save_every}, keep_every={self.keep_every}, "
                f"sample_every={self.sample_every}, weight_decay={self.weight_decay}, betas={self.betas}: "
                "use a clip above 0, log_every and keep_last of at least 1, two betas, the rest 0 or more"
            )


@runtime_checkable
class Task(Protocol):
    """What is trained: `batch(step)` is a pure function of the step and the task's seed."""

    model: nn.Module

    def batch(self, step: int) -> Any: ...
    def losses(self, batch: Any) -> tuple[Tensor, dict[str, float]]: ...  # what is minimised; figures to show
    def size(self, batch: Any) -> int: ...  # positions (or pictures) in a batch, for the rate
    def sample(self, folder: Path, step: int) -> None: ...  # shows what the model can do so far
    def export(self, folder: Path, weights: dict[str, Tensor]) -> None: ...  # the finished checkpoint
    def compile(self) -> None: ...  # torch.compile, in place, what is worth it


class Trainer:
    """The state of a run: `step` counts finished updates, `progress` runs from 0 to 1."""

    def __init__(self, task: Task, settings: Settings):
        self.task, self.settings, self.step, self.spent = task, settings, 0, 0.0
        self.batches: Iterator[Any] | None = None  # begun at the first update, at the step of that time
        self.parameters = {name: p for name, p in task.model.named_parameters() if p.requires_grad}
        self.optimizers = optimizers(task.model, self.parameters, settings)
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        if settings.compile:
            task.compile()

    @property
    def progress(self) -> float:
        s = self.settings
        return min(1.0, self.spent / (60 * s.minutes) if s.minutes else self.step / s.steps)

    def rate(self) -> float:
        """Linear warm-up, constant, then cosine to a fiftieth over the last `decay` of the run."""
        s = self.settings
        falling = max(0.0, self.progress - (1 - s.decay)) / s.decay
        return s.learning_rate * min(1.0, (self.step + 1) / max(1, s.warmup)) * (0.51 + 0.49 * math.cos(math.pi * falling))

    def update(self) -> dict[str, float]:
        """One step: batch, losses, gradients, clipped update, average."""
        begin, rate = time.perf_counter(), self.rate()
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = rate * group["factor"]
        self.batches = self.batches or batches(self.task, self.step, self.settings.workers)
        batch = next(self.batches)
        device = next(iter(self.parameters.values())).device
        torch.manual_seed(self.settings.seed * 1_000_003 + self.step)  # dropout, too, is a function of (seed, step)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss, figures = self.task.losses(batch)
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss at step {self.step} is {loss.item()} ({figures}): lower learning_rate or look at this batch")
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
        if not torch.isfinite(norm):
            raise TrainingError(f"the gradient at step {self.step} is {norm.item()} ({figures}): lower learning_rate or look at this batch")
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        weight = min(self.settings.ema, self.step / (self.step + 10))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.parameters.values()], 1 - weight)
        seconds = time.perf_counter() - begin
        self.spent += seconds
        return {**figures, "loss": float(loss.detach()), "norm": float(norm), "rate": rate, "per_second": self.task.size(batch) / seconds}

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
        moments = {}
        for name, p in self.parameters.items():
            for optimizer in self.optimizers:
                moments |= {f"{name}:{key}": value for key, value in optimizer.state.get(p, {}).items()}
        weights = {name: p.detach() for name, p in self.parameters.items()}
        about = {"step": self.step, "spent": self.spent, "settings": asdict(self.settings)}
        files = {"weights.safetensors": weights, "average.safetensors": self.average, "optimizer.safetensors": moments}
        return files, {"run.json": json.dumps(about), **data_of(self.task)}

    def save(self, saves: Saves) -> None:
        saves.save(self.step, *self.state())

    def resume(self, state: State) -> None:
        """Goes on from a saved state. Shapes must be those of this task's model."""
        tensors, about = state.tensors, about_run(state, set(self.parameters), asdict(self.settings))
        self.step, self.spent = about["step"], about["spent"]
        first, asked = about["settings"], self.settings
        if self.progress >= 1 and (first["steps"], first["minutes"]) != (asked.steps, asked.minutes):
            raise TrainingError(
                f"{state.path} has {self.step} steps and {self.spent / 60:.1f} minutes behind it, "
                f"of steps={first['steps']} minutes={first['minutes']}; "
                f"steps={asked.steps} minutes={asked.minutes} are over already: repeat the words of the first start, or ask for more"
            )
        give_data(self.task, state)
        load_into(self.parameters, tensors["weights.safetensors"])
        load_into(self.average, tensors["average.safetensors"])
        moments: dict[str, dict[str, Tensor]] = {name: {} for name in self.parameters}
        for key, value in tensors["optimizer.safetensors"].items():
            moments[key.rpartition(":")[0]][key.rpartition(":")[2]] = value
        for optimizer in self.optimizers:
            mine = {p for group in optimizer.param_groups for p in group["params"]}
            for name, p in self.parameters.items():
                if p in mine and moments[name]:  # a weight that has had no gradient yet has no moments
                    optimizer.state[p] = {key: value.to(p.device) for key, value in moments[name].items()}


def optimizers(model: nn.Module, parameters: dict[str, nn.Parameter], settings: Settings) -> list[torch.optim.Optimizer]:
    """AdamW, with decay for what has two axes or more; with `muon`, Muon takes the weights of the layers.

    A model's `rates` (the beginning of a weight's name -> factor) give its parts learning rates of their own.
    """
    mine, rates = matrices(model) if settings.muon else set(), getattr(model, "rates", {})
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, p in parameters.items():
        factor = next((factor for prefix, factor in rates.items() if name.startswith(f"{prefix}.")), 1.0)
        groups.setdefault((p in mine, p.ndim >= 2, factor), []).append(p)
    of_each: dict[bool, list[dict]] = {False: [], True: []}
    for (muon, decays, factor), members in groups.items():
        of_each[muon].append({"params": members, "weight_decay": settings.weight_decay if decays else 0.0, "factor": factor})
    made: list[torch.optim.Optimizer] = []
    if of_each[False]:
        made.append(torch.optim.AdamW(of_each[False], lr=settings.learning_rate, betas=settings.betas, fused=True))
    if of_each[True]:
        made.append(Muon(of_each[True], settings.learning_rate))
    return made


def load_into(tensors: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.shape != values[name].shape:
            raise CheckpointError(f"{name} has shape {tuple(values[name].shape)} in the checkpoint, {tuple(tensor.shape)} here: use the same recipe")
        with torch.no_grad():
            tensor.copy_(values[name])


def batches(task: Task, start: int, workers: int) -> Iterator[Any]:
    """The batches of the steps from `start` on. As each is a function of its step alone, any process may make it."""
    if not workers:
        return (task.batch(step) for step in count(start))
    from torch.utils.data import DataLoader

    order = range(start, 2**31)
    return iter(
        DataLoader(Batches(task), None, sampler=order, num_workers=workers, collate_fn=as_is, multiprocessing_context="fork", prefetch_factor=4)
    )


class Batches:
    """What a loader's worker asks for its steps; the workers are forks, so that nothing is copied."""

    def __init__(self, task: Task):
        self.task = task

    def __getitem__(self, step: int) -> Any:
        torch.set_num_threads(1)
        return self.task.batch(step)


def as_is(batch: Any) -> Any:
    return batch


class Interruption:
    """Ctrl-C and SIGTERM ask for an end after the update that is under way: no state is ever half updated. Twice, they end it at once."""

    def __init__(self):
        self.asked = False

    def __enter__(self) -> "Interruption":
        main = threading.current_thread() is threading.main_thread()
        self.before = {s: signal.signal(s, self.ask) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
        return self

    def ask(self, number: int, frame: object) -> None:
        if self.asked:  # the second time it is meant: an update that hangs would never end
            raise KeyboardInterrupt("stopped in the middle of an update: nothing after the last saved state is kept")
        self.asked = True

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def train(task: Task, settings: Settings, folder: str | Path, resume: bool | str = False, show: Callable | None = None) -> Trainer:
    """Runs the loop to its end: writes states to go on from (`saves.py`), `folder/log.jsonl`, samples, and `folder/final` to use.

    `resume`: False begins, True goes on, "auto" goes on where there is something. Ctrl-C saves, then raises KeyboardInterrupt.
    `show(trainer, figures)` is called after every update.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with Log(folder) as log, Interruption() as interruption, Saves(folder, settings.keep_last, settings.keep_every, log.say) as saves:
        state = begin(folder, resume, log.say)
        torch.manual_seed(settings.seed)
        trainer = Trainer(task, settings)
        if state is not None:
            trainer.resume(state)
        saved, state = trainer.step, None  # its memory is free again
        while trainer.progress < 1 and not interruption.asked:
            try:
                figures = trainer.update()
            except TrainingError:  # found before anything was updated: what was learned so far is kept
                if trainer.step > saved:
                    trainer.save(saves)
                raise
            if trainer.step % settings.log_every == 0 or trainer.progress >= 1:
                log.write({"step": trainer.step, "minutes": round(trainer.spent / 60, 3), **figures})
            if show is not None:
                show(trainer, figures)
            if settings.save_every and trainer.step % settings.save_every == 0:
                trainer.save(saves)
                saved = trainer.step
            if settings.sample_every and trainer.step % settings.sample_every == 0:
                sampled(trainer, folder)
        if trainer.step > saved:
            trainer.save(saves)
        if interruption.asked:
            saves.close()  # says so where it could not be saved
            raise KeyboardInterrupt(f"stopped after step {trainer.step}, saved in {folder}: resume=true goes on")
        task.export(folder / "final", trainer.average)
    return trainer


def sampled(trainer: Trainer, folder: Path) -> None:
    """Samples of the averaged weights; the run's own weights and random numbers are as before afterwards."""
    held = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    load_into(trainer.parameters, trainer.average)
    try:
        (folder / "samples").mkdir(exist_ok=True)
        with evaluating(trainer.task.model):
            trainer.task.sample(folder / "samples", trainer.step)
    finally:
        load_into(trainer.parameters, held)


def override(settings: Any, changes: dict[str, str]) -> Any:
    """A frozen dataclass with fields replaced by `key=value` words; an unknown key lists the known ones."""
    known = {name: type(value) for name, value in vars(settings).items()}
    values = {}
    for key, word in changes.items():
        if key not in known:
            raise TrainingError(f"unknown setting {key!r}: known are {', '.join(known)}")
        values[key] = parsed(word, known[key], key)
    return replace(settings, **values)


def parsed(word: str, kind: type, key: str) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[word.lower()]
        if kind is tuple:
            return tuple(json.loads(f"[{word.strip('()[]')}]"))
        return kind(word)
    except (ValueError, KeyError):
        raise TrainingError(f"{key}={word}: expected {kind.__name__}") from None
