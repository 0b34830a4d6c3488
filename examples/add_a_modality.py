"""A new modality in one file, nothing of it in the library: melodies, read as vectors and written as codes.

python examples/add_a_modality.py

One small GPT learns, in some seconds on one CPU thread, to name a melody and to play a named one. The melodies it is
asked for at the end are combinations of a shape and a first note that it was never shown.
"""

from dataclasses import dataclass
from math import pi

import numpy as np
import torch
from torch import nn

from mmgpt.decoders.heads import TableHead
from mmgpt.decoders.transformer import DecoderConfig
from mmgpt.encoders.text import TextCodec
from mmgpt.errors import InputError
from mmgpt.generate.sampling import GREEDY
from mmgpt.layout import CodesLayout, Span, TextLayout, VectorsLayout
from mmgpt.model import GPT, Port
from mmgpt.pack import pack
from mmgpt.types import Part, Prepared

LENGTH, LOWEST, NOTES = 6, 48, 36
FIRST = {"c": 60, "d": 62, "e": 64, "f": 65, "g": 67, "a": 69, "b": 71}
SHAPES = {"rising": (0, 2, 4, 5, 7, 9), "falling": (0, -2, -3, -5, -7, -8), "waving": (0, 4, 0, 4, 0, 4), "still": (0, 0, 0, 0, 0, 0)}


@dataclass(frozen=True)
class Melody:
    pitches: tuple[int, ...]  # semitones, 60 is middle C


class MelodyEncoder(nn.Module):
    """A note -> a vector: its height and its place in the octave, through a small MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.map = nn.Sequential(nn.Linear(3, 64), nn.GELU(), nn.Linear(64, width))

    def prepare(self, value: Melody, /) -> Prepared:
        if not value.pitches:
            raise InputError("a melody of 0 notes: pass at least 1")
        octave_N = torch.tensor(value.pitches) / 12 - 5
        time_N = torch.arange(len(octave_N))
        values_NF = torch.stack([octave_N, (2 * pi * octave_N).sin(), (2 * pi * octave_N).cos()], 1)
        return Prepared(values_NF, torch.stack([time_N] * 3, 1), (1, 1, len(octave_N)))

    def forward(self, prepared: Prepared, /):
        return self.map(prepared.values_NF)


class MelodyCodec:
    """A melody <-> a code a note."""

    num_codes = NOTES

    def encode(self, value: Melody, /) -> np.ndarray:
        return np.array(value.pitches) - LOWEST

    def decode(self, codes: np.ndarray, /) -> Melody:
        return Melody(tuple((codes.reshape(-1) + LOWEST).tolist()))


class MelodyHead(TableHead):
    """The rows of the shared table, and how common each note is."""

    def __init__(self, table: nn.Embedding, ids: Span):
        super().__init__(table, ids)
        self.common = nn.Parameter(torch.zeros(len(ids)))

    def logits(self, h_ND, rows: Span | None = None, /):
        rows = rows or self.ids
        return super().logits(h_ND, rows) + self.common[rows.start - self.ids.start : rows.stop - self.ids.start]


def build(words: list[str]) -> GPT:
    text = TextCodec.train(words, 300)
    begin = text.num_codes + 1  # text ids, end of text | begin, melody begin, melody end | notes
    notes = Span(begin + 3, begin + 3 + NOTES)
    reads, writes = VectorsLayout(begin + 1, begin + 2), CodesLayout(begin + 1, notes, begin + 2)
    melody = Port(Melody, MelodyEncoder(64), reads, MelodyCodec(), writes, (1, 1, LENGTH))
    ports = {"text": Port(str, codec=text, writes=TextLayout(Span(0, begin), begin - 1)), "melody": melody}
    gpt = GPT(DecoderConfig(64, 2, 2, 1, 32, 128), ports, notes.stop, begin)
    gpt.heads["melody"] = MelodyHead(gpt.table, notes)
    return gpt


def train(gpt: GPT, known: dict[str, Melody], steps: int) -> None:
    samples = [[Part(melody), Part(name, learn=True)] for name, melody in known.items()]
    samples += [[Part(name), Part(melody, learn=True)] for name, melody in known.items()]
    stream = pack([gpt.write(sample) for sample in samples], gpt.spans)
    optimizer = torch.optim.AdamW(gpt.parameters(), 3e-3, weight_decay=0.1)
    for step in range(steps):
        losses = gpt.losses(stream)
        sum(loss_N.mean() for loss_N in losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step:3}", *(f"{head} {float(loss_N.detach().mean()):.3f}" for head, loss_N in losses.items()))


def main(steps: int = 300) -> dict[str, tuple[str, Melody, Melody]]:
    torch.manual_seed(0)
    melodies = {f"{shape} from {note}": Melody(tuple(first + s for s in SHAPES[shape])) for shape in SHAPES for note, first in FIRST.items()}
    held_out = ["rising from e", "falling from a", "waving from f", "still from d"]
    gpt = build(list(melodies))
    train(gpt, {name: melody for name, melody in melodies.items() if name not in held_out}, steps)
    found = {}
    for name in held_out:
        named = gpt.generate([melodies[name]], to="text")
        played = gpt.generate([name], to="melody", sampling=GREEDY, guidance=1.0)
        found[name] = (named, played, melodies[name])
        print(f"{name:15} read as {named!r:18} played as {played.pitches}, right is {melodies[name].pitches}")
    return found


if __name__ == "__main__":
    main()
