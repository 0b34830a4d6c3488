"""Clips with their words -> an encoder of sound that hears letters: the task that teaches it to, before a decoder reads what it hears.

Words are learned from letters that were heard far sooner than from sound. A letter or a blank is heard at each vector; where the
letters stand nobody says: all ways to write the words so are counted (CTC: Graves et al., 2006; torch's own loss).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from mmgpt.checkpoint import load_part, save_part
from mmgpt.data.speech import Speech, masked, varied
from mmgpt.encoders.audio import MelEncoder
from mmgpt.errors import TrainingError
from mmgpt.types import Audio, Prepared, join

LETTERS = " 'abcdefghijklmnopqrstuvwxyz"  # 0 is the blank
SHOWN = 8  # clips


class Ears(nn.Module):
    """A sound encoder and what is learned with it: a score of each letter at each vector."""

    def __init__(self, width: int, blocks: int, seconds: float):
        super().__init__()
        self.encoder = MelEncoder(width, max_seconds=seconds, blocks=blocks)
        self.letters = nn.Linear(width, 1 + len(LETTERS))
        nn.init.constant_(self.letters.bias[:1], -2.0)  # blanks alone are the easy way out, for hundreds of steps

    def forward(self, prepared: Prepared) -> Float[Tensor, "N L"]:
        return self.letters(F.gelu(self.encoder(prepared)))


class EarTask:
    """Batches are a function of (seed, step): which clips, how distorted."""

    def __init__(self, model: Ears, rows: Sequence[Speech], sounds: Sequence[Audio], batch_size: int = 32, seed: int = 0):
        self.model, self.batch_size, self.seed = model, batch_size, seed
        fit = [n for n, sound in enumerate(sounds) if sound.samples.shape[-1] / sound.rate * 1.15 < model.encoder.max_seconds]
        self.sounds, self.texts = [sounds[n] for n in fit], [rows[n].text for n in fit]
        if len(fit) < batch_size:
            raise TrainingError(f"{len(fit)} of {len(rows)} clips are short enough, for batches of {batch_size}: use more clips, or more seconds")

    def batch(self, step: int) -> tuple[Prepared, list[str]]:
        return self.share(step, 0, 1)

    def share(self, step: int, number: int, of: int) -> tuple[Prepared, list[str]]:
        if self.batch_size % of:
            raise TrainingError(f"batch_size={self.batch_size} in {of} parts (ranks times accumulate): use a multiple of {of}")
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        items = torch.randperm(len(self.sounds), generator=generator)[: self.batch_size].tolist()
        seeds = torch.randint(2**31, (self.batch_size,), generator=generator).tolist()
        made = []
        for item, seed in list(zip(items, seeds, strict=True))[number::of]:
            chance = torch.Generator().manual_seed(seed)
            prepared = self.model.encoder.prepare(varied(self.sounds[item], chance))
            made.append(Prepared(masked(prepared.values_NF, self.model.encoder.mels, chance), prepared.place_N3, prepared.grids))
        return join(made), [self.texts[item] for item in items[number::of]]

    def losses(self, batch: tuple[Prepared, list[str]]) -> tuple[Tensor, dict[str, float]]:
        prepared, texts = batch
        device = self.model.letters.weight.device
        prepared = Prepared(prepared.values_NF.to(device), prepared.place_N3.to(device), prepared.grids)
        counts = [frames for frames, _, _ in prepared.grids]
        score_TBL = pad_sequence(self.model(prepared).float().log_softmax(-1).split(counts))
        written = [torch.tensor([1 + LETTERS.index(c) for c in text.lower() if c in LETTERS]) for text in texts]
        lengths = [len(ids) for ids in written]
        found_B = F.ctc_loss(score_TBL, torch.cat(written).to(device), counts, lengths, reduction="none", zero_infinity=True)
        loss = found_B.sum() / max(1, sum(lengths))
        return loss, {"letter": float(loss.detach())}

    def compile(self) -> None:
        for block in self.model.encoder.blocks:
            block.compile()

    def size(self, batch: tuple[Prepared, list[str]]) -> int:
        return len(batch[0])

    @torch.no_grad()
    def sample(self, folder: Path, step: int) -> None:
        """The first clips, as they are heard."""
        lines = [f"{text!r} -> {heard(self.model, sound)!r}" for text, sound in zip(self.texts[:SHOWN], self.sounds[:SHOWN], strict=True)]
        (folder / f"{step:07d}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def export(self, folder: Path, weights: dict[str, Tensor]) -> None:
        save_ears(folder, self.model, weights)


@torch.no_grad()
def heard(model: Ears, sound: Audio) -> str:
    """The likeliest letter at each vector; one that stays is one, blanks are nothing."""
    best = torch.unique_consecutive(model(model.encoder.prepare(sound)).argmax(-1)).tolist()
    return "".join(LETTERS[i - 1] for i in best if i)


def save_ears(folder: Path, model: Ears, weights: dict[str, Tensor] | None = None) -> None:
    encoder = model.encoder
    save_part(folder, "ears", model, {"width": model.letters.in_features, "blocks": len(encoder.blocks), "seconds": encoder.max_seconds}, weights)


def load_ears(folder: str | Path) -> Ears:
    return load_part(folder, "ears", Ears)
