"""What an update has found -> whether it may be learned, and what to do when several in a row may not.

What is not finite is never learned. With `spike` neither is a batch whose loss lies far above the last ones: it is left out *before* it
reaches the weights, so that one poisoned batch costs one step. Where the next ones are no better the weights were spoiled already: the
run goes back to its last saved state and passes over the steps that led there (as PaLM's did, arXiv:2204.02311, section 5.1).
"""

import math
from collections.abc import Mapping
from typing import Any

from mmgpt.errors import TrainingError

MOST = 3  # updates in a row that may be left out
WINDOW = 64  # losses that say what is usual; before half of them are there nothing is a spike


class Guard:
    """Its state is part of the run's, so that a resumed run leaves out what the first would have."""

    def __init__(self, spike: float = 0.0):
        self.spike = spike  # standard deviations above the mean; 0: only what is not finite
        self.skipped, self.bad = 0, []  # updates left out: how many, and the last of them in a row
        self.usual: list[float] = []
        self.avoid: set[int] = set()  # steps that are passed over
        self.back = -1  # the step of the state that was gone back to

    def state(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "bad": self.bad, "usual": self.usual, "avoid": sorted(self.avoid), "back": self.back}

    def load(self, about: Mapping[str, Any]) -> None:
        """States of older versions say less."""
        self.skipped, self.bad, self.usual = about.get("skipped", 0), list(about.get("bad", [])), list(about.get("usual", []))
        self.avoid, self.back = set(about.get("avoid", [])), about.get("back", -1)

    def faults(self, figures: Mapping[str, float], squares: Mapping[str, float]) -> list[str]:
        """Why this update must not be learned: names of what is not finite, or the loss that is too high. Nothing if it may."""
        values = dict(figures) | {f"norm/{part}": square for part, square in squares.items()}
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        must = math.isfinite(figures["loss"]) and math.isfinite(sum(squares.values()))
        if not must:
            return broken or ["norm"]  # of finite squares whose sum is not
        if self.spiked(figures["loss"]):
            return ["a spike"]
        self.usual, self.bad = [*self.usual, figures["loss"]][-WINDOW:], []
        return []

    def spiked(self, loss: float) -> bool:
        if not self.spike or len(self.usual) < WINDOW // 2:
            return False
        mean = sum(self.usual) / len(self.usual)
        deviation = math.sqrt(sum((one - mean) ** 2 for one in self.usual) / len(self.usual))
        return loss > mean + self.spike * deviation

    def leave_out(self, step: int, loss: float, faults: list[str], batches: list) -> None:
        """Notes it; the third in a row is an error."""
        self.bad.append({"step": step, "loss": str(loss), "faults": faults, "batches": batches})
        self.skipped += 1
        if self.stuck:
            what = "a loss far above those before" if self.spikes else f"{' and '.join(faults)} not finite"
            raise TrainingError(
                f"{len(self.bad)} updates in a row, at steps {', '.join(str(one['step']) for one in self.bad)}, were left out for {what} "
                f"(the last loss was {loss}): lower learning_rate or look at these batches, which bad-batch.json names"
            )

    @property
    def stuck(self) -> bool:
        return len(self.bad) >= MOST

    @property
    def spikes(self) -> bool:
        """Whether all that was left out in a row was finite: what came before it may be to blame."""
        return all(one["faults"] == ["a spike"] for one in self.bad)

    def steps_behind(self, state: int) -> set[int]:
        """The steps to pass over after going back to the state of a step: those of the spikes, and as many before them."""
        return set(range(max(state, self.bad[0]["step"] - MOST), self.bad[-1]["step"] + 1))
