"""Pictures, speech and clips with their words -> the directions of a model that reads and writes them all."""

import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmgpt.data.footage import Clip
from mmgpt.data.speech import Speech, masked, varied
from mmgpt.encoders.places import on_grid
from mmgpt.encoders.spelling import SPACE, Spelling, parted, words_in
from mmgpt.encoders.video import VideoEncoder
from mmgpt.errors import TrainingError
from mmgpt.model import GPT
from mmgpt.native import spelling_of
from mmgpt.pack import Document
from mmgpt.train.gpt import GPTTask
from mmgpt.train.mix import Direction
from mmgpt.types import Audio, Part, Prepared, Video, Written

MOVES = "motion:"
SHOWN = 3  # of each direction
CODES = Path("~/.cache/mmgpt/codes")
BLOCK = 1000  # files


def picture_directions(task: GPTTask) -> list[Direction]:
    """Captions and drawings, as the recipe of pictures alone makes them."""
    from torchvision.transforms.v2.functional import to_pil_image

    def of(make: Callable[[int, list[float]], Document]):
        return lambda item, generator: make(item, torch.rand(2, generator=generator).tolist())

    pictures = [
        ([Part(to_pil_image(task.pictures[n])), Part(task.items[n].captions[0][0])], "text", task.items[n].captions[0][1])
        for n in first(task.weight_N, task.mix.captions)
    ]
    words = [([Part(task.items[n].draws[0])], "image", task.items[n].draws[0]) for n in first(task.weight_N, task.mix.draws)]
    return [
        Direction("caption", task.mix.captions, task.weight_N, of(task.caption), pictures),
        Direction("draw", task.mix.draws, task.weight_N, of(task.draw), words),
    ]


def sketch_direction(task: GPTTask, listening: Direction, rows: Sequence[Speech], count: int, drop: float) -> Direction:
    """Names that are heard and written down, and then drawn: what is drawn follows words, whatever came before them. A share `drop` is drawn
    behind empty words, which is what guidance compares with."""
    named: dict[str, list[int]] = {}
    for n in task.weight_N.nonzero()[:, 0].tolist():
        named.setdefault(letters_of(task.items[n].captions[0][1]), []).append(n)
    weight_N = listening.weight_N * torch.tensor([float(letters_of(row.text) in named) for row in rows], dtype=torch.double)
    if not weight_N.any():
        raise TrainingError(f"0 of {len(rows)} clips say the name of one of {len(named)} things that are drawn: use sketches=0")

    def sketch(item: int, generator: torch.Generator) -> Document:
        same = named[letters_of(rows[item].text)]
        drawn = same[int(torch.multinomial(task.weight_N[same], 1, generator=generator))]
        begin, heard, *words = listening.document(item, generator)
        if float(torch.rand((), generator=generator)) < drop:
            words = task.model.write([Part(""), Part("")])[1:]
        return [begin, heard, *words, task.model.ports["image"].writes.write(task.codes[drawn], learn=True)]

    return Direction("sketch", count, weight_N, sketch)


def letters_of(words: str) -> str:
    """As words are compared that are heard: without case, hyphens and where one ends."""
    return "".join(c for c in words.lower() if c.isalnum())


def speech_directions(
    gpt: GPT,
    rows: Sequence[Speech],
    codes: Sequence[np.ndarray],
    counts: tuple[int, int],
    voice: str,
    drop: float,
    heard: Sequence[np.ndarray] = (),
    repeats: int = 0,
    names: float = 1.0,
) -> list[Direction]:
    """Any voice to words; words to the voice `voice`; and what it said to words and again to speech, so that what is said follows words whatever
    came before them. `codes` are the codec's codes of each row, none for rows that are not spoken.
    `heard`: of each row, what ears that are not trained hear in it. Names are said `names` times as often as other clips."""
    port = gpt.ports["audio"]
    if heard:
        gpt.encoders["heard"] = Heard(port.encoder)

    def listened(item: int, generator: torch.Generator) -> Written:
        if heard:
            return port.reads.write(on_grid(torch.from_numpy(heard[item]), (len(heard[item]), 1, 1)), "heard")
        prepared = port.encoder.prepare(varied(rows[item].sound, generator))
        masked_NF = masked(prepared.values_NF, getattr(port.encoder, "mels", 1), generator)
        return port.reads.write(Prepared(masked_NF, prepared.place_N3, prepared.grids), "audio")

    def transcribe(item: int, generator: torch.Generator) -> Document:
        begin, *words = gpt.write([Part(port.asks), Part(rows[item].text, learn=True)])
        return [begin, listened(item, generator), *words]

    def speak(item: int, generator: torch.Generator) -> Document:
        dropped = float(torch.rand((), generator=generator)) < drop
        return gpt.write([Part("" if dropped else rows[item].text), Part(Audio(torch.zeros(1), 16_000), learn=True, codes=codes[item])])

    def repeat(item: int, generator: torch.Generator) -> Document:
        said = [Part(rows[item].text, learn=True), Part(Audio(torch.zeros(1), 16_000), learn=True, codes=codes[item])]
        begin, *rest = gpt.write([Part(port.asks), *said])
        return [begin, listened(item, generator), *rest]

    heard_N = torch.tensor([float(fits(row, gpt.config.audio.seconds)) for row in rows], dtype=torch.double)
    said_N = torch.tensor([float(row.voice == voice and len(c) > 0) for row, c in zip(rows, codes, strict=True)], dtype=torch.double) * heard_N
    said_N *= torch.tensor([names if row.source == "name" else 1.0 for row in rows], dtype=torch.double)
    listening = [([Part(rows[n].sound), Part(port.asks)], "text", rows[n].text) for n in first(heard_N, counts[0])]
    speaking = [([Part(rows[n].text)], "audio", rows[n].text) for n in first(said_N, counts[1])]
    return [
        Direction("transcribe", counts[0], heard_N, transcribe, listening),
        Direction("speak", counts[1], said_N, speak, speaking),
        Direction("repeat", repeats, said_N, repeat),
    ]


def fits(row: Speech, seconds: float) -> bool:
    """Whether a clip is short enough to be heard by ears for so many seconds, slower too."""
    return row.seconds * 1.15 < seconds


def speech_codes(gpt: GPT, rows: Sequence[Speech], voice: str | None) -> list[np.ndarray]:
    """The codec's codes of all clips of a voice; of the others none."""
    said = [row for row in rows if row.voice == voice]
    codec = gpt.ports["audio"].codec
    found = iter(coded(codec.codec, [row.audio for row in said], lambda n: codec.encode(said[n].sound), "speech"))
    return [next(found) if row.voice == voice else np.zeros((0, 1), np.int64) for row in rows]


def with_words(codes: Int[np.ndarray, "T 1"], starts: Sequence[int], words: Sequence[int], ahead: int = 0) -> Int[np.ndarray, "N 1"]:
    """The codes of a sound with its words (codes of their own) among them, each before the frame with which it begins, or the one so many `ahead`
    of it does. The last so many words are none, they have no frames.

    example: codes 5 6 7, starts 0 2, words 90 91            90 5 6 91 7
             the same, words 90 91 89 of which one ahead     90 91 5 6 89 7
    """
    return np.insert(codes[:, 0], [*[0] * ahead, *starts], list(words))[:, None]


def words_of(gpt: GPT, text: str) -> tuple[list[str], list[int]]:
    """What a text is written with among frames, where phones are not known, and its codes: the pieces of its ids, or the letters of its words."""
    codec, spelling = gpt.ports["text"].codec, spelling_of(gpt)
    ids = codec.encode(text)
    if spelling is None:
        return [codec.written(ids[n : n + 1]) for n in range(len(ids))], ids.tolist()
    codes = Spelling().codes(text)
    return [bytes([code]).decode("ascii", "ignore") for code in codes], codes


def phones_of(spelling: Spelling, row: Speech, letters: float = 0.1) -> tuple[list[float], list[int]]:
    """At which second what a clip says begins, and its codes. A share `letters` of its words, and those with a phone that has no code, are spelled:
    words that no lexicon knows are said from letters, so these have to be learned too. They share out the time of their word."""
    words, groups = words_in(row.text), parted(row.phones)
    chance = random.Random(row.text)
    seconds, codes = [], []
    for n, group in enumerate(groups):
        begin = row.begins[group[0]]
        if n:
            seconds.append(row.begins[group[0] - 1])
            codes.append(SPACE)
        known = all(row.phones[k] in spelling.code_of for k in group)
        if len(groups) == len(words) and (chance.random() < letters or not known):
            end = row.begins[groups[n + 1][0] - 1] if n + 1 < len(groups) else row.seconds
            spelled = list(words[n].encode())
            seconds += [begin + (end - begin) * k / len(spelled) for k in range(len(spelled))]
            codes += spelled
        elif known:
            seconds += [row.begins[k] for k in group]
            codes += [spelling.code_of[row.phones[k]] for k in group]
    return seconds, codes


def spelled(gpt: GPT, ears, rows: Sequence[Speech], codes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Codes of speech with their words among them: phones where they are known, anything else where `ears` (`mmgpt.train.ears.Ears`) hear it
    begin; of clips without codes, or too long for these ears, none."""
    layout, spelling, found = gpt.ports["audio"].writes, spelling_of(gpt), [code[:0] for code in codes]
    spoken = {n for n, row in enumerate(rows) if spelling is not None and row.phones and len(codes[n])}
    for n in spoken:
        seconds, said = phones_of(spelling, rows[n])
        frames = [min(int(second / rows[n].seconds * len(codes[n])), len(codes[n])) for second in seconds]
        found[n] = with_words(codes[n], frames, [layout.num_codes + code for code in [*said, *[0] * layout.ahead]], layout.ahead)
    rest = [n for n in range(len(rows)) if n not in spoken and len(codes[n])]
    if rest and ears is None:
        raise TrainingError(f"words among {len(rest)} clips without phones, and no ears to hear where they begin: name a folder of them, aligner=")
    for n, starts, some in zip(rest, *aligned(gpt, ears, rows, rest), strict=True) if rest else ():
        if some:
            *places, count = starts
            frames = [min(place * len(codes[n]) // count, len(codes[n])) for place in places]
            found[n] = with_words(codes[n], frames, [layout.num_codes + code for code in [*some, *[0] * layout.ahead]], layout.ahead)
    return found


def aligned(gpt: GPT, ears, rows: Sequence[Speech], chosen: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
    """Of each chosen clip, at which vector its words begin, and behind these how many were heard; and the words' codes. Both are empty where
    it is too long for these ears."""
    from mmgpt.train.ears import beginnings

    device = next(ears.parameters()).device
    heard = speech_heard(ears.encoder, rows) if hasattr(ears.encoder, "tower") else []  # of all, in the same thousands as are kept to transcribe
    short = [n for n in chosen if fits(rows[n], ears.encoder.max_seconds)]
    words = [words_of(gpt, rows[n].text) for n in short]

    def placed(k: int) -> np.ndarray:
        n = short[k]
        if heard:
            vectors_ND = ears.encoder.out(torch.from_numpy(heard[n]).float().to(device))
        else:
            vectors_ND = ears.encoder(there(ears.encoder.prepare(rows[n].sound), device))
        scores_TL = ears.scores(vectors_ND).cpu()
        return np.array([*beginnings(scores_TL, words[k][0]), len(scores_TL)])

    stored = [str(some).encode() + rows[n].audio for n, (_, some) in zip(short, words, strict=True)]
    places = dict(zip(short, coded(ears, stored, placed, "words"), strict=True))
    said = {n: some for n, (_, some) in zip(short, words, strict=True)}
    return [places[n].tolist() if n in places else [] for n in chosen], [said.get(n, []) for n in chosen]


def clip_codes(gpt: GPT, clips: Sequence[Clip], pictures: Mapping[tuple[str, str], np.ndarray] | None = None) -> list[np.ndarray]:
    """The codec's codes of all clips. `pictures`: the codes of things by (thing, artist); of sprites, what is seen is then better known than a
    small frame shows it."""
    codec = gpt.ports["video"].codec
    found = coded(codec.picture.codec, [clip.stored for clip in clips], lambda n: codec.encode(clips[n].video), "clips")
    if pictures is None or not hasattr(codec, "exchange"):
        return found
    return [codec.exchange(codes, [pictures.get((thing, clip.style)) for thing in clip.things]) for codes, clip in zip(found, clips, strict=True)]


def clip_sights(gpt: GPT, clips: Sequence[Clip]) -> list[np.ndarray]:
    """What the image encoder sees in all frames of each clip: for eyes that stay as they are, which then look but once."""
    encoder = gpt.ports["video"].encoder

    def seen(n: int) -> np.ndarray:
        return kept(encoder.seen(there(encoder.prepare(clips[n].video), gpt.device)))

    return coded(encoder.image, [clip.stored for clip in clips], seen, "sights")


def speech_heard(encoder: nn.Module, rows: Sequence[Speech]) -> list[np.ndarray]:
    """What a sound encoder's tower hears in each clip that fits: for ears that stay as they are, which then listen but once."""
    short = [row for row in rows if fits(row, encoder.max_seconds)]
    device = next(encoder.parameters()).device

    def heard(n: int) -> np.ndarray:
        return kept(encoder.heard(there(encoder.prepare(short[n].sound), device)))

    found = iter(coded(encoder.tower, [row.audio for row in short], heard, "heard"))
    return [next(found) if fits(row, encoder.max_seconds) else np.zeros((0, 1), np.float16) for row in rows]


def there(prepared: Prepared, device: torch.device) -> Prepared:
    """The same where the model is."""
    return replace(prepared, values_NF=prepared.values_NF.to(device), place_N3=prepared.place_N3.to(device))


def kept(vectors: Tensor) -> np.ndarray:
    return vectors.half().cpu().numpy()


class Heard(nn.Module):
    """In the place of a sound encoder, for clips that its tower has heard before: only the map to the decoder is still learned."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        object.__setattr__(self, "encoder", encoder)  # its weights are the encoder's, and saved with it

    def forward(self, prepared: Prepared, /) -> Float[Tensor, "N D"]:
        return self.encoder.out(prepared.values_NF.to(self.encoder.out[0].weight.dtype))


class Seen(nn.Module):
    """In the place of a video encoder, for clips that its eyes have seen before: what they saw, and behind it the pixels (where changes are read).
    The times of frames, and what moved, are still learned."""

    def __init__(self, encoder: VideoEncoder):
        super().__init__()
        object.__setattr__(self, "encoder", encoder)  # its weights are the encoder's, and saved with it

    def forward(self, prepared: Prepared, /) -> Float[Tensor, "N D"]:
        width = self.encoder.time.weight.shape[1]
        seen_ND, pixels_NF = prepared.values_NF.to(self.encoder.time.weight.dtype).tensor_split([width], 1)
        return self.encoder.timed(seen_ND, replace(prepared, values_NF=pixels_NF))


@torch.no_grad()
def coded(network: nn.Module, stored: Sequence[bytes], encode: Callable[[int], np.ndarray], name: str) -> list[np.ndarray]:
    """What a network makes of all files. That takes minutes, so it is kept in `CODES`, for when the same network meets the same files again:
    `BLOCK` files at a time. So nothing is lost on the way, and of a set that has grown only what is new is encoded, and the last block if it
    was not full."""
    from rich.progress import Progress

    if not stored:
        return []
    known = sha256()
    for part in network.state_dict().values():
        known.update(part.cpu().contiguous().numpy().tobytes())
    first = encode(0)  # it says, too, whether frames are as large and as many as they were; fractions differ a little with the number of threads
    known.update(str((first.shape, first.tolist() if first.dtype.kind == "i" else "")).encode())
    found = []
    with Progress(transient=True) as progress:
        bar = progress.add_task(f"coding {name}", total=len(stored))
        for start in range(0, len(stored), BLOCK):
            block, key = range(start, min(start + BLOCK, len(stored))), known.copy()
            for n in block:
                key.update(sha256(stored[n]).digest())
            place = CODES.expanduser() / f"{name}-{key.hexdigest()[:24]}.safetensors"
            if not place.is_file():
                keep(place, [(encode(n), progress.advance(bar))[0] for n in block])
            progress.update(bar, completed=block.stop)
            found += opened(place)
    return found


def keep(place: Path, found: list[np.ndarray]) -> None:
    from safetensors.numpy import save_file

    place.parent.mkdir(parents=True, exist_ok=True)
    new, codes = place.with_suffix(f".{os.getpid()}"), np.concatenate(found)
    save_file({"codes": codes if codes.dtype == np.float16 else codes.astype(np.int32), "counts": np.array([len(codes) for codes in found])}, new)
    new.rename(place)


def opened(place: Path) -> list[np.ndarray]:
    from safetensors.numpy import load_file

    kept = load_file(place)
    codes = kept["codes"] if kept["codes"].dtype == np.float16 else kept["codes"].astype(np.int64)
    return np.split(codes, kept["counts"].cumsum()[:-1])


def clip_directions(
    gpt: GPT,
    clips: Sequence[Clip],
    codes: Sequence[np.ndarray],
    counts: tuple[int, int],
    drop: float,
    sights: Sequence[np.ndarray] = (),
    moves: float = 0.0,
) -> list[Direction]:
    """Clips to words, words to clips. `sights`: of each clip, what eyes that are not trained see in it. A share `moves` of the clips is
    described by how they move alone: that is one word of six, and learned late among the names of things."""
    port = gpt.ports["video"]
    if sights:
        gpt.encoders["sights"] = Seen(port.encoder)
        _, rows, columns = port.encoder.prepare(clips[0].video).grid  # of every frame: they are made square

    def watched(item: int) -> Written:
        if not sights:
            return port.reads.write(port.encoder.prepare(clips[item].video), "video")
        seen_ND = torch.from_numpy(sights[item])
        if port.encoder.changes is not None:
            seen_ND = torch.cat([seen_ND, port.encoder.prepare(clips[item].video).values_NF], 1)
        return port.reads.write(on_grid(seen_ND, (len(seen_ND) // (rows * columns), rows, columns)), "sights")

    def describe(item: int, generator: torch.Generator) -> Document:
        alone = float(torch.rand((), generator=generator)) < moves
        asked, said = (MOVES, clips[item].motion) if alone else (port.asks, clips[item].text)
        begin, *words = gpt.write([Part(asked), Part(said, learn=True)])
        return [begin, watched(item), *words]

    def animate(item: int, generator: torch.Generator) -> Document:
        dropped = float(torch.rand((), generator=generator)) < drop
        return gpt.write([Part("" if dropped else clips[item].text), Part(Video((), 1.0), learn=True, codes=codes[item])])

    weight_N = torch.ones(len(clips), dtype=torch.double)
    watching = [([Part(clips[n].video), Part(port.asks)], "text", clips[n].text) for n in first(weight_N, counts[0])]
    moving = [([Part(clips[n].text)], "video", clips[n].text) for n in first(weight_N, counts[1])]
    return [Direction("describe", counts[0], weight_N, describe, watching), Direction("animate", counts[1], weight_N, animate, moving)]


def first(weight_N: Tensor, count: int) -> list[int]:
    """The first items that may be drawn at all, a few; none of a direction with a count of 0."""
    found = weight_N.nonzero()[: min(SHOWN, count), 0].tolist()
    if count and not found:
        raise TrainingError(f"0 of {len(weight_N)} items can be learned: check the split, the voice, and how long the clips are")
    return found
