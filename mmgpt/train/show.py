"""The figures of each update -> a progress bar on a terminal, or a line now and then in a file."""

import os
import sys

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

HIDDEN = ("norm", "rate", "per_second", "padding", "mfu", "wait", "skipped", "attention")  # in the log, not on the screen, as what has a /
EVERY = 100  # updates between two lines where no terminal listens


class Show:
    """`with Show(title) as show: train(..., show=show)`. Losses are averages over about the last 20 updates."""

    def __init__(self, title: str):
        self.title, self.mean = title, {}
        quiet = os.environ.get("RANK", "0") != "0"  # of several processes that torchrun has started, the first shows
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TextColumn("{task.fields[figures]}"))
        self.progress = Progress(*columns, disable=quiet or not sys.stderr.isatty())
        self.bar = self.progress.add_task(title, total=1.0, figures="the first step")

    def __enter__(self) -> "Show":
        self.progress.start()
        return self

    def __exit__(self, *_) -> None:
        self.progress.stop()

    def __call__(self, trainer, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.mean[name] = value + 0.95 * (self.mean.get(name, value) - value)
        text = line(self.mean, trainer.step, trainer.spent, trainer.progress)
        self.progress.update(self.bar, completed=trainer.progress, figures=text)
        if self.progress.disable and (trainer.step % EVERY == 0 or trainer.progress >= 1):
            print(f"{self.title}: {text}", file=sys.stderr, flush=True)


def line(mean: dict[str, float], step: int, spent: float, progress: float) -> str:
    """step 1,200 | text 0.532  image 3.210  loss 3.742 | 9,800 a second | 12 min left"""
    losses = "  ".join(f"{name} {value:.3f}" for name, value in mean.items() if name not in HIDDEN and "/" not in name)
    left = spent * (1 - progress) / max(progress, 1e-9)
    return f"step {step:,} | {losses} | {mean.get('per_second', 0):,.0f} a second | {duration(left)} left"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
