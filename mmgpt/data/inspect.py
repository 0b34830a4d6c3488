"""A source -> what is in it: how many samples, how long, the first ones as words and pictures, and which are broken."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median

from PIL import Image

from mmgpt.data.row import Source
from mmgpt.data.samples import Form, sample_of
from mmgpt.errors import DataError
from mmgpt.pack import Document, length
from mmgpt.types import Sample

NAMED = 10  # bad samples whose reasons are shown


@dataclass
class Found:
    """What an inspection has seen so far. `lengths` are positions, `parts` counts segments by what they are."""

    read: int = 0
    lengths: list[int] = field(default_factory=list)
    parts: dict[str, int] = field(default_factory=dict)
    shown: list[tuple[str, Sample]] = field(default_factory=list)
    bad: int = 0
    reasons: list[str] = field(default_factory=list)


def samples_in(source: Source, form: Form, limit: int | None = None, bad: Callable[[str, Exception], None] = lambda *_: None) -> Iterator:
    """(shard and index, the number of the sample, the sample) in the order of the files, at most `limit` good and bad ones together."""
    number = 0
    for block in range(source.num_blocks):
        rows = source.rows(block)
        for index in range(len(rows)):
            if limit is not None and number >= limit:
                return
            shard, at = source.where(block, index)
            place, number = f"{shard}, sample {at}", number + 1
            try:
                sample = sample_of(rows[index], form, "inspect", block, index)
            except Exception as error:  # whatever a decoder raises
                bad(place, error)
                continue
            yield place, number, sample


def inspect(source: Source, form: Form, write: Callable[[Sample], Document], limit: int = 1000, shown: int = 16) -> Found:
    """Reads and writes up to `limit` samples just as training would."""
    found = Found()

    def bad(place: str, error: Exception) -> None:
        found.bad += 1
        if len(found.reasons) < NAMED:
            found.reasons.append(f"{place}: {error if isinstance(error, ValueError) else type(error).__name__}")

    for place, _, sample in samples_in(source, form, limit, bad):
        try:
            document = write(sample)
        except Exception as error:
            bad(place, error)
            continue
        found.read += 1
        found.lengths.append(length(document))
        for part in sample:
            kind = f"{type(part.value).__name__.removesuffix('File')}{', learned' if part.learn else ''}"
            found.parts[kind] = found.parts.get(kind, 0) + 1
        if len(found.shown) < shown:
            found.shown.append((place, sample))
    return found


def report(source: Source, found: Found) -> str:
    """The words for a terminal."""
    lines = [f"{source.name}: {source.size:,} samples in {source.num_blocks:,} blocks; {found.read + found.bad:,} were read, {found.bad:,} are bad"]
    if found.lengths:
        lines.append(
            f"positions: {min(found.lengths):,} to {max(found.lengths):,}, median {median(found.lengths):,.0f}, in all {sum(found.lengths):,}"
        )
        lines.append("parts: " + ", ".join(f"{count:,} x {kind}" for kind, count in sorted(found.parts.items())))
    lines += [f"  {place}: {words_of(sample)[:160]}" for place, sample in found.shown]
    lines += [f"bad: {reason}" for reason in found.reasons]
    if found.bad > len(found.reasons):
        lines.append(f"bad: {found.bad - len(found.reasons):,} more")
    return "\n".join(lines)


def words_of(sample: Sample) -> str:
    """Words as they are, everything else by its kind; what is learned stands in braces.

    [picture] 'caption:' {'a cat'}
    """
    shown = [repr(part.value) if isinstance(part.value, str) else f"[{type(part.value).__name__}]" for part in sample]
    return " ".join(f"{{{word}}}" if part.learn else word for word, part in zip(shown, sample, strict=True))


def sheet(found: Found) -> Image.Image:
    """The pictures of the samples that are shown, with their words."""
    from mmgpt.data.sheet import contact_sheet

    cells = []
    for _, sample in found.shown:
        words = " | ".join(part.value for part in sample if isinstance(part.value, str))
        cells += [(part.value, words) for part in sample if isinstance(part.value, Image.Image)]
    if not cells:
        raise DataError(f"0 pictures among the first {len(found.shown)} samples: leave -o out, or name another source")
    return contact_sheet([picture for picture, _ in cells], [words for _, words in cells])
