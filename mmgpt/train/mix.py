"""Documents of many directions (speech to words, words to clips, ...) -> packed batches and losses: the task of a model of many modalities."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mmgpt.data.files import save_file, suffix_of
from mmgpt.decoders.attention import BACKENDS
from mmgpt.errors import TrainingError
from mmgpt.generate.engine import Request, run
from mmgpt.layout import CodesLayout
from mmgpt.model import GPT
from mmgpt.native import save
from mmgpt.pack import Document, pack
from mmgpt.script import Span
from mmgpt.train.task import Work
from mmgpt.train.watch import stream_work
from mmgpt.types import Part, Stream


@dataclass(frozen=True)
class Direction:
    """One way from modality to modality: `count` documents of it a batch, each made by `document(item, generator)` of an item drawn by `weight_N`.

    `shown` are requests, with what should come of them, that are asked now and then to see what the model can do.
    """

    name: str
    count: int
    weight_N: Float[Tensor, "N"]
    document: Callable[[int, torch.Generator], Document]
    shown: Sequence[tuple[Sequence[Part], str, str]] = field(default=())


class MixTask:
    """Batches are a function of (seed, step): which items, which words, which distortions.

    `hide`: half of the documents that write codes are learned with up to this share of their codes hidden from the codes behind them. A code
    follows from its neighbours almost without the words, so that words are learned late; hidden neighbours leave only the words.
    `swap`: this share of what is written in a grid is shown codes of another's of its batch (or part of one) in place of its own, all up to one of
    them or scattered: what was begun wrongly, as it will be when the model writes by itself, comes right by the words alone.
    """

    def __init__(
        self,
        model: GPT,
        directions: Sequence[Direction],
        row_length: int = 640,
        seed: int = 0,
        loss_weights: Mapping[str, float] | None = None,
        hide: float = 0.0,
        card: str = "",
        backend: str = "",
        swap: float = 0.0,
    ):
        self.model, self.directions, self.row_length, self.seed = model, [d for d in directions if d.count], row_length, seed
        self.loss_weights, self.hide, self.card, self.swap = dict(loss_weights or {}), hide, card, swap
        written = {name: model.ports[name].writes for name in model.heads}
        self.coded = {name: layout.hideable for name, layout in written.items() if not getattr(layout, "ends", ())}  # all that is no text
        self.grids = [name for name in self.coded if isinstance(model.ports[name].writes, CodesLayout)]
        self.backend = backend or ("flex" if model.device.type == "cuda" else "sdpa")
        if self.backend not in BACKENDS or not self.directions or not 0 <= hide <= 1 or not 0 <= swap <= 1:
            raise TrainingError(
                f"{len(self.directions)} directions, hide={hide}, swap={swap}, backend={self.backend}: "
                f"use at least 1 direction with a count, hide and swap from 0 to 1, and one of {', '.join(BACKENDS)}"
            )

    def batch(self, step: int) -> Stream:
        return self.share(step, 0, 1)

    def share(self, step: int, number: int, of: int) -> Stream:
        """Every `of`-th document. Which they are, and how distorted, is drawn document by document, so that parts are parts of one whole; which of
        their codes are hidden or swapped is drawn part by part."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        documents = []
        for direction in self.directions:
            replacement = direction.count > int((direction.weight_N > 0).sum())
            items = torch.multinomial(direction.weight_N, direction.count, replacement=replacement, generator=generator).tolist()
            seeds = torch.randint(2**31, (direction.count,), generator=generator).tolist()
            documents += [(direction, item, seed) for item, seed in zip(items, seeds, strict=True)]
        made = []
        for direction, item, seed in documents[number::of]:
            chance = torch.Generator().manual_seed(seed)
            with torch.random.fork_rng(devices=[]):  # what distorts pictures draws from torch's own
                torch.manual_seed(seed)
                made.append(direction.document(item, chance))
        if not made:
            raise TrainingError(f"{len(documents)} documents in {of} parts (ranks times accumulate): use counts of at least {of} in all")
        stream = pack(made, self.model.spans, self.row_length)
        generator.manual_seed(int(torch.randint(2**62, (), generator=generator)) + number)
        stream = swapped(stream, self.grids, self.swap, generator) if self.swap else stream
        return hidden(stream, self.coded, self.model.begin, self.hide, generator) if self.hide else stream

    def counts(self, batch: Stream) -> dict[str, int]:
        return {target.head: len(target.id_N) for target in batch.targets}

    def losses(self, batch: Stream, counts: dict[str, int] | None = None) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Each head's mean loss, weighted; the figures are nats a target. `counts`: the targets of the whole that this is a part of."""
        counts = counts or self.counts(batch)
        found = self.model.losses(batch.to(self.model.device), self.backend)
        by_head = {name: loss_N.sum() / counts[name] for name, loss_N in found.items()}
        total = sum(self.loss_weights.get(name, 1.0) * loss for name, loss in by_head.items())
        return total, {name: float(loss.detach()) for name, loss in by_head.items()}

    def compile(self) -> None:
        self.model.decoder.compile()

    def size(self, batch: Stream) -> int:
        return int((batch.document_BT > 0).sum())

    def work(self, batch: Stream) -> Work:
        return stream_work(self.model, [batch])

    def sample(self, folder: Path, step: int) -> None:
        """What the model makes of the shown requests; of what is no text, files."""
        asked = [(direction.name, *one) for direction in self.directions for one in direction.shown]
        results = run(self.model, [Request(parts, to) for _, parts, to, _ in asked])
        lines = []
        for number, ((name, _, _, expected), result) in enumerate(zip(asked, results, strict=True)):
            suffix, made = suffix_of(result.value), result.value
            if suffix:
                made = save_file(made, folder / f"{step:07d}-{number}-{name}{suffix}").name
            lines.append(f"{name}: {expected!r} -> {made!r}")
        (folder / f"{step:07d}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def export(self, folder: Path, weights: dict[str, Tensor]) -> None:
        save(self.model, folder, weights, self.card, torch.float16)


def hidden(stream: Stream, heads: Mapping[str, Span], id: int, most: float, generator: torch.Generator) -> Stream:
    """The stream with codes of these spans, that these heads learn, shown as `id`: none in half of the documents, up to `most` of them in the rest.
    Targets stay."""
    coded = [t.slot_N[(t.id_N >= heads[t.head].start) & (t.id_N < heads[t.head].stop)] + 1 for t in stream.targets if t.head in heads]
    if not coded:
        return stream
    slot_N = torch.cat(coded).sort().values
    row_N = slot_N // stream.ids_BT.shape[1]
    document_N = row_N * (int(stream.document_BT.max()) + 1) + stream.document_BT.flatten()[slot_N]
    number_N = document_N.unique(return_inverse=True)[1]
    share_M = most * (2 * torch.rand(int(number_N.max()) + 1, generator=generator) - 1).clamp(min=0)
    gone_N = slot_N[torch.rand(len(slot_N), generator=generator) < share_M[number_N]]
    return replace(stream, ids_BT=stream.ids_BT.flatten().index_fill(0, gone_N, id).view_as(stream.ids_BT))


def swapped(stream: Stream, heads: Sequence[str], share: float, generator: torch.Generator) -> Stream:
    """The stream with what these heads learn, in a `share` of its documents, shown as another document's of the same head: half of these up to a
    code, half scattered. Targets stay."""
    ids_N, document_N = stream.ids_BT.flatten().clone(), stream.document_BT.flatten()
    for target in stream.targets:
        if target.head not in heads:
            continue
        slot_N = target.slot_N + 1
        number_N = slot_N // stream.ids_BT.shape[1] * (int(document_N.max()) + 1) + document_N[slot_N]
        sizes = number_N.unique_consecutive(return_counts=True)[1].tolist()
        slots, codes = slot_N.split(sizes), target.id_N.split(sizes)
        for n, (way, most, other) in enumerate(torch.rand(len(sizes), 3, generator=generator).tolist()):
            if way < share and len(sizes) > 1:
                shown_M = codes[(n + 1 + int(other * (len(sizes) - 1))) % len(sizes)][: sizes[n]]
                at_M = torch.arange(len(shown_M)) / sizes[n] if way < share / 2 else torch.rand(len(shown_M), generator=generator)
                ids_N[slots[n][: len(shown_M)][at_M < most]] = shown_M[at_M < most]
    return replace(stream, ids_BT=ids_N.view_as(stream.ids_BT))
