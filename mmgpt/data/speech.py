"""Parquet of speech (tools/build_speech.py) -> rows of (sound, words, voice), and the sounds as they are learned from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mmgpt.data.sound import open_sound
from mmgpt.errors import DataError
from mmgpt.types import Audio

COLUMNS = ("audio", "text", "voice", "source", "split", "seconds")
PHONES = ("phones", "begins")


@dataclass(frozen=True)
class Speech:
    """One clip: the bytes of a sound file, what is said, by whom; `source` says of what the words are (name, sentence, prose, chain or example).
    Where it is known, `phones` are the speech sounds that were said, " " between words, and `begins` the second at which each does."""

    audio: bytes = field(repr=False)
    text: str
    voice: str
    source: str
    split: str
    seconds: float
    phones: tuple[str, ...] = ()
    begins: tuple[float, ...] = ()

    @property
    def sound(self) -> Audio:
        return open_sound(self.audio)


def load_speech(place: str | Path) -> list[Speech]:
    """All rows of a parquet file, or of a folder of them in the order of their names."""
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    place, remedy = Path(place), "give a file or folder that tools/build_speech.py makes"
    files = sorted(place.glob("*.parquet")) if place.is_dir() else [place] if place.is_file() else []
    if not files:
        raise DataError(f"0 parquet files at {str(place)!r}: {remedy}")
    rows: list[Speech] = []
    for file in files:
        try:
            spoken = [name for name in PHONES if name in parquet.read_schema(file).names]
            table = parquet.read_table(file, columns=[*COLUMNS, *spoken])
        except (ArrowException, OSError, KeyError) as error:
            raise DataError(f"{str(file)!r} cannot be read ({str(error).splitlines()[0]}): {remedy}") from error
        if not all(isinstance(seconds, float) and seconds > 0 for seconds in table.column("seconds").to_pylist()):
            raise DataError(f"{str(file)!r} has clips without a length in its column seconds: {remedy}")
        for row in table.to_pylist():
            phones, begins = (tuple(row.get(name) or ()) for name in PHONES)
            if len(phones) != len(begins) or any(not 0 <= second <= row["seconds"] for second in begins) or list(begins) != sorted(begins):
                raise DataError(f"{str(file)!r} has {len(phones)} phones that begin at {len(begins)} times, in order within the clip: {remedy}")
            rows.append(Speech(row["audio"]["bytes"], *(row[name] for name in COLUMNS[1:]), phones, begins))
    return rows


def varied(sound: Audio, generator: torch.Generator, most: float = 0.12) -> Audio:
    """The sound as it might be said again: up to `most` slower and lower or faster and higher, louder or softer, with a little noise."""
    speed, gain, noise = torch.rand(3, generator=generator).tolist()
    samples = torch.atleast_2d(sound.samples).mean(0)
    length = max(1, round(len(samples) * (1 + most * (2 * speed - 1))))
    stretched = F.interpolate(samples[None, None], length, mode="linear", align_corners=False)[0, 0]
    loud = stretched * 10 ** (0.6 * (gain - 0.5))
    loud = loud + 0.003 * noise * torch.randn(length, generator=generator)
    return Audio(loud.clamp(-1, 1), sound.rate)


def masked(values_NF: Float[Tensor, "N F"], parts: int, generator: torch.Generator) -> Float[Tensor, "N F"]:
    """Vectors with a stretch of time and a band of each of their `parts` (mel bins) set to their mean (SpecAugment: Park et al., 2019,
    arXiv:1904.08779)."""
    values = values_NF.clone()
    time, width, bin, height = torch.rand(4, generator=generator).tolist()
    count, mean = len(values), float(values.mean())
    first = int(time * count)
    values[first : first + int(width * min(6, 0.2 * count))] = mean
    size = values.shape[1] // parts
    low = int(bin * parts)
    values.view(count, parts, size)[:, low : low + int(height * 0.2 * parts)] = mean
    return values


def of(rows: Sequence[Speech], split: str, voice: str = "", source: str = "") -> list[Speech]:
    """The rows of a split; of one voice or source, where named."""
    return [r for r in rows if r.split == split and voice in ("", r.voice) and source in ("", r.source)]
