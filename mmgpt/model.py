"""The whole model on one screen.

    sample  --write-->  document  --pack-->  stream  --embed-->  (B, T, D)  --decoder-->  (B, T, D)  --heads-->  ids  --codec-->  values
    [picture, "caption:"]   slots             ids + vectors                                                     "a red apple"

A `Port` holds what belongs to one modality: how it is read (vectors or codes), how it is written (codes), and in which layout.
Nothing below asks which modality it is working on.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmgpt.decoders.heads import TableHead, rows_of
from mmgpt.decoders.transformer import Decoder, DecoderConfig
from mmgpt.encoders.codes import Table
from mmgpt.errors import InputError, TrainingError
from mmgpt.generate.guidance import unconditional_form
from mmgpt.generate.sampling import GREEDY, Sampling
from mmgpt.layout import VectorsLayout, WrittenLayout
from mmgpt.pack import Document
from mmgpt.script import Span
from mmgpt.types import Grid, Part, Prepared, Sample, Segment, Stream, Written, beside


@runtime_checkable
class Codec(Protocol):
    """Raw value <-> codes of one modality, on values as a person holds them."""

    num_codes: int

    def encode(self, value: Segment, /) -> np.ndarray: ...
    def decode(self, codes: np.ndarray, /) -> Segment: ...


@runtime_checkable
class Encoder(Protocol):
    """Raw value -> vectors: `prepare` on the CPU, in data workers; the call on the device, all segments of a batch at once."""

    def prepare(self, value: Segment, /) -> Prepared: ...
    def __call__(self, prepared: Prepared, /) -> Tensor: ...


@dataclass(frozen=True)
class Port:
    """One modality. `reads` or `writes` may be missing: such a modality is only written, or only read."""

    kind: type | tuple[type, ...]
    encoder: nn.Module | None = None  # with `reads`: given segments become vectors
    reads: VectorsLayout | None = None
    codec: Codec | None = None  # with `writes`: learned segments (and given ones, without `reads`) become codes
    writes: WrittenLayout | None = None
    grid: Grid | None = None  # the size that is written where the caller names none (text: at most so many ids)
    head: Callable[[nn.Embedding, Span], nn.Module] = TableHead
    sampling: Sampling = GREEDY  # how its codes are drawn, and with which guidance, where the caller does not say
    guidance: float = 1.0
    table: nn.Module | None = None  # codes -> vectors, where they are no rows of the table of all ids (Janus)
    unconditional: Callable[[Sequence[Part]], list[Part]] = unconditional_form  # what guidance compares with
    asks: str = "caption:"  # the prompt behind which it is said in words what was read

    def write(self, part: Part, name: str, before: Sequence[Written] = ()) -> Written:
        if self.reads is not None and not part.learn and part.codes is None:
            return self.reads.write(self.encoder.prepare(part.value), name)
        if self.writes is None or self.codec is None:
            raise InputError(f"{name} can be read but not written by this model: it has no codec for it")
        written = self.writes.write(self.codec.encode(part.value) if part.codes is None else part.codes, part.learn)
        return beside(replace(written, head=name), self.writes.beside(before))


class GPT(nn.Module):
    """Encoders, one shared decoder, heads: a stream of vectors in, a vector a position out, scored by the heads.

    `begin` opens every document. All ids are rows of one table, and each head is a view of its port's rows of it: of the table that
    embeds them where weights are `tied`, else of a second one, `output`.
    """

    def __init__(
        self, decoder: DecoderConfig, ports: Mapping[str, Port], num_ids: int, begin: int | None = None, max_length: int = 2048, tied: bool = True
    ):
        super().__init__()
        self.ports, self.begin, self.max_length = dict(ports), begin, max_length
        self.table = Table(num_ids, decoder.width)
        if not tied:
            self.output = Table(num_ids, decoder.width)
        scored = self.table if tied else self.output
        self.tables = nn.ModuleDict({name: port.table for name, port in ports.items() if port.table is not None})
        self.encoders = nn.ModuleDict({name: port.encoder for name, port in ports.items() if port.encoder is not None})
        self.decoder = Decoder(decoder)
        self.heads = nn.ModuleDict({name: port.head(scored, port.writes.ids) for name, port in ports.items() if port.writes is not None})
        self.codecs = nn.ModuleDict({name: port.codec for name, port in ports.items() if isinstance(port.codec, nn.Module)})
        self.codecs.requires_grad_(False)  # trained before, by a recipe of their own

    def train(self, mode: bool = True) -> "GPT":
        """Training mode, but for what is frozen: no dropout there, and no statistics that move."""
        super().train(mode)
        for part in self.modules():
            weights = list(part.parameters()) if mode else []
            if weights and not any(weight.requires_grad for weight in weights):
                part.eval()
        return self

    @property
    def spans(self) -> dict[str, Span]:
        """The ids that each head scores."""
        return {name: head.ids for name, head in self.heads.items()}

    @property
    def device(self) -> torch.device:
        return self.table.weight.device

    def port_of(self, value: Segment) -> str:
        for name, port in self.ports.items():
            if isinstance(value, port.kind):
                return name
        hint = "; open a file with mmgpt.open_picture" if isinstance(value, Path) else ""
        raise InputError(f"a segment of type {type(value).__name__}: this model takes {', '.join(self.ports)}{hint}")

    def write(self, sample: Sample | Iterable[Part]) -> Document:
        """A sample as its document: what is written in the stream, segment by segment."""
        document = [] if self.begin is None else [control(self.begin)]
        for part in sample:
            name = self.port_of(part.value)
            document.append(self.ports[name].write(part, name, document))
        return document

    def embed(self, stream: Stream) -> Float[Tensor, "B T D"]:
        x_BTD = self.table(stream.ids_BT)
        for name, table in self.tables.items():
            ids = self.ports[name].writes.ids
            at = ((stream.ids_BT >= ids.start) & (stream.ids_BT < ids.stop)).flatten().nonzero()[:, 0]
            vectors_ND = table(stream.ids_BT.flatten()[at] - ids.start).to(x_BTD.dtype)
            x_BTD = x_BTD.flatten(0, 1).index_copy(0, at, vectors_ND).view_as(x_BTD)
        for given in stream.inputs:
            vectors_ND = self.encoders[given.encoder](given.prepared).to(x_BTD.dtype)
            x_BTD = x_BTD.flatten(0, 1).index_copy(0, given.slot_N, vectors_ND).view_as(x_BTD)
        return x_BTD

    def forward(self, stream: Stream, cache=None, backend: str = "sdpa") -> Float[Tensor, "B T D"]:
        """The decoder's vector at every position; with a cache, the stream continues what the cache holds."""
        from mmgpt.decoders.cache import NoCache

        cache = cache or NoCache()
        reading = cache.reading(stream.document_BT, stream.block_BT, backend)
        return self.decoder(self.embed(stream), stream.position_BT3, reading, cache)

    def losses(self, stream: Stream, backend: str = "sdpa", z_loss: float = 0.0) -> dict[str, Float[Tensor, "N"]]:
        """Each head's loss at its own targets, in nats, one number a target (`z_loss`: see `Head.loss`). A stream without targets is refused."""
        if not stream.targets:
            raise TrainingError("0 targets in this batch: mark at least one segment `learn=True`, in a modality that the model writes")
        h_ND = self(stream, backend=backend).flatten(0, 1)
        heads = [self.heads[t.head] for t in stream.targets]
        scored = zip(stream.targets, heads, rows_of(heads), strict=True)
        return {t.head: head.loss(h_ND.index_select(0, t.slot_N), t.id_N, z_loss, rows) for t, head, rows in scored}

    def generate(self, parts: Sequence[Segment | Part], to: str | tuple[str, ...] = "text", **settings) -> Segment:
        """Reads `parts` in order and writes a segment of modality `to`, or a list of several. Settings: see `generate.request.Request`.

        gpt.generate([picture, "caption:"], to="text") -> str
        gpt.generate(["a red apple"], to="image", guidance=3.0, seed=7) -> PIL.Image.Image
        """
        from mmgpt.generate.engine import Request, run

        return run(self, [Request(parts, to, **settings)])[0].value

    def caption(self, images: Sequence[Segment], prompt: str = "caption:", **settings) -> list[str]:
        """One caption a picture, batched; greedy unless `sampling` says otherwise; picture number i then with seed + i."""
        from mmgpt.generate.engine import Request, run

        if not isinstance(images, (list, tuple)):
            raise InputError(f"caption takes a list of pictures, not a {type(images).__name__}: caption([picture])")
        for image in images:
            if isinstance(image, (str, Path)):
                raise InputError(f"{str(image)[:80]!r} is the name of a picture, not a picture: open it with mmgpt.open_picture")
        seed = settings.pop("seed", 0)
        requests = [Request([image, prompt], "text", seed=seed + i, **settings) for i, image in enumerate(images)]
        return [result.value for result in run(self, requests)]

    def draw(self, prompts: Sequence[str], guidance: float | None = None, seed: int = 0, **settings) -> list[Segment]:
        """One picture a prompt, batched; prompt number i is drawn with seed + i. `best_of=8` draws eight and keeps the best."""
        from mmgpt.generate.engine import Request, run

        if isinstance(prompts, str):
            raise InputError(f"draw takes a list of prompts: draw([{prompts[:20]!r}]), or generate for a single one")
        requests = [Request([prompt], "image", guidance=guidance, seed=seed + i, **settings) for i, prompt in enumerate(prompts)]
        return [result.value for result in run(self, requests)]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each part is in the mode that it was in."""
    before = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


def control(id: int) -> Written:
    """One control id that belongs to no segment."""
    false = np.zeros(1, bool)
    return Written(np.array([id], np.int64), false, false, np.zeros((1, 3), np.int64), 1)
