"""Emoji names and WordNet sentences, spoken by five synthetic voices -> parquet shards of short clips of speech with their words.

    python tools/build_speech.py speech --emoji emoji.parquet     # speech/speech-000.parquet ..., 49,000 clips, an hour on one core
    python tools/build_speech.py --fixture                        # only tests/data/speech6.parquet

Needs `pip install hibari-tts==0.2.1 onnx==1.23.2 onnxruntime==1.32.0 scipy==1.17.1 soundfile==0.14.0` and Debian's `flite` 2.2-5 and
`wordnet-base` 1:3.0-37.
Licences: hibari-tts Apache-2.0 (its voice is distilled from Kokoro-82M, Apache-2.0); flite and its voices slt, awb, rms, kal16 under CMU's
BSD-like licence; WordNet 3.0 under Princeton's licence (free use with its notice). Emoji names: Unicode CLDR.

Every clip is 16 kHz mono FLAC, 80 ms of silence at either end at most. `text` has the words as spoken, lower case, no marks but the
apostrophe within a word. Of the voice that hibari-tts has, `phones` are the speech sounds it said (a stressed vowel has the mark before it,
" " stands between words) and `begins` when each begins, in seconds: the network's own durations. Sources: "name" (an emoji's name, `label`
is its row in emoji.parquet), "sentence" (an example of WordNet's), "prose" (a definition of WordNet's), "chain" (drawn from the trigrams of
the examples: English in small, not in large). All but names use the 1,000 most frequent words of the examples; "example" is any other
example, with any words, by the first voice, behind all the others. Split "test": 300 sentences that no voice of the training split speaks
and no training text contains, and everything that the voice `rms` says. Shards are the same mix up to the examples, and those that exist
are left as they are.
"""

import argparse
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import unicodedata
import wave
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
RATE = 16000
SHARD = 1000  # clips
NUM_WORDS, NUM_CHAINS, NUM_TEST, NUM_SPOKEN, NUM_EXAMPLES = 1000, 9000, 300, 500, 24_000  # NUM_SPOKEN: sentences of each voice but the first
FIRST, OTHERS, LEFT_OUT = "heart", ("slt", "awb", "kal16"), "rms"
STRESS, WEAK, PAUSES = "ˈ", "ˌ", ' .,;:!?—…"()“”'
DURATIONS = "/CumSum_output_0"  # where hibari's network counts up the frames of its phones
PACKAGES = "pip install hibari-tts==0.2.1 onnx==1.23.2 onnxruntime==1.32.0 scipy==1.17.1 soundfile==0.14.0"

WORD = re.compile(r"[a-z]+(?:'[a-z]+)*", re.IGNORECASE)
FOREIGN = re.compile(r"[^A-Za-z ',.;:!?-]")  # digits, brackets, accents: not sure how it is spoken
LETTER = re.compile(r"(?<![-\w])[A-Z](?![-\w.])|ZZZ")  # "A button" is read as the article
SPELLED = ("SOS", "ATM", "AB", "CL", "ID", "NG", "SAR", "OK")  # as letters; other capitals are only loud
SPOKEN = {
    "&": "and", "St.": "saint", "Mrs.": "missus", "U.S.": "United States", "VS": "versus", "1st": "first", "2nd": "second", "3rd": "third",
    "0": "zero", "1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six", "7": "seven", "8": "eight", "9": "nine",
    "10": "ten", "#": "hash", "*": "star",
}  # fmt: skip
FIXTURE = (
    ("red apple", "red apple", "heart", "name", "train"), ("rocket", "rocket", "kal16", "name", "train"),
    ("cat face", "cat face", "rms", "name", "test"), ("", "The fire is out.", "heart", "sentence", "train"),
    ("", "Answer the door.", "slt", "sentence", "train"), ("", "In the future.", "awb", "prose", "train"),
)  # fmt: skip
COLUMNS = ("text", "voice", "source", "split", "label")
FEATURES = {"audio": {"sampling_rate": RATE, "_type": "Audio"}, "seconds": {"dtype": "float32", "_type": "Value"}} | {
    name: {"dtype": "string", "_type": "Value"} for name in COLUMNS
}
LISTS = {"phones": "string", "begins": "float32"}
FEATURES |= {name: {"feature": {"dtype": kind, "_type": "Value"}, "_type": "Sequence"} for name, kind in LISTS.items()}
SCHEMA = pa.schema(
    [("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("seconds", pa.float32())]
    + [(n, pa.string()) for n in COLUMNS]
    + [("phones", pa.list_(pa.string())), ("begins", pa.list_(pa.float32()))],
    metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})},
)


@dataclass(frozen=True)
class Line:
    """What one voice has to say: `said` as the voice reads it, with capitals and marks."""

    label: str
    said: str
    voice: str
    source: str
    split: str

    @property
    def text(self) -> str:
        return text_of(self.said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=Path, help="folder to write the shards into")
    parser.add_argument("--emoji", type=Path, default=Path("emoji.parquet"), help="the names to speak, made by tools/build_emoji.py")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="the folder of WordNet's data.noun, data.verb ...")
    parser.add_argument("--fixture", action="store_true", help="write the small committed file instead")
    arguments = parser.parse_args()
    if bool(arguments.output) == arguments.fixture:
        parser.error("give either an output folder or --fixture")
    if arguments.fixture:
        return write(ROOT / "tests/data/speech6.parquet", [Line(*line) for line in FIXTURE], Voices())
    lines, vocabulary = every_line(names_of(arguments.emoji), *wordnet(arguments.wordnet))
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "vocabulary.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    write_shards(arguments.output, lines)
    (arguments.output / "counts.json").write_text(json.dumps(counts(arguments.output), indent=1) + "\n", "utf-8")


# what is said


def every_line(names: dict[str, str], examples: list[str], definitions: list[str]) -> tuple[list[Line], list[str]]:
    """(all lines in the order of the shards, the vocabulary by frequency)."""
    frequency = Counter(word for example in examples for word in words(example))
    vocabulary = [word for word, _ in frequency.most_common(NUM_WORDS)]
    sentences = shuffled(within(examples, set(vocabulary)), "sentences")
    test, tested = sentences[:NUM_TEST], {text_of(s) for s in sentences[:NUM_TEST]}

    def unseen(found: list[str]) -> list[str]:  # a test sentence is not even a part of a training text
        return [s for s in found if not any(f" {t} " in text for text in [f" {text_of(s)} "] for t in tested)]

    train = unseen(sentences[NUM_TEST:])
    spoken = {text_of(s) for s in train}
    prose = [s for s in unseen(within(definitions, set(vocabulary))) if text_of(s) not in spoken]
    chains = unseen(chained(unseen(examples), set(vocabulary), NUM_CHAINS))
    groups = [[Line("", said, FIRST, source, "train") for said in found] for source, found in
              (("sentence", train), ("prose", prose), ("chain", chains))]  # fmt: skip
    groups += [[Line("", said, voice, "sentence", "test") for said in test] for voice in (FIRST, LEFT_OUT)]
    mixed = shuffled(train + chains, "mixed")
    for number, voice in enumerate((FIRST, *OTHERS, LEFT_OUT)):
        split = "test" if voice == LEFT_OUT else "train"
        groups.append([Line(label, said, voice, "name", split) for label, said in names.items()])
        if voice in OTHERS:
            share = mixed[number * NUM_SPOKEN :][:NUM_SPOKEN]
            groups.append([Line("", said, voice, "sentence" if text_of(said) in spoken else "chain", "train") for said in share])
    more = [s for s in unseen(within(examples, {word for example in examples for word in words(example)})) if text_of(s) not in spoken]
    return interleaved(groups) + [Line("", said, FIRST, "example", "train") for said in shuffled(more, "examples")[:NUM_EXAMPLES]], vocabulary


def interleaved(groups: list[list[Line]]) -> list[Line]:
    """All lines, so that every stretch of them has the same mix of groups."""
    placed = [((i + 0.5) / len(group), g, line) for g, group in enumerate(groups) for i, line in enumerate(shuffled(group, f"group {g}"))]
    return [line for _, _, line in sorted(placed, key=lambda place: place[:2])]


def names_of(path: Path) -> dict[str, str]:
    """Label -> what is said, of every emoji that is no skin tone variant and no bare letter."""
    if not path.is_file():
        sys.exit(f"{path} is missing, it holds the names: python tools/build_emoji.py {path}, or give its path with --emoji")
    table = pq.read_table(path, columns=["label", "skin"]).to_pylist()
    labels = sorted({row["label"] for row in table if not row["skin"]})
    return {label: spoken_name(label) for label in labels if not LETTER.search(label)}


def spoken_name(label: str) -> str:
    """ "flag: St. Lucia" -> "flag saint Lucia", "1st place medal" -> "first place medal", "UP! button" -> "up button"."""
    plain = unicodedata.normalize("NFKD", label.replace("’", "'")).encode("ascii", "ignore").decode()
    parts = [SPOKEN.get(part, part) for part in re.sub(r"[:,!()-]", " ", plain).split()]
    return " ".join(part.lower() if part.isupper() and part not in SPELLED else part for part in parts)


def wordnet(folder: Path) -> tuple[list[str], list[str]]:
    """(examples, definitions) of the glosses, each once, in file order."""
    examples, definitions = {}, {}
    for kind in ("noun", "verb", "adj", "adv"):
        path = folder / f"data.{kind}"
        if not path.is_file():
            sys.exit(f"{path} is missing, it holds the sentences: apt-get install wordnet-base, or give its folder with --wordnet")
        for line in path.read_text("latin-1").splitlines():
            if line.startswith("  "):  # the licence
                continue
            gloss = line.split("|", 1)[1]
            examples |= dict.fromkeys(found.strip() for found in re.findall(r'"([^"]+)"', gloss) if not FOREIGN.search(found))
            rest = re.sub(r'"[^"]*"|\([^)]*\)', "", gloss)
            definitions |= dict.fromkeys(found.strip() for found in re.split(r"[;:]", rest) if not FOREIGN.search(found))
    return list(examples), list(definitions)


def words(said: str) -> list[str]:
    return WORD.findall(said.lower())


def text_of(said: str) -> str:
    """ "Don't go, John!" -> "don't go john"."""
    return " ".join(words(said))


def within(found: list[str], vocabulary: set[str]) -> list[str]:
    """As sentences, each once: those of 3 to 12 words that are all known."""
    texts = {}
    for sentence in found:
        text = words(sentence)
        if 3 <= len(text) <= 12 and vocabulary.issuperset(text):
            texts.setdefault(text_of(sentence), as_sentence(sentence))
    return list(texts.values())


def as_sentence(found: str) -> str:
    bare = " ".join(found.strip(" ,;:'-").replace("-", " ").split())
    return bare[0].upper() + bare[1:] + ("" if bare[-1] in ".!?" else ".")


def chained(examples: list[str], vocabulary: set[str], count: int) -> list[str]:
    """New sentences: each word is drawn among those that follow the two before it in an example; 5 to 12 known words, none an example."""
    following, form, known = defaultdict(list), defaultdict(Counter), set()
    for example in examples:
        said = WORD.findall(example)
        lower = [word.lower() for word in said]
        known.add(" ".join(lower))
        for word in said:
            form[word.lower()][word] += 1
        for two, one, word in zip(["", "", *lower], ["", *lower], [*lower, ""], strict=False):
            if word in vocabulary or not word:
                following[two, one].append(word)
    generator, found = random.Random("chains"), {}
    for _ in range(200 * count):
        if len(found) == count:
            return list(found.values())
        text = ["", ""]
        while len(text) < 15 and (choices := following.get((text[-2], text[-1]))) and (word := generator.choice(choices)):
            text.append(word)
        ended = choices is not None and word == ""
        text = text[2:]
        if ended and 5 <= len(text) <= 12 and " ".join(text) not in known:
            found[" ".join(text)] = as_sentence(" ".join(form[word].most_common(1)[0][0] for word in text))
    sys.exit(f"{len(found)} of {count} new sentences could be made of {len(examples)} examples: lower NUM_CHAINS")


def shuffled(items: list, seed: str) -> list:
    return random.Random(seed).sample(items, len(items))


# how it sounds


class Voices:
    """A line -> its samples, float32 at 16 kHz, and its phones with the second at which each begins; pace and noise follow from voice and words."""

    def __init__(self):
        try:
            import hibari
            import onnx
            import soundfile
        except ModuleNotFoundError as error:
            sys.exit(f"{error.name} is missing, it is needed to speak or to write FLAC: {PACKAGES}")
        if not shutil.which("flite"):
            sys.exit("flite is missing, it speaks with four of the voices: apt-get install flite")
        self.hibari, self.soundfile = hibari.Hibari(), soundfile
        self.synth = hibari.dsp.synth
        network = onnx.load(self.hibari.model_path)
        if not any(DURATIONS in node.output for node in network.graph.node):
            sys.exit(f"hibari's network has no {DURATIONS}, by which it counts durations: install hibari-tts 0.2.1")
        network.graph.output.append(onnx.helper.make_tensor_value_info(DURATIONS, onnx.TensorProto.INT64, None))
        self.network = onnx_session(network.SerializeToString())

    def speak(self, line: Line) -> tuple[np.ndarray, list[tuple[str, float]]]:
        seed = zlib.crc32(f"{line.voice}: {line.said}".encode())
        pace = random.Random(seed).uniform(0.88, 1.14)
        samples, phones = self.neural(line.said, pace, seed) if line.voice == FIRST else (flite(line.said, line.voice, pace), [])
        begin, end = trimmed(samples)
        kept = levelled(samples[begin:end])
        return kept, [(phone, min(max(0.0, second - begin / RATE), len(kept) / RATE)) for phone, second in phones]

    def neural(self, said: str, pace: float, seed: int) -> tuple[np.ndarray, list[tuple[str, float]]]:
        import torch
        from torchaudio.functional import resample

        samples, phones, spoken, rate = [], [], 0, self.hibari.sample_rate
        generator = np.random.default_rng(seed)
        for sentence in self.hibari.phonemize(said):
            known = [c for c in sentence if c in self.hibari.vocab]
            given = {"ids": np.array([self.hibari.ids(sentence)]), "speed": np.array([pace], np.float32)}
            *parts, ends = self.network.run(None, given)
            samples.append(self.synth(*(part[0] for part in parts), generator))
            ends = ends.reshape(-1)  # of a pause, each mark and a pause, in frames
            starts = (spoken + ends[: len(known)] * len(samples[-1]) / ends[-1]) / rate
            phones += [(" ", spoken / rate)] * bool(phones) + phones_of(known, starts.tolist())
            spoken += len(samples[-1])
        sound = torch.from_numpy(np.concatenate(samples))
        return resample(sound, rate, RATE, lowpass_filter_width=32).numpy(), phones

    def flac(self, samples: np.ndarray) -> bytes:
        content = io.BytesIO()
        self.soundfile.write(content, samples, RATE, format="FLAC", subtype="PCM_16")
        return content.getvalue()


def onnx_session(network: bytes):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])


def phones_of(marks: list[str], starts: list[float]) -> list[tuple[str, float]]:
    """The marks of a sentence and when they begin -> its phones: main stress belongs to the vowel behind it, the weaker one is left out, and
    whatever parts words is one space.

    example: n ˈ ʌ θ ɪ ŋ    n ˈʌ θ ɪ ŋ
    """
    found, waiting = [], []  # marks that belong to what follows
    for mark, start in zip(marks, starts, strict=True):
        if mark in (STRESS, WEAK):
            waiting.append((mark, start))
        elif mark in PAUSES:
            waiting = []
            if found and found[-1][0] != " ":
                found.append((" ", start))
        else:
            stress = STRESS if any(before == STRESS for before, _ in waiting) else ""
            found.append((stress + mark, min([start, *(when for _, when in waiting)])))
            waiting = []
    return found[:-1] if found and found[-1][0] == " " else found


def flite(said: str, voice: str, pace: float) -> np.ndarray:
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        stretch = f"duration_stretch={1 / pace:.3f}"
        run = subprocess.run(["flite", "-voice", voice, "--setf", stretch, "-t", said, "-o", file.name], capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"flite failed on {said!r}: {run.stderr.strip()}")
        with wave.open(file.name) as sound:
            if sound.getframerate() != RATE:
                sys.exit(f"flite's {voice} speaks at {sound.getframerate()} Hz, {RATE} are expected: install flite 2.2")
            return np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(np.float32) / 32768


def trimmed(samples: np.ndarray, quiet: float = 0.01, keep: int = RATE * 80 // 1000) -> tuple[int, int]:
    """Where to cut off what is 40 dB below the loudest 10 ms, but for 80 ms before and behind."""
    frame = RATE // 100
    loudness = np.sqrt(np.square(samples[: len(samples) // frame * frame].reshape(-1, frame)).mean(1))
    loud = np.flatnonzero(loudness > quiet * loudness.max())
    return max(0, loud[0] * frame - keep), (loud[-1] + 1) * frame + keep


def levelled(samples: np.ndarray) -> np.ndarray:
    """All voices equally loud: -20 dB of full scale, unless a peak would be cut."""
    return samples * min(0.1 / np.sqrt(np.square(samples).mean()), 0.97 / np.abs(samples).max())


# where it goes


def write_shards(folder: Path, lines: list[Line]) -> None:
    from rich.progress import track

    shards = [lines[i : i + SHARD] for i in range(0, len(lines), SHARD)]
    missing = [(number, shard) for number, shard in enumerate(shards) if held(shard_path(folder, number)) != len(shard)]
    if not missing:
        return
    voices = Voices()
    total = sum(len(shard) for _, shard in missing)
    progress = iter(track(range(total), description=f"{len(missing)} of {len(shards)} shards"))
    for number, shard in missing:
        write(shard_path(folder, number), shard, voices, progress)
    next(progress, None)  # the bar is full when its last step is asked for


def held(path: Path) -> int:
    """How many clips a shard has; one that ended an earlier, shorter run has fewer than are due now."""
    try:
        return pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowInvalid):
        return -1


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"speech-{number:03d}.parquet"


def write(path: Path, lines: list[Line], voices: Voices, progress: Iterator | None = None) -> None:
    rows = []
    for line in lines:
        samples, phones = voices.speak(line)
        about = {name: getattr(line, name) for name in COLUMNS}
        about |= {"phones": [phone for phone, _ in phones], "begins": [second for _, second in phones]}
        rows.append({"audio": {"bytes": voices.flac(samples), "path": None}, "seconds": len(samples) / RATE, **about})
        if progress:
            next(progress, None)
    part = path.with_suffix(".part")
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), part, compression="zstd", row_group_size=100)
    os.replace(part, path)
    print(f"{path}: {len(rows)} clips, {sum(row['seconds'] for row in rows) / 3600:.2f} hours, {path.stat().st_size} bytes")


def counts(folder: Path) -> dict:
    """{voice: {"split source": {clips, hours}}} of all shards."""
    found = defaultdict(lambda: defaultdict(lambda: {"clips": 0, "hours": 0.0}))
    for path in sorted(folder.glob("speech-*.parquet")):
        for row in pq.read_table(path, columns=["voice", "split", "source", "seconds"]).to_pylist():
            entry = found[row["voice"]][f"{row['split']} {row['source']}"]
            entry["clips"] += 1
            entry["hours"] = round(entry["hours"] + row["seconds"] / 3600, 6)
    return found


if __name__ == "__main__":
    main()
