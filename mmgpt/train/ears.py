"""Clips with their words -> an encoder of sound that hears letters: the task that teaches it to, before a decoder reads what it hears.

Words are learned from letters that were heard far sooner than from sound. A letter or a blank is heard at each vector; where the
letters stand nobody says: all ways to write the words so are counted (CTC: Graves et al., 2006; torch's own loss).
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from mmgpt.checkpoint import load_part, save_part
from mmgpt.data.speech import Speech, masked, varied
from mmgpt.encoders.places import on_grid
from mmgpt.errors import InputError, TrainingError
from mmgpt.native import LAYERED, SOUND_ENCODERS
from mmgpt.train.any import Heard, fits
from mmgpt.types import Audio, Prepared, join

LETTERS = " 'abcdefghijklmnopqrstuvwxyz"  # 0 is the blank
SHOWN = 8  # clips


class Ears(nn.Module):
    """A sound encoder, `mel` or `whisper`, and what is learned with it: a score of each letter at each vector."""

    def __init__(self, width: int, blocks: int, seconds: float, encoder: str = "mel"):
        super().__init__()
        if encoder not in LAYERED:
            raise InputError(f"ears with encoder={encoder!r}: use one of {', '.join(LAYERED)}")
        self.kind, self.encoder = encoder, SOUND_ENCODERS[encoder](width, max_seconds=seconds, blocks=blocks)
        self.letters = nn.Linear(width, 1 + len(LETTERS))
        nn.init.constant_(self.letters.bias[:1], -2.0)  # blanks alone are the easy way out, for hundreds of steps

    def forward(self, prepared: Prepared) -> Float[Tensor, "N L"]:
        return self.scores(self.encoder(prepared))

    def scores(self, vectors_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N L"]:
        return self.letters(F.gelu(vectors_ND))


class EarTask:
    """Batches are a function of (seed, step): which clips, how distorted. `heard`: of each clip that fits, what a tower that is not trained hears
    in it; such clips are not distorted nor opened, and only the map to the decoder learns."""

    def __init__(
        self,
        model: Ears,
        rows: Sequence[Speech],
        sounds: Sequence[Audio] = (),
        batch_size: int = 32,
        seed: int = 0,
        heard: Sequence[np.ndarray] = (),
    ):
        self.model, self.batch_size, self.seed = model, batch_size, seed
        fit = [n for n, row in enumerate(rows) if fits(row, model.encoder.max_seconds)]
        self.sounds, self.heard = ([given[n] for n in fit] if given else [] for given in (sounds, heard))
        self.rows, self.texts = [rows[n] for n in fit], [rows[n].text for n in fit]
        self.listen = Heard(model.encoder) if heard else model.encoder
        if len(fit) < batch_size:
            raise TrainingError(f"{len(fit)} of {len(rows)} clips are short enough, for batches of {batch_size}: use more clips, or more seconds")

    def batch(self, step: int) -> tuple[Prepared, list[str]]:
        return self.share(step, 0, 1)

    def share(self, step: int, number: int, of: int) -> tuple[Prepared, list[str]]:
        if self.batch_size % of:
            raise TrainingError(f"batch_size={self.batch_size} in {of} parts (ranks times accumulate): use a multiple of {of}")
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        items = torch.randperm(len(self.rows), generator=generator)[: self.batch_size].tolist()
        seeds = torch.randint(2**31, (self.batch_size,), generator=generator).tolist()
        made = []
        for item, seed in list(zip(items, seeds, strict=True))[number::of]:
            chance = torch.Generator().manual_seed(seed)
            if self.heard:
                made.append(on_grid(torch.from_numpy(self.heard[item]), (len(self.heard[item]), 1, 1)))
                continue
            prepared = self.model.encoder.prepare(varied(self.sounds[item], chance))
            made.append(Prepared(masked(prepared.values_NF, self.model.encoder.mels, chance), prepared.place_N3, prepared.grids))
        return join(made), [self.texts[item] for item in items[number::of]]

    def losses(self, batch: tuple[Prepared, list[str]]) -> tuple[Tensor, dict[str, float]]:
        prepared, texts = batch
        device = self.model.letters.weight.device
        prepared = Prepared(prepared.values_NF.to(device), prepared.place_N3.to(device), prepared.grids)
        counts = [frames for frames, _, _ in prepared.grids]
        score_TBL = pad_sequence(self.model.scores(self.listen(prepared)).float().log_softmax(-1).split(counts))
        written = [torch.tensor([1 + LETTERS.index(c) for c in text.lower() if c in LETTERS]) for text in texts]
        lengths = [len(ids) for ids in written]
        found_B = F.ctc_loss(score_TBL, torch.cat(written).to(device), counts, lengths, reduction="none", zero_infinity=True)
        loss = found_B.sum() / max(1, sum(lengths))
        return loss, {"letter": float(loss.detach())}

    def compile(self) -> None:
        if not self.heard:
            for block in blocks_of(self.model.encoder):
                block.compile()

    def size(self, batch: tuple[Prepared, list[str]]) -> int:
        return len(batch[0])

    @torch.no_grad()
    def sample(self, folder: Path, step: int) -> None:
        """The first clips, as they are heard."""
        shown = self.sounds[:SHOWN] or [row.sound for row in self.rows[:SHOWN]]
        lines = [f"{text!r} -> {heard(self.model, sound)!r}" for text, sound in zip(self.texts[:SHOWN], shown, strict=True)]
        (folder / f"{step:07d}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def export(self, folder: Path, weights: dict[str, Tensor]) -> None:
        save_ears(folder, self.model, weights)


@torch.no_grad()
def heard(model: Ears, sound: Audio) -> str:
    """The likeliest letter at each vector; one that stays is one, blanks are nothing."""
    best = torch.unique_consecutive(model(model.encoder.prepare(sound)).argmax(-1)).tolist()
    return "".join(LETTERS[i - 1] for i in best if i)


@torch.no_grad()
def beginnings(scores_TL: Float[Tensor, "T L"], pieces: Sequence[str]) -> list[int]:
    """At which vector each piece of a text begins to be heard, from scores of letters: where the first letter of it is in the likeliest way to hear
    all of them (forced alignment: Graves et al., 2006; torchaudio's). Where there are more letters than vectors, they are spread evenly."""
    from torchaudio.functional import forced_align, merge_tokens

    written = [[1 + LETTERS.index(c) for c in piece.lower() if c in LETTERS] for piece in pieces]
    ids = [id for some in written for id in some]
    firsts = np.cumsum([0, *(len(some) for some in written)])[:-1]  # the letter with which each piece begins, or the next one does
    twice = sum(a == b for a, b in pairwise(ids))
    if len(ids) + twice > len(scores_TL) or not ids:
        starts = np.arange(len(ids)) * len(scores_TL) // max(1, len(ids))
    else:
        path, score = forced_align(scores_TL.float().log_softmax(-1)[None], torch.tensor([ids]))
        starts = np.array([span.start for span in merge_tokens(path[0], score[0])])
    found = [int(starts[first]) if first < len(starts) else len(scores_TL) for first in firsts]
    return [0, *found[1:]]


def blocks_of(encoder: nn.Module) -> nn.ModuleList:
    return getattr(encoder, "tower", encoder).blocks


def save_ears(folder: Path, model: Ears, weights: dict[str, Tensor] | None = None) -> None:
    settings = {"width": model.letters.in_features, "blocks": len(blocks_of(model.encoder)), "seconds": model.encoder.max_seconds}
    save_part(folder, "ears", model, settings | {"encoder": model.kind}, weights)


def load_ears(folder: str | Path) -> Ears:
    return load_part(folder, "ears", Ears)
