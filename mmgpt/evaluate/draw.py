"""A model that draws and rows of pictures with names -> how often an independent judge recognises what was asked for."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from mmgpt.data.emoji import Emoji, drawing_prompt, picture, seen_concepts, training_rows, unseen_combinations, untinted
from mmgpt.errors import DataError, InputError
from mmgpt.evaluate.codec import reconstruct
from mmgpt.evaluate.judge import Judge, means, rank_unseen_artists, top
from mmgpt.evaluate.report import report as report

BATCH = 50
PREFERRED = ("fluent-3d", "twemoji", "fluent-flat")


@dataclass(frozen=True)
class Exam:
    """What is asked for, the real picture of each, and the candidates' means; `truth_N` is the place of what is asked among them.

    `variants` holds for each the features of the thing's colours or tones in the same style, and the place of the one that is
    asked for: without it a guard in the wrong tone counts as found, since the right one is the nearest candidate still.
    """

    asked: list[Emoji]
    mean_KF: Float[Tensor, "K F"]
    truth_N: Int[Tensor, "N"]
    variants: list[tuple[Float[Tensor, "G F"], int]]

    def score(self, judge: Judge, images: Sequence[Image.Image], title: str) -> dict:
        feature_NF = judge.features(images, f"judging {title}")
        ranks = judge.rank(feature_NF, self.mean_KF, self.truth_N)
        figures = {"top1": top(ranks, 1), "top5": top(ranks, 5)}
        if self.variants:
            tint = [judge.rank(x[None], mean_GF, torch.tensor([place])) for x, (mean_GF, place) in zip(feature_NF, self.variants, strict=True)]
            figures["right_variant"] = top(torch.cat(tint), 1)
        return figures


def evaluate_drawing(
    gpt,
    rows: Sequence[Emoji],
    judge: Judge,
    scales: Sequence[float] = (1.0, 2.0, 3.0, 5.0),
    seed: int = 0,
    num: int = 300,
    styles: Sequence[str] = PREFERRED,
    codec=None,
    **settings,
) -> dict:
    """The judge's top-1 and top-5 on drawings of `num` seen concepts and of the unseen combinations, at each scale of guidance.

    Each is asked for once, in one style in which its real picture exists; the same prompts and seeds meet every scale.
    Seen concepts compete among themselves, unseen combinations among themselves and seen concepts, `num` in all. Means are
    over the real pictures of all artists; `right_variant` asks for the colour or tone alone, among those of the thing in the
    same style; `real_unseen_artist` has each artist's pictures judged by the others' alone. `settings` (sampling, best_of) go
    to `gpt.draw`.
    """
    if not scales:
        raise InputError("0 scales of guidance: give at least one, for example 3.0")
    concepts = seen_concepts(rows, num)
    train = [row for row in training_rows(rows) if row.label in set(concepts)]
    train_NF = judge.features([picture(row) for row in train], "judging real pictures")
    seen = Exam(one_of_each(concepts, train, styles), means(train_NF, _labels(train), concepts), torch.arange(num), [])
    exams = {"seen": seen}
    if unseen_combinations(rows):
        exams["unseen_combinations"] = _unseen_exam(judge, rows, train, train_NF, concepts, styles)
    result = {name: _figures(gpt, exam, judge, scales, seed, codec, settings) for name, exam in exams.items()}
    ranks = rank_unseen_artists(judge, train_NF, train_NF, train, concepts)[1]
    result["seen"]["real_unseen_artist"] = {"pictures": len(ranks), "top1": top(ranks, 1), "top5": top(ranks, 5)}
    best = max(scales, key=lambda scale: result["seen"][f"guidance_{scale:g}"]["top5"])
    return {"best_guidance": float(best), "best_of": settings.get("best_of", 1), **result}


def _labels(rows: Sequence[Emoji]) -> list[str]:
    return [row.label for row in rows]


def _unseen_exam(
    judge: Judge, rows: Sequence[Emoji], train: Sequence[Emoji], train_NF: Float[Tensor, "N F"], concepts: Sequence[str], styles: Sequence[str]
) -> Exam:
    """Unseen combinations among themselves and the first seen concepts, and each among the variants of its thing."""
    unseen = unseen_combinations(rows)
    shapes, known = {untinted(label) for label in unseen}, set(concepts)
    kin = [row for row in rows if untinted(row.label) in shapes and row.label not in known]
    kin_NF = judge.features([picture(row) for row in kin], "judging real variants")
    pool, pool_NF = [*kin, *train], torch.cat([kin_NF, train_NF])
    candidates = unseen + list(concepts[: max(0, len(concepts) - len(unseen))])
    asked, variants = one_of_each(unseen, kin, styles), []
    for row in asked:
        same = [n for n, other in enumerate(pool) if other.style == row.style and untinted(other.label) == untinted(row.label)]
        group = sorted({pool[n].label for n in same})
        variants.append((means(pool_NF[same], _labels([pool[n] for n in same]), group), group.index(row.label)))
    return Exam(asked, means(pool_NF, _labels(pool), candidates), torch.arange(len(unseen)), variants)


def one_of_each(labels: Sequence[str], rows: Sequence[Emoji], styles: Sequence[str] = PREFERRED) -> list[Emoji]:
    """One picture per label, in one of `styles` if any has it; a hash of label and style decides, so that it is the same everywhere."""
    pictures = defaultdict(list)
    for row in rows:
        pictures[row.label].append(row)
    missing = [label for label in labels if label not in pictures]
    if missing:
        raise DataError(f"{len(missing)} of {len(labels)} labels have no picture ({missing[:3]}): leave them out")

    def order(row: Emoji) -> tuple[bool, str]:
        return row.style not in styles, sha256(drawing_prompt(row.label, row.style).encode()).hexdigest()

    return [min(pictures[label], key=order) for label in labels]


def _figures(gpt, exam: Exam, judge: Judge, scales: Sequence[float], seed: int, codec, settings: dict) -> dict:
    prompts = [drawing_prompt(row.label, row.style) for row in exam.asked]
    real = [picture(row) for row in exam.asked]
    figures: dict = {"pictures": len(prompts), "candidates": len(exam.mean_KF), "chance_top5": min(1.0, 5 / len(exam.mean_KF))}
    if exam.variants:
        figures["chance_right_variant"] = sum(1 / len(mean_GF) for mean_GF, _ in exam.variants) / len(exam.variants)
    for scale in scales:
        drawn = _draw(gpt, prompts, scale, seed, settings)
        figures[f"guidance_{scale:g}"] = exam.score(judge, drawn, f"drawings at guidance {scale:g}")
    figures["real"] = exam.score(judge, real, "the real pictures of the same")
    if codec is not None:
        figures["reconstructed"] = exam.score(judge, reconstruct(codec, real)[1], "reconstructions of the real pictures")
    return figures


def _draw(gpt, prompts: Sequence[str], scale: float, seed: int, settings: dict) -> list[Image.Image]:
    from rich.progress import track

    starts = track(range(0, len(prompts), BATCH), description=f"drawing {len(prompts)} prompts at guidance {scale:g}")
    return [image for i in starts for image in gpt.draw(list(prompts[i : i + BATCH]), guidance=scale, seed=seed + i, **settings)]
