"""Packed rows of a mixture -> batches and losses: the task of training on documents of any kind, at any scale."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mmgpt.data.feed import Feed, joined, states_of
from mmgpt.data.files import save_file, suffix_of
from mmgpt.data.inspect import samples_in
from mmgpt.data.lane import Bad
from mmgpt.data.mixture import Mixture
from mmgpt.decoders.attention import BACKENDS
from mmgpt.errors import TrainingError
from mmgpt.model import GPT
from mmgpt.native import save
from mmgpt.pack import stack
from mmgpt.types import Stream

SHOWN = 8  # samples that are shown to see what the model can do


@dataclass(frozen=True)
class Batch:
    """Rows of the global batch that are this rank's; what is in them, and what was left out on the way."""

    stream: Stream
    names: tuple[str, ...]
    bad: tuple[Bad, ...]


class StreamTask:
    """Batches follow each other: `data_state` is where they are, `load_data_state` goes there.

    `rank` and `world` are set before the first batch; rank r has the lanes r, r + world, ...; the global batches are the same for every
    `world`. A head's loss counts `loss_weights[head]` times, once where nothing is said. Samples that are left out are added to the
    file `bad`, a line of JSON each; behind a resume those of the batches since the saved state stand there twice, with the same lane and draw.
    """

    def __init__(
        self,
        model: GPT,
        mixture: Mixture,
        loss_weights: Mapping[str, float] | None = None,
        card: str = "",
        backend: str = "",
        bad: str | Path | None = None,
        **feeding: float,
    ):
        self.model, self.mixture, self.loss_weights, self.card, self.feeding = model, mixture, dict(loss_weights or {}), card, feeding
        self.backend = backend or ("flex" if model.device.type == "cuda" else "sdpa")
        self.rank, self.world, self.feed, self.found = 0, 1, None, None
        self.next_step: int | None = None
        self.bad = bad
        if self.backend not in BACKENDS:
            raise TrainingError(f"backend={backend}: use {' or '.join(BACKENDS)}")

    def batch(self, step: int) -> Batch:
        """The next batch; `step` only says whether it is asked for in order."""
        if self.feed is None:
            if self.mixture.lanes % self.world:
                raise TrainingError(f"{self.mixture.lanes} rows for {self.world} ranks: use a number of rows that {self.world} divides")
            self.feed = Feed(self.mixture, range(self.rank, self.mixture.lanes, self.world), self.found, **self.feeding)
        if self.next_step not in (None, step):
            raise TrainingError(f"batch {step} was asked for, {self.next_step} is next: load the state of the data that belongs to the step")
        rows = next(self.feed)
        self.next_step = step + 1
        left_out = [(lane, bad) for lane, row in zip(self.feed.lanes, rows, strict=True) for bad in row.bad]
        if self.bad and left_out:
            with open(self.bad, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps({"lane": lane, **vars(bad)}) + "\n" for lane, bad in left_out))
        return Batch(stack([row.stream for row in rows]), tuple(name for row in rows for name in row.names), tuple(bad for _, bad in left_out))

    def data_state(self) -> dict[str, object]:
        """Where the data stand, for JSON: of this rank's lanes; `load_data_state` takes the list of all ranks' states."""
        return self.feed.state() if self.feed is not None else dict(self.found or {})

    def load_data_state(self, state: Mapping | list) -> None:
        self.close()
        states = [one for one in (state if isinstance(state, list) else [state]) if one]
        self.found = joined(states) if states else None
        states_of(self.mixture, self.found)  # says at once where they are of another stream

    def close(self) -> None:
        if self.feed is not None:
            self.feed.close()
        self.feed, self.next_step = None, None

    def counts(self, batch: Batch) -> dict[str, int]:
        """The targets of each head."""
        return {target.head: len(target.id_N) for target in batch.stream.targets}

    def ids(self, batch: Batch) -> list[str]:
        return list(batch.names)

    def losses(self, batch: Batch, counts: Mapping[str, int] | None = None) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Each head's mean loss, weighted; the figures are nats a target. `counts`: targets of the whole that this batch is a part of."""
        counts = counts or self.counts(batch)
        found = self.model.losses(batch.stream.to(self.model.device), self.backend)
        by_head = {name: loss_N.sum() / counts[name] for name, loss_N in found.items()}
        total = sum(self.loss_weights.get(name, 1.0) * loss for name, loss in by_head.items())
        return total, {name: float(loss.detach()) for name, loss in by_head.items()}

    def compile(self) -> None:
        self.model.decoder.compile()

    def size(self, batch: Batch) -> int:
        return int((batch.stream.document_BT > 0).sum())

    def sample(self, folder: Path, step: int) -> None:
        """The first samples of each source whose last part is to be written: what was there, and what the model writes."""
        lines = []
        for source in self.mixture.sources:
            for number, (place, _, sample) in enumerate(samples_in(source, replace(self.mixture.form, drop=0.0), SHOWN)):
                if len(sample) < 2 or not sample[-1].learn:
                    continue
                given = [replace(part, learn=False) for part in sample[:-1]]
                written = self.model.generate(given, to=self.model.port_of(sample[-1].value))
                if suffix := suffix_of(written):
                    written = save_file(written, folder / f"{step:07d}-{number}{suffix}").name
                lines.append(f"{place}: {' '.join(str(p.value) for p in sample if isinstance(p.value, str))[:200]!r} -> {str(written)!r}")
        (folder / f"{step:07d}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def export(self, folder: Path, weights: dict[str, Tensor]) -> None:
        self.close()
        save(self.model, folder, weights, self.card, torch.float16)


def writer(model: GPT) -> GPT:
    """The model's ports on the CPU, where workers write with them: encoders and codecs are copied from a GPU, the decoder is left out."""
    if model.device.type == "cpu":
        return model
    light = copy.copy(model)
    light.ports = {
        name: replace(
            port,
            **{part: copy.deepcopy(getattr(port, part)).cpu() for part in ("encoder", "codec") if isinstance(getattr(port, part), torch.nn.Module)},
        )
        for name, port in model.ports.items()
    }
    return light
