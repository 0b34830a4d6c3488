"""A task (a model, its batches, its losses) + settings -> a trained model in a folder. The whole loop is in this file.

Everything that decides the next update is either in the checkpoint (weights, optimizer, EMA, step) or a function of
(seed, step): so a run that was stopped goes on exactly as if it had not been. (With `minutes` the learning rate follows the
clock: such a run goes on from where it was, but no two of them are alike.)
"""

import json
import math
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmgpt.errors import CheckpointError, TrainingError
from mmgpt.model import evaluating
from mmgpt.train.guard import Guard
from mmgpt.train.log import Log
from mmgpt.train.optimizers import optimizers
from mmgpt.train.ranks import ALONE, Ranks, blocks, joined, like, local, locals_of, sharded, whole
from mmgpt.train.saves import Saves, State, about_run, begun, data_of, give_data, newest_step
from mmgpt.train.settings import Settings
from mmgpt.train.task import Task, batches, introduce
from mmgpt.train.watch import Board, Drift, Look, added, finite, gradient_squares, matmul_rate, parts_of, speed_of, work_of


class Trainer:
    """The state of a run: `step` counts finished updates, `progress` runs from 0 to 1."""

    def __init__(self, task: Task, settings: Settings, ranks: Ranks = ALONE):
        self.task, self.settings, self.ranks, self.step, self.spent = task, settings, ranks, 0, 0.0
        self.guard = Guard(settings.spike)
        self.batches: Iterator[list[Any]] | None = None  # begun at the first update, at the step of that time
        self.after = 0.0  # seconds that the last update took after all ranks had spoken
        self.peak = settings.peak * 1e12  # operations a second of one device
        introduce(task, ranks, settings.accumulate)
        for block in blocks(task.model):
            block.recompute = settings.recompute
        if settings.compile:
            task.compile()
        ranks.shard(task.model)
        self.parameters = {name: p for name, p in task.model.named_parameters() if p.requires_grad}
        self.parts = parts_of(self.parameters)
        self.optimizers = optimizers(task.model, self.parameters, settings)
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}

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
        """One step: batches, losses, gradients, clipped update, average. What is not finite on any rank is learned on none."""
        # 1. this rank's parts of the batch, and the targets of all parts
        begin, rate = time.perf_counter(), self.rate()
        self.batches = self.batches or batches(self.task, self.step, self.settings.workers, self.settings.accumulate, self.ranks)
        mine = next(self.batches)
        wait = time.perf_counter() - begin
        if self.step in self.guard.avoid:
            return self.pass_over()
        counts = added(self.ranks.all(added(self.task.counts(part) for part in mine))) if hasattr(self.task, "counts") else None
        # 2. gradients: of weights that are sharded, this rank's rows of their sum over all ranks
        watched = (self.step + 1) % self.settings.log_every == 0
        with Look(self.task.model, inside=not self.settings.compile) if watched else nullcontext() as look:
            figures = self.gradients(mine, counts)
        squares = gradient_squares(self.parts, self.parameters)
        # 3. what all ranks have found, and whether any was asked to stop
        seconds = time.perf_counter() - begin
        size = sum(self.task.size(part) for part in mine)
        report = {"figures": figures, "squares": squares, "work": work_of(self.task, mine), "size": size}
        report |= {"sums": look.sums, "tops": look.tops} if look else {"sums": {}, "tops": {}}
        said = self.ranks.all(report | {"clock": self.spent + self.after + seconds, "wait": wait})
        figures, squares, work = (added(one[name] for one in said) for name in ("figures", "squares", "work"))
        self.spent, norm = max(one["clock"] for one in said), math.sqrt(sum(squares.values()))
        # 4. the update, unless it would spoil the weights
        self.step += 1
        if faults := self.guard.faults(figures, squares):
            self.leave_out(figures["loss"], faults, mine)
        else:
            self.apply(rate, norm)
        self.after = time.perf_counter() - begin - seconds
        norms = {f"norm/{part}": math.sqrt(square) for part, square in squares.items()}
        seconds += self.after
        speed = speed_of(work, seconds, self.peak * self.ranks.world) | {"per_second": sum(one["size"] for one in said) / seconds}
        speed |= {"wait": max(one["wait"] for one in said), "skipped": self.guard.skipped}
        return finite({**figures, "norm": norm, **norms, **Look.figures(said), "rate": rate, **speed})

    def gradients(self, mine: list[Any], counts: dict[str, float] | None) -> dict[str, float]:
        """Adds up the gradients of this rank's parts; returns their figures, which add up to those of the whole batch."""
        device, world, of = next(iter(self.parameters.values())).device, self.ranks.world, len(mine) * self.ranks.world
        found = []
        for number, part in enumerate(mine):
            share = number * world + self.ranks.rank
            torch.manual_seed(self.settings.seed * 1_000_003 + self.step + share * 2_000_000_011)  # dropout, too, is a function of (seed, step)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss, figures = self.task.losses(part) if counts is None else self.task.losses(part, counts)
            if counts is None and of > 1:  # parts count alike
                loss, figures = loss / of, {name: value / of for name, value in figures.items()}
            found.append({**figures, "loss": float(loss.detach())})
            loss = self.ranks.touched(loss, self.task.model)
            (loss * world if world > 1 else loss).backward()  # sharded gradients are averaged over ranks
        return added(found)

    def apply(self, rate: float, norm: float) -> None:
        """The optimizers' step on clipped gradients, then the average's."""
        gradients = [local(p.grad) for p in self.parameters.values() if p.grad is not None]
        if norm > self.settings.clip:
            torch._foreach_mul_(gradients, self.settings.clip / (norm + 1e-6))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        weight = min(self.settings.ema, self.step / (self.step + 10))
        torch._foreach_lerp_(locals_of(self.average.values()), locals_of(self.parameters.values()), 1 - weight)

    def leave_out(self, loss: float, faults: list[str], mine: list[Any]) -> None:
        """Nothing of this update is learned, on any rank; the third time in a row is an error on all."""
        for p in self.parameters.values():
            p.grad = None
        names = getattr(self.task, "ids", None)
        held = [said["ids"] for said in self.ranks.all({"ids": [names(part) for part in mine] if names else []})]
        self.guard.leave_out(self.step - 1, loss, faults, held)

    def pass_over(self) -> dict[str, float]:
        """A step whose batch is not looked at."""
        self.step, self.guard.skipped = self.step + 1, self.guard.skipped + 1
        return {"skipped": self.guard.skipped}

    def go_back(self, state: State) -> None:
        """To a saved state, to pass over the steps after it that spoiled the weights."""
        avoid = self.guard.avoid | self.guard.steps_behind(int(json.loads(state.texts["run.json"])["step"]))
        self.resume(state)
        self.guard.avoid, self.guard.back, self.batches = avoid, self.step, None

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
        moments = {}
        for name, p in self.parameters.items():
            for optimizer in self.optimizers:
                moments |= {f"{name}:{key}": whole(value) for key, value in optimizer.state.get(p, {}).items()}
        weights = {name: whole(p) for name, p in self.parameters.items()}
        average = {name: whole(value) for name, value in self.average.items()}
        about = {"step": self.step, "spent": self.spent, "settings": asdict(self.settings), **self.guard.state()}
        files = {"weights.safetensors": weights, "average.safetensors": average, "optimizer.safetensors": moments}
        return files, {"run.json": json.dumps(about), **data_of(self.task, self.ranks)}

    def save(self, saves: Saves) -> None:
        state = self.state()  # of all ranks
        if self.ranks.first:
            saves.save(self.step, *state)

    def export(self, folder: Path) -> None:
        """The finished model: its averaged weights, and what was never trained."""
        frozen = {name: p for name, p in self.task.model.named_parameters() if name not in self.parameters and sharded(p)}
        weights = {name: whole(value) for name, value in {**frozen, **self.average}.items()}  # of all ranks
        if self.ranks.first:
            self.task.export(folder, weights)

    def resume(self, state: State) -> None:
        """Goes on from a saved state. Shapes must be those of this task's model."""
        tensors, about = state.tensors, about_run(state, set(self.parameters), asdict(self.settings))
        first, asked = about["settings"], self.settings
        before = first.get("accumulate", 1)
        if before != asked.accumulate and not hasattr(self.task, "share"):
            raise TrainingError(
                f"{state.path} was trained with accumulate={before}, not {asked.accumulate}, and {type(self.task).__name__} counts its "
                "batches by it: repeat the words of the first start"
            )
        self.step, self.spent = about["step"], about["spent"]
        self.guard.load(about)
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
            optimizer.state.clear()
            mine = {p for group in optimizer.param_groups for p in group["params"]}
            for name, p in self.parameters.items():
                if p in mine and moments[name]:  # a weight that has had no gradient yet has no moments
                    optimizer.state[p] = {key: like(p, v) if v.shape == p.shape else v.to(p.device) for key, v in moments[name].items()}


def load_into(tensors: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.shape != values[name].shape:
            raise CheckpointError(f"{name} has shape {tuple(values[name].shape)} in the checkpoint, {tuple(tensor.shape)} here: use the same recipe")
        local(tensor).copy_(local(like(tensor, values[name])))


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
    `show(trainer, figures)` is called after every update. Where torchrun has started several processes they do it together, and the
    first alone shows, logs and writes; all must see the same folder.
    """
    with joined(next(task.model.parameters()).device, settings.timeout) as ranks:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with (
            Log(folder, ranks.first) as log,
            Interruption() as interruption,
            Saves(folder, settings.keep_last, settings.keep_every, log.say) as saves,
            Board(folder, settings.tensorboard and ranks.first) as board,
        ):
            trainer = started(task, settings, begun(folder, resume, log.say, ranks), ranks)
            run(trainer, folder, log, board, saves, interruption, show)
            if trainer.progress < 1:
                saves.close()  # says so where it could not be saved
                raise KeyboardInterrupt(f"stopped after step {trainer.step}, saved in {folder}: resume=true goes on")
            trainer.export(folder / "final")
        return trainer


def started(task: Task, settings: Settings, state: State | None, ranks: Ranks) -> Trainer:
    torch.manual_seed(settings.seed)
    trainer = Trainer(task, settings, ranks)
    if hasattr(task, "work"):
        trainer.peak = trainer.peak or matmul_rate(next(task.model.parameters()).device)
    if state is not None:
        trainer.resume(state)
    return trainer


def run(trainer: Trainer, folder: Path, log: Log, board: Board, saves: Saves, interruption: "Interruption", show: Callable | None) -> None:
    """Updates until the end, or until somebody asks for it; the last state is saved."""
    settings, ranks, saved, drift = trainer.settings, trainer.ranks, trainer.step, Drift()
    while trainer.progress < 1 and not ranks.any(interruption.asked):
        try:
            figures = trainer.update()
        except TrainingError as error:
            if went_back(trainer, saves, folder, log):
                saved = trainer.step
                continue
            stuck = trainer.guard.stuck
            if trainer.step > saved and (ranks.world == 1 or stuck):  # what was learned is kept, where no rank waits for another
                trainer.save(saves)
            if stuck and ranks.first:
                (folder / "bad-batch.json").write_text(json.dumps(trainer.guard.bad, indent=1) + "\n")
            raise error
        if trainer.step % settings.log_every == 0 or trainer.progress >= 1 or trainer.guard.bad:
            log.write({"step": trainer.step, "minutes": round(trainer.spent / 60, 3), **figures})
            board.write(trainer.step, figures)
        for line in drift(figures) if ranks.first else ():
            log.say(f"step {trainer.step}: {line}")
        if show is not None and ranks.first:
            show(trainer, figures)
        if settings.save_every and trainer.step // settings.save_every > saved // settings.save_every and not trainer.guard.bad:
            trainer.save(saves)
            saved = trainer.step
        if settings.sample_every and trainer.step % settings.sample_every == 0:
            sampled(trainer, folder)
            board.samples(trainer.step)
    if trainer.step > saved:
        trainer.save(saves)


def went_back(trainer: Trainer, saves: Saves, folder: Path, log: Log) -> bool:
    """After spikes in a row: whether there was a saved state to go back to, other than the last time."""
    guard = trainer.guard
    if not (guard.stuck and guard.spikes):
        return False
    saves.wait()
    newest = next((int(said["step"]) for said in trainer.ranks.all({"step": newest_step(folder)})), -1)
    if newest in (-1, guard.back):
        return False
    steps = f"{guard.bad[0]['step']} to {guard.bad[-1]['step']}"
    trainer.go_back(begun(folder, True, log.say, trainer.ranks))
    log.say(f"the losses of steps {steps} were spikes: back at step {trainer.step}, steps {min(guard.avoid)} to {max(guard.avoid)} are left out")
    return True


def sampled(trainer: Trainer, folder: Path) -> None:
    """Samples of the averaged weights; the run's own weights and random numbers are as before afterwards.

    Where weights are sharded all ranks draw the same, since each holds a share of what the drawing needs; the first keeps it.
    """
    held, model = {name: p.detach().clone() for name, p in trainer.parameters.items()}, trainer.task.model
    load_into(trainer.parameters, trainer.average)
    try:
        with tempfile.TemporaryDirectory() as aside, evaluating(model), trainer.ranks.opened(model):
            to = folder / "samples" if trainer.ranks.first else Path(aside)
            to.mkdir(exist_ok=True)
            trainer.task.sample(to, trainer.step)
    finally:
        load_into(trainer.parameters, held)
