"""A new modality in one file, nothing of it in the library: melodies, read as vectors and written as codes.

python examples/add_a_modality.py

In some seconds on one CPU thread a small GPT learns to name a tune in any key (notes -> text) and to play a named one (text -> notes).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mmgpt.decoders.heads import TableHead
from mmgpt.decoders.transformer import DecoderConfig
from mmgpt.encoders.text import TextCodec
from mmgpt.layout import CodesLayout, TextLayout, VectorsLayout
from mmgpt.model import GPT, Port
from mmgpt.pack import pack
from mmgpt.script import Span
from mmgpt.types import Part, Prepared

LOWEST, NOTES, LENGTH = 40, 40, 6
TUNES = {"a scale": (60, 62, 64, 65, 67, 69), "a fall": (72, 71, 69, 67, 65, 64), "a trill": (67, 69, 67, 69, 67, 69), "one note": (64,) * 6}


@dataclass(frozen=True)
class Melody:
    pitches: tuple[int, ...]  # in semitones, 60 is middle C


class MelodyEncoder(nn.Module):
    """A note -> a vector: how high it is, and how far from the first note."""

    def __init__(self, width: int):
        super().__init__()
        self.map = nn.Sequential(nn.Linear(2, 64), nn.GELU(), nn.Linear(64, width))

    def prepare(self, value: Melody, /) -> Prepared:
        pitch_N, time_N = torch.tensor(value.pitches), torch.arange(len(value.pitches))
        values_NF = torch.stack([(pitch_N - 60) / 12, (pitch_N - pitch_N[:1]) / 12], 1)
        return Prepared(values_NF, torch.stack([time_N] * 3, 1), ((1, 1, len(time_N)),))

    def forward(self, prepared: Prepared, /) -> torch.Tensor:
        return self.map(prepared.values_NF)


class MelodyCodec:
    """A melody <-> a code a note."""

    num_codes = NOTES

    def encode(self, value: Melody, /) -> np.ndarray:
        return np.array(value.pitches) - LOWEST

    def decode(self, codes: np.ndarray, /) -> Melody:
        return Melody(tuple((codes.reshape(-1) + LOWEST).tolist()))


class MelodyHead(TableHead):
    """Scores notes by rows of the shared table, never beyond 30 (soft cap; Gemma 2, 2024, arXiv:2408.00118)."""

    def logits(self, h_ND: torch.Tensor, rows: Span | None = None, /) -> torch.Tensor:
        return 30 * torch.tanh(super().logits(h_ND, rows) / 30)


def build() -> GPT:
    text = TextCodec.train(TUNES, 300)
    end, begin, opened, closed, first = range(text.num_codes, text.num_codes + 5)  # ids: text, these four, notes
    notes = Span(first, first + NOTES)
    reads, writes = VectorsLayout(opened, closed), CodesLayout(opened, notes, closed)
    melody = Port(Melody, MelodyEncoder(64), reads, MelodyCodec(), writes, grid=(1, 1, LENGTH), head=MelodyHead)
    ports = {"text": Port(str, codec=text, writes=TextLayout(Span(0, begin), end), grid=(1, 1, 16)), "melody": melody}
    return GPT(DecoderConfig(64, 2, 2, 1, 32, 128), ports, notes.stop, begin)


def main(steps: int = 80) -> None:
    torch.manual_seed(0)
    gpt, keys = build(), [key for key in range(-6, 7) if key != 2]
    heard = [[Part(Melody(tuple(p + key for p in tune))), Part(name, learn=True)] for name, tune in TUNES.items() for key in keys]
    played = [[Part(name), Part(Melody(tune), learn=True)] for name, tune in TUNES.items()]
    stream = pack([gpt.write(sample) for sample in heard + played], gpt.spans)
    optimizer = torch.optim.AdamW(gpt.parameters(), 3e-3)
    for step in range(steps):
        losses = {head: loss_N.mean() for head, loss_N in gpt.losses(stream).items()}
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(f"step {step:3}  " + "  ".join(f"{head} {float(loss.detach()):.3f}" for head, loss in losses.items()))
    for name, tune in TUNES.items():
        named = gpt.generate([Melody(tuple(p + 2 for p in tune))], to="text")  # in a key it was not trained on
        print(f"{name}: heard as {named!r}, played as {gpt.generate([name], to='melody').pitches}")


if __name__ == "__main__":
    main()
