"""A model that reads pictures and rows of pictures with names -> how often it says the right name and group, beside a nearest neighbour."""

import random
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from PIL import Image

from mmgpt.data.emoji import Emoji, is_held_out, picture, training_rows
from mmgpt.errors import DataError
from mmgpt.evaluate.report import report as report

BATCH = 64
SIDE = 16
SEEN = 512  # training pictures that are asked for too: far above the others means too few pictures, not too little training


def evaluate_captions(gpt, rows: Sequence[Emoji], leave_out: str | None = None) -> dict:
    """Exact names on the artist `leave_out`, whom the model was trained without; groups of the test concepts, in all styles.

    Test concepts are new to a model of pictures even by name (one that hears and speaks may have learned to spell them), so only their group can be
    asked for. The baseline answers with the name or group of the nearest of the pictures that the model was trained on, see `nearest`.
    """
    train = training_rows(rows, leave_out)
    unknown = [row for row in rows if row.split == "test"]
    if not train or not unknown:
        raise DataError(f"{len(train)} pictures to train on and {len(unknown)} test pictures: captions need at least one of each")
    thumbnails = _thumbnails(map(picture, train))
    result = {"leave_out": leave_out or "nobody", "training_pictures": len(train)}
    if leave_out:
        result["names"] = _names(gpt, [row for row in rows if row.split == "train" and row.style == leave_out], train, thumbnails)
    seen = random.Random(0).sample(train, min(SEEN, len(train)))
    said = _captions(gpt, [picture(row) for row in seen], "caption:")
    right = sum(words == row.label for words, row in zip(said, seen, strict=True))
    result["names_of_training_pictures"] = {"pictures": len(seen), "exact": right / len(seen)}
    images = [picture(row) for row in unknown]
    said = _captions(gpt, images, "group:")
    near = [train[n].group for n in nearest(_thumbnails(images), thumbnails)]
    result["groups_of_test_concepts"] = _score([row.group for row in unknown], said, near)
    return result


def _names(gpt, asked: Sequence[Emoji], train: Sequence[Emoji], thumbnails: np.ndarray) -> dict:
    """Figures over all pictures, over names that were trained on, and over combinations that no artist showed in training."""
    if not asked:
        raise DataError(f"0 pictures of the left-out style among the train split, {len(train)} of other artists: name a style of the file")
    images = [picture(row) for row in asked]
    said = _captions(gpt, images, "caption:")
    near = [train[n].label for n in nearest(_thumbnails(images), thumbnails)]
    trained = {row.label for row in train}

    def part(keep: Callable[[str], bool]) -> dict:
        chosen = [n for n, row in enumerate(asked) if keep(row.label)]
        return _score([asked[n].label for n in chosen], [said[n] for n in chosen], [near[n] for n in chosen])

    return {"all": part(lambda label: True), "name_trained_on": part(trained.__contains__), "unseen_combinations": part(is_held_out)}


def _score(truth: Sequence[str], said: Sequence[str], near: Sequence[str]) -> dict:
    """Shares of exact answers; `ratio` is None where the baseline never is right."""
    count = len(truth)
    ours = sum(a == b for a, b in zip(said, truth, strict=True)) / max(1, count)
    base = sum(a == b for a, b in zip(near, truth, strict=True)) / max(1, count)
    return {"pictures": count, "exact": ours, "nearest_neighbour": base, "ratio": ours / base if base else None}


def _captions(gpt, images: Sequence[Image.Image], prompt: str) -> list[str]:
    from rich.progress import track

    starts = track(range(0, len(images), BATCH), description=f"reading {len(images)} pictures, {prompt}")
    return [text.strip() for i in starts for text in gpt.caption(images[i : i + BATCH], prompt=prompt)]


def _thumbnails(images: Iterable[Image.Image]) -> np.ndarray:
    """(pictures, 16 * 16 * 3) in [0, 1]: each value the mean of the pixels it covers."""
    small = [np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX)) for image in images]
    return np.stack(small).reshape(len(small), -1).astype(np.float32) / 255


def nearest(asked_ND: np.ndarray, known_MD: np.ndarray) -> np.ndarray:
    """For each row of `asked` the index of the nearest row of `known` by squared distance, the first of equally near ones.

    |a - k|^2 = |a|^2 - 2 a k + |k|^2, and |a|^2 is the same for every k
    """
    length_M = (known_MD**2).sum(1)
    parts = [(length_M - 2 * asked_ND[i : i + 256] @ known_MD.T).argmin(1) for i in range(0, len(asked_ND), 256)]
    return np.concatenate(parts)
