"""A model that hears and speaks, and rows of speech -> how much it understands, how much is understood of it, and what its codec costs."""

import random
import time
from collections.abc import Sequence

from mmgpt.data.speech import Speech
from mmgpt.errors import DataError, InputError
from mmgpt.evaluate.hearing import Recogniser, dnsmos, edits, word_error
from mmgpt.generate.engine import Engine, Request
from mmgpt.types import Audio

BATCH = 20


def evaluate_speech(
    gpt, rows: Sequence[Speech], recogniser: Recogniser | None, voice: str, num: int = 100, names: int = 300, seed: int = 0, best_of: int = 1
) -> dict:
    """Word errors of what is heard and said; `recogniser` (None: only what needs none) judges what the model says and what its codec keeps.

    sentences     unseen sentences of the voice `voice`, transcribed
    names         spoken by voices that were never trained on: the transcript's nearest of `names` names, by edit distance
    codec         what the recogniser makes of sounds, before and after the codec
    speech        `num` unseen sentences spoken by the model, each the best of `best_of`: word error and DNSMOS (OVRL), and seconds of sound a second
    """
    if not {"text", "audio"} <= set(gpt.heads):
        raise InputError(f"this model writes {', '.join(gpt.heads)}: speech is measured of one that writes text and audio")
    sentences, heard_voices = unseen_sentences(rows, voice), {row.voice for row in rows if row.split == "train"}
    called = [row for row in rows if row.split == "test" and row.source == "name" and row.voice not in heard_voices]
    if not called:
        raise DataError(f"0 names of unseen voices among {len(rows)} clips: use all shards of the speech")
    called = random.Random(seed).sample(called, min(names, len(called)))
    candidates = sorted({row.text for row in called})
    heard = transcribe(gpt, [row.sound for row in sentences])
    found = [nearest(words, candidates) for words in transcribe(gpt, [row.sound for row in called])]
    result: dict = {
        "sentences": {"clips": len(sentences), "word_error": word_error([row.text for row in sentences], heard)},
        "names": {
            "clips": len(called),
            "candidates": len(candidates),
            "picked": sum(a == row.text for a, row in zip(found, called, strict=True)) / len(called),
        },
    }
    if recogniser is None:
        return result
    said = [row.text for row in sentences[:num]]
    result["codec"] = evaluate_codec(gpt.ports["audio"].codec, rows, recogniser, voice, num)
    started = time.perf_counter()
    spoken = [r.value for n in range(0, len(said), BATCH) for r in Engine(gpt).run(requests(said[n : n + BATCH], seed + n, best_of))]
    took = time.perf_counter() - started
    seconds = sum(sound.samples.shape[-1] / sound.rate for sound in spoken)
    result["speech"] = {
        "sentences": len(said),
        "best_of": best_of,
        "word_error": word_error(said, recogniser.transcribe(spoken)),
        "dnsmos": mean(spoken),
        "seconds": seconds,
        "times_real_time": seconds / took,
    }
    return result


def evaluate_codec(codec, rows: Sequence[Speech], recogniser: Recogniser, voice: str, num: int = 100) -> dict:
    """What the recogniser makes of `num` unseen sentences before and after the codec, how good they sound (DNSMOS, OVRL), and codes a second."""
    some = unseen_sentences(rows, voice)[:num]
    said, originals = [row.text for row in some], [row.sound for row in some]
    codes = [codec.encode(sound) for sound in originals]
    coded = [codec.decode(found) for found in codes]
    seconds = sum(sound.samples.shape[-1] / sound.rate for sound in originals)
    return {
        "clips": len(some),
        "codes_a_second": sum(found.size for found in codes) / seconds,
        "word_error_before": word_error(said, recogniser.transcribe(originals)),
        "word_error_after": word_error(said, recogniser.transcribe(coded)),
        "dnsmos_before": mean(originals),
        "dnsmos_after": mean(coded),
    }


def unseen_sentences(rows: Sequence[Speech], voice: str) -> list[Speech]:
    found = [row for row in rows if row.split == "test" and row.voice == voice and row.source != "name"]
    if not found:
        raise DataError(f"0 unseen sentences of the voice {voice!r} among {len(rows)} clips: use all shards of the speech")
    return found


def requests(said: Sequence[str], seed: int, best_of: int) -> list[Request]:
    return [Request([words], "audio", seed=seed + n, best_of=best_of) for n, words in enumerate(said)]


def transcribe(gpt, sounds: Sequence[Audio]) -> list[str]:
    asked = [Request([sound, gpt.ports["audio"].asks], "text") for sound in sounds]
    return [result.value for n in range(0, len(asked), BATCH) for result in Engine(gpt).run(asked[n : n + BATCH])]


def mean(sounds: Sequence[Audio]) -> float:
    scores = dnsmos(sounds)
    return sum(scores) / len(scores)


def nearest(words: str, candidates: Sequence[str]) -> str:
    """The candidate that takes the fewest changes of letters, of equal ones the first; per letter of the longer of the two."""
    return min(candidates, key=lambda candidate: edits(words, candidate) / max(len(words), len(candidate), 1))
