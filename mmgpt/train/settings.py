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
        for names, good, allowed in CHECKS:
            for name in names.split():
                if not good(getattr(self, name)):
                    raise TrainingError(f"{name}={getattr(self, name)}: use {allowed}")


CHECKS = (  # a comparison with NaN is never true
    ("steps log_every accumulate keep_last", lambda x: x >= 1, "at least 1"),
    ("learning_rate", lambda x: 0 < x < 1e9, "a positive rate"),
    ("clip timeout", lambda x: x > 0, "more than 0"),
    ("ema", lambda x: 0 <= x < 1, "0 to below 1"),
    ("decay", lambda x: 0 < x <= 1, "more than 0, at most 1"),
    ("minutes weight_decay peak spike", lambda x: 0 <= x < float("inf"), "0 or more"),
    ("warmup save_every keep_every sample_every workers", lambda x: x >= 0, "0 or more"),
    ("betas", lambda x: len(x) == 2 and all(isinstance(b, (int, float)) and 0 <= b < 1 for b in x), "two numbers from 0 to below 1"),
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
