"""Pictures with words -> documents of both directions -> packed batches and losses: the task that the loop runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mmgpt.decoders.attention import BACKENDS
from mmgpt.encoders.image import PatchEncoder
from mmgpt.errors import TrainingError
from mmgpt.generate.guidance import without_condition
from mmgpt.model import GPT
from mmgpt.native import save
from mmgpt.pack import Document, assign, length, pack
from mmgpt.train.task import Work
from mmgpt.train.watch import added, stream_work
from mmgpt.types import Part, Stream


@dataclass(frozen=True)
class Item:
    """One picture and its words. `draws` are prompts that ask for it, `captions` (question, answer) pairs; one of each is drawn a time."""

    draws: tuple[str, ...]
    captions: tuple[tuple[str, str], ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Mix:
    """What a batch holds: documents of each direction, the share of drawings without their words (for guidance), loss weights.

    `augment`: pictures that are read are distorted, by `strength` times the usual; above 1 they are also bent and lose their colours at times.
    `hide`: half of the drawings are learned with up to this share of their own codes hidden from the codes behind them. A code
    follows from its neighbours almost without the words, so that words are learned late; hidden neighbours leave only the words.
    `swap`: this share of the drawings, half at most, is shown codes of another drawing in place of its own, all up to one of them or scattered
    ones, and learns what follows by its words: a picture that was begun wrongly comes right (after Han et al., 2025, "Infinity": self-correction).
    `z_loss`: weight of a cost that keeps scores from growing, see `decoders.heads.Head.loss`; 1e-4 is usual.
    """

    captions: int = 24
    draws: int = 24
    drop: float = 0.1
    text_weight: float = 1.0
    image_weight: float = 1.0
    row_length: int = 0  # 0: a row for each document
    augment: bool = True
    strength: float = 1.0
    hide: float = 0.0
    swap: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self):
        if not 0 < self.strength <= 3:
            raise TrainingError(f"strength={self.strength}: pictures are distorted above 0, up to 3 times as much as usual")
        if not 0 <= self.swap <= 0.5:
            raise TrainingError(f"swap={self.swap}: use 0 (none) to 0.5 (half of the drawings are shown another's codes)")
        if not 0 <= self.z_loss < 1:
            raise TrainingError(f"z_loss={self.z_loss}: use 0 (none) to below 1; 0.0001 is usual")
        if min(self.captions, self.draws) < 0 or self.captions + self.draws == 0 or not (0 <= self.drop <= 1 and 0 <= self.hide <= 1):
            raise TrainingError(
                f"captions={self.captions}, draws={self.draws}, drop={self.drop}, hide={self.hide}: "
                "use 0 or more of each, at least 1 in all, and drop and hide from 0 to 1"
            )


class GPTTask:
    """Batches are a function of (seed, step): which items, which words, which distortions.

    `codes` are the codec's codes of each picture, computed once: pictures to draw are not distorted.
    """

    def __init__(
        self,
        model: GPT,
        pictures: UInt8[Tensor, "N 3 H W"],
        items: Sequence[Item],
        mix: Mix,
        seed: int = 0,
        card: str = "",
        backend: str = "",
        left_out: str = "",
    ):
        if len(pictures) != len(items) or not items:
            raise TrainingError(f"{len(pictures)} pictures and {len(items)} descriptions: pass one description for each of at least one picture")
        self.model, self.pictures, self.items, self.mix, self.seed, self.card = model, pictures, items, mix, seed, card
        model.config = replace(model.config, left_out=left_out)
        self.backend = backend or ("flex" if model.device.type == "cuda" else "sdpa")
        if self.backend not in BACKENDS or (self.backend == "flex" and model.device.type == "cpu"):
            raise TrainingError(f"backend={self.backend} on {model.device.type}: use one of {', '.join(BACKENDS)}; flex has no backward on a CPU")
        self.check_lengths()
        self.weight_N = torch.tensor([item.weight for item in items], dtype=torch.double)
        self.codes = all_codes(model, pictures) if mix.draws else None
        self.distort = distortion(mix.strength) if mix.augment else None

    def check_lengths(self) -> None:
        """Every text is short enough to be learned whole, read and written: better said now than in the middle of a run."""
        text, limit = self.model.ports["text"], self.model.config
        for number, item in enumerate(self.items):
            asked = max(len(text.codec.encode(words)) for words in (*item.draws, *(question for question, _ in item.captions)))
            answered = max((len(text.codec.encode(answer)) for _, answer in item.captions), default=0)
            if answered > limit.max_text or asked > limit.max_length // 2:
                raise TrainingError(
                    f"item {number} has a prompt of {asked} ids and an answer of {answered}; "
                    f"prompts hold {limit.max_length // 2}, answers {limit.max_text}: shorten its text"
                )

    def batch(self, step: int) -> tuple[Stream, ...]:
        return self.share(step, 0, 1)

    def share(self, step: int, number: int, of: int) -> tuple[Stream, ...]:
        """Every `of`-th document of each direction. All chance is drawn document by document, so that parts are parts of one whole.

        One stream a direction: documents of one direction are about equally long, so rows of their own are nearly full.
        """
        mix, fewest = self.mix, min(count for count in (self.mix.captions, self.mix.draws) if count)
        if fewest < of:
            raise TrainingError(f"captions={mix.captions}, draws={mix.draws} in {of} parts (ranks times accumulate): use 0 or at least {of} of each")
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        count = mix.captions + mix.draws
        index = torch.multinomial(self.weight_N, count, replacement=count > len(self.items), generator=generator).tolist()
        chance = torch.rand(count, 2, generator=generator).tolist()
        seeds = torch.randint(2**62, (mix.captions,), generator=generator).tolist()
        captions = range(number, mix.captions, of)
        draws = range(mix.captions + number, count, of)
        documents = []
        with torch.random.fork_rng(devices=[]):
            for n in captions:
                torch.manual_seed(seeds[n])
                documents.append(self.caption(index[n], chance[n]))
        drawings = [self.draw(index[n], chance[n]) for n in draws]
        streams = [pack(some, self.model.spans, mix.row_length or None) for some in (documents, drawings) if some]
        if mix.draws and (mix.hide or mix.swap):
            noise = torch.rand(mix.draws, 1 + self.codes[0].size, generator=generator)[number::of]
            stands = order(drawings, mix.row_length or None)
            streams[-1] = hidden(streams[-1], self.model.begin, mix.hide, noise[stands])
            if mix.swap:
                others = [index[mix.captions + (n - mix.captions + 1) % mix.draws] for n in draws]
                other_NC = self.model.spans["image"].start + torch.from_numpy(self.codes[others].reshape(len(others), -1))
                streams[-1] = swapped(streams[-1], other_NC[stands], mix.swap, noise[stands])
        return tuple(streams)

    def caption(self, index: int, chance: list[float]) -> Document:
        question, answer = pick(self.items[index].captions, chance[0])
        pixels = self.pictures[index]
        if self.distort is not None:
            pixels = self.distort(pixels)
        encoder: PatchEncoder = self.model.encoders["image"]
        port = self.model.ports["image"]
        read = port.reads.write(encoder.cut(pixels.float() / 127.5 - 1), "image")
        begin, *words = self.model.write([Part(question), Part(answer, learn=True)])
        return [begin, read, *words]

    def draw(self, index: int, chance: list[float]) -> Document:
        sample = [Part(pick(self.items[index].draws, chance[0]))]
        if chance[1] < self.mix.drop:
            sample = without_condition(sample)
        begin, words = self.model.write(sample)
        return [begin, words, self.model.ports["image"].writes.write(self.codes[index], learn=True)]

    def counts(self, batch: tuple[Stream, ...]) -> dict[str, int]:
        """The targets of each head."""
        return added({target.head: len(target.id_N)} for stream in batch for target in stream.targets)

    def losses(self, batch: tuple[Stream, ...], counts: dict[str, int] | None = None) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Each head's mean loss, weighted; the figures are nats a target. `counts`: the targets of the whole that this is a part of."""
        found: dict[str, list[Tensor]] = {}
        for stream in batch:
            for name, loss_N in self.model.losses(stream.to(self.model.device), self.backend, self.mix.z_loss).items():
                found.setdefault(name, []).append(loss_N)
        counts = counts or self.counts(batch)
        by_head = {name: torch.cat(losses).sum() / counts[name] for name, losses in found.items()}
        weights = {"text": self.mix.text_weight, "image": self.mix.image_weight}
        total = sum(weights.get(name, 1.0) * loss for name, loss in by_head.items())
        return total, {name: float(loss.detach()) for name, loss in by_head.items()}

    def compile(self) -> None:
        self.model.decoder.compile()

    def size(self, batch: tuple[Stream, ...]) -> int:
        return sum(int((stream.document_BT > 0).sum()) for stream in batch)

    def work(self, batch: tuple[Stream, ...]) -> Work:
        return stream_work(self.model, batch)

    def sample(self, folder: Path, step: int) -> None:
        """A strip of drawings and a file of captions, of the same items each time."""
        from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
        from torchvision.utils import make_grid, save_image

        chosen = torch.randperm(len(self.items), generator=torch.Generator().manual_seed(0))[:16].tolist()
        lines = []
        if self.mix.captions:
            found = self.model.caption([to_pil_image(self.pictures[i]) for i in chosen], self.items[chosen[0]].captions[0][0])
            lines += [f"{self.items[i].captions[0][1]!r} was read as {words!r}" for i, words in zip(chosen, found, strict=True)]
        if self.mix.draws:
            drawn = self.model.draw([self.items[i].draws[0] for i in chosen], guidance=3.0)
            save_image(make_grid(torch.stack([pil_to_tensor(p) for p in drawn]).float() / 255, nrow=8), folder / f"{step:07d}.png")
            lines += [f"drawn: {self.items[i].draws[0]}" for i in chosen]
        (folder / f"{step:07d}.txt").write_text("\n".join(lines) + "\n")

    def export(self, folder: Path, weights: dict[str, Tensor]) -> None:
        save(self.model, folder, weights, self.card, torch.float16)


def hidden(stream: Stream, id: int, most: float, noise_NC: Float[Tensor, "N C"]) -> Stream:
    """The stream with learned codes shown as `id`: none in half of the documents, up to `most` of them in the rest. Targets stay.

    `noise_NC` has a row a document, in the order in which they stand: chance of the document, then of each of its codes.
    """
    slot_N = torch.cat([target.slot_N for target in stream.targets]).sort().values + 1
    share_N1 = most * (2 * noise_NC[:, :1] - 1).clamp(min=0)
    gone_N = slot_N[(noise_NC[:, 1:] < share_N1).flatten()]
    return replace(stream, ids_BT=stream.ids_BT.flatten().index_fill(0, gone_N, id).view_as(stream.ids_BT))


def swapped(stream: Stream, other_NC: Int[Tensor, "N C"], share: float, noise_NC: Float[Tensor, "N 1+C"]) -> Stream:
    """The stream with learned codes of a `share` of the documents shown as another's: half of these up to a code, half scattered. Targets stay.

    `noise_NC` as in `hidden`, which leaves the documents alone that are chosen here.
    """
    slot_NC = (torch.cat([target.slot_N for target in stream.targets]).sort().values + 1).view_as(other_NC)
    way_N1, place_C = noise_NC[:, :1] / share, torch.arange(other_NC.shape[1]) / other_NC.shape[1]
    begun_NC, strewn_NC = place_C < 2 * way_N1, noise_NC[:, 1:] < 2 * way_N1 - 1
    gone_NC = torch.where(way_N1 < 0.5, begun_NC, strewn_NC) & (way_N1 < 1)
    ids = stream.ids_BT.flatten().index_copy(0, slot_NC[gone_NC], other_NC[gone_NC].to(stream.ids_BT.dtype))
    return replace(stream, ids_BT=ids.view_as(stream.ids_BT))


def order(documents: Sequence[Document], row_length: int | None) -> list[int]:
    """The documents as they stand in the packed stream, row by row."""
    if row_length is None:
        return list(range(len(documents)))
    return [index for row in assign([length(document) for document in documents], row_length) for index in row]


def pick(options: Sequence, chance: float):
    return options[min(int(chance * len(options)), len(options) - 1)]


@torch.no_grad()
def all_codes(model: GPT, pictures: UInt8[Tensor, "N 3 H W"]) -> Int[np.ndarray, "N h w"]:
    from rich.progress import track

    codec = model.codecs["image"].codec
    batches = track(pictures.split(64), "coding pictures", transient=True)
    return np.concatenate([codec.encode(batch.to(model.device).float() / 127.5 - 1).cpu().numpy() for batch in batches])


def distortion(strength: float = 1.0) -> Callable[[Tensor], Tensor]:
    """What a picture may look like without showing anything else: moved, turned, scaled, other light. No mirroring: arrows point.

    Another artist bends outlines and takes other colours: with a `strength` above 1 so does this.
    """
    from torchvision.transforms import v2

    s, linear = strength, v2.InterpolationMode.BILINEAR
    steps: list[Callable] = [v2.RandomAffine(12 * s, (0.08 * s, 0.08 * s), (1 - 0.2 * s, 1 + 0.15 * s), 6 * s, fill=255, interpolation=linear)]
    if s > 1:
        steps += [v2.RandomApply([v2.ElasticTransform(25.0 * s, 4.0, linear, fill=255)], p=0.5), v2.RandomGrayscale(0.05 * s)]
    light = v2.ColorJitter(0.3 * s, 0, min(0.9, 0.4 * s), 0.03 * s)
    steps += [v2.RandomInvert(1.0), light, v2.RandomInvert(1.0)]  # of the ink: white paper stays white
    return v2.Compose([*steps, v2.RandomApply([v2.GaussianBlur(3, (0.3, 1.0))], p=0.25)])
