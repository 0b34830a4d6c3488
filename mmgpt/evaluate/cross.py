"""A model of all modalities -> how often a spoken name becomes its picture, and a picture its spoken name.

Neither is learned from pairs: the model has heard names and written them, and has drawn what was written; here one answer goes on from
the other, in one row.
"""

from collections.abc import Sequence

import torch

from mmgpt.data.emoji import Emoji, picture, seen_concepts, training_rows
from mmgpt.data.speech import Speech
from mmgpt.errors import DataError, InputError
from mmgpt.evaluate.draw import PREFERRED, one_of_each
from mmgpt.evaluate.hearing import Recogniser
from mmgpt.evaluate.judge import Judge, means, top
from mmgpt.generate.engine import Engine, Request

BATCH = 20


def evaluate_cross(
    gpt,
    speech: Sequence[Speech],
    rows: Sequence[Emoji],
    judge: Judge,
    recogniser: Recogniser | None,
    voice: str,
    num: int = 100,
    of: int = 300,
    seed: int = 0,
) -> dict:
    """Of `num` of the `of` seen concepts, as `evaluate_drawing` asks for them:

    spoken_to_picture    a clip in which `voice` says the name, to words, and on to a picture: `words` right, the judge's top five of all
    picture_to_spoken    its picture, to words, and on to speech: `words` right, and `exact`: the recogniser hears just the name
    """
    if not {"text", "image", "audio"} <= set(gpt.heads):
        raise InputError(f"this model writes {', '.join(gpt.heads)}: this is measured of one that writes text, pictures and sound")
    concepts = seen_concepts(rows, of)
    clips = {plain(row.text): row for row in speech if row.voice == voice and row.source == "name"}
    asked = [label for label in concepts if plain(label) in clips][:num]
    if not asked:
        raise DataError(f"0 of {len(concepts)} names are spoken by {voice!r} among {len(speech)} clips: use all shards of the speech")
    sounds, asks = [clips[plain(label)].sound for label in asked], gpt.ports["audio"].asks
    heard = run(gpt, [Request([sound, asks], ("text", "image"), seed=seed + n) for n, sound in enumerate(sounds)])
    train = [row for row in training_rows(rows) if row.label in set(concepts)]
    mean_KF = means(judge.features([picture(row) for row in train], "judging real pictures"), [row.label for row in train], concepts)
    feature_NF = judge.features([parts[1].value for parts in heard], "judging drawings")
    ranks = judge.rank(feature_NF, mean_KF, torch.tensor([concepts.index(label) for label in asked]))
    result: dict = {
        "spoken_to_picture": {
            "names": len(asked),
            "words": right([parts[0].value for parts in heard], asked),
            "top1": top(ranks, 1),
            "top5": top(ranks, 5),
        }
    }
    if recogniser is None:
        return result
    shown = [picture(row) for row in one_of_each(asked, train, PREFERRED)]
    said = run(gpt, [Request([image, gpt.ports["image"].asks], ("text", "audio"), seed=seed + n) for n, image in enumerate(shown)])
    understood = recogniser.transcribe([parts[1].value for parts in said])
    result["picture_to_spoken"] = {
        "pictures": len(asked),
        "words": right([parts[0].value for parts in said], asked),
        "exact": right(understood, asked),
    }
    return result


def run(gpt, requests: Sequence[Request]) -> list:
    """What each writes, part by part."""
    return [result.parts for n in range(0, len(requests), BATCH) for result in Engine(gpt).run(requests[n : n + BATCH])]


def right(words: Sequence[str], labels: Sequence[str]) -> float:
    return sum(plain(a) == plain(b) for a, b in zip(words, labels, strict=True)) / len(labels)


def plain(words: str) -> str:
    """Letters and digits alone: neither case, nor hyphens, nor where one word ends can be heard."""
    return "".join(c for c in words.lower() if c.isalnum())
