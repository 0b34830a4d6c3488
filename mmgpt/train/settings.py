"""`key=value` words -> how to train: the loop's settings, and any other frozen dataclass of settings."""

import json
from dataclasses import dataclass, replace
from typing import Any

from mmgpt.errors import TrainingError


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
    accumulate: int = 1  # parts that each rank's batch is learned in: less memory, the same update
    spike: float = 0.0  # a loss so many standard deviations above the last 64 is not learned; three in a row: back to the last saved state
    recompute: bool = False  # blocks keep their inputs alone and are computed again for the backward pass: less memory, a third more time
    tensorboard: bool = False  # figures and samples for TensorBoard, too, in out/tensorboard
    peak: float = 0.0  # TFLOP/s of one device's matrix products, for the share that is used of them; 0: measured when the run begins
    timeout: float = 600.0  # seconds after which a rank that waits for another gives up

    def __post_init__(self):
        if self.steps < 1 or not 0 < self.learning_rate < 1e9 or not 0 <= self.ema < 1 or not 0 < self.decay <= 1 or not self.minutes >= 0:
            raise TrainingError(
                f"steps={self.steps}, learning_rate={self.learning_rate}, ema={self.ema}, decay={self.decay}, minutes={self.minutes}: "
                "use at least 1 step, a positive rate, ema from 0 to below 1, decay above 0 and at most 1, minutes of 0 or more"
            )
        if (
            not self.clip > 0
            or min(self.log_every, self.accumulate, self.keep_last) < 1
            or not self.timeout > 0
            or min(self.warmup, self.save_every, self.keep_every, self.sample_every, self.weight_decay, self.workers, self.peak, self.spike) < 0
            or len(self.betas) != 2
        ):
            raise TrainingError(
                f"clip={self.clip}, log_every={self.log_every}, warmup={self.warmup}, save_every={self.save_every}, "
                f"sample_every={self.sample_every}, weight_decay={self.weight_decay}, betas={self.betas}, accumulate={self.accumulate}, "
                f"timeout={self.timeout}, workers={self.workers}, peak={self.peak}, keep_last={self.keep_last}, keep_every={self.keep_every}, "
                f"spike={self.spike}: "
                "use a clip and a timeout above 0, log_every, accumulate and keep_last of at least 1, two betas, the rest 0 or more"
            )


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
