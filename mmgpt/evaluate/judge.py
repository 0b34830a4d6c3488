"""Pictures -> 1280 features each of an independent network (EfficientNet-Lite0, ImageNet) -> which concept a picture shows.

The network has never seen our data, our codec or our model: what it recognises is in the picture. A concept is the mean
feature of its real pictures; a picture shows the concept whose mean lies nearest (cosine, after centring).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from mmgpt.data.emoji import ARTIST, Emoji
from mmgpt.encoders.efficientnet import WEIGHTS, EfficientNetLite0
from mmgpt.errors import InputError

SIDE = 224


class Judge:
    """`Judge.load()`, then `features(pictures)` once each, `means` per concept, `rank` against them."""

    def __init__(self, network: nn.Module, batch: int = 32):
        self.network, self.batch = network.eval().to(memory_format=torch.channels_last), batch  # half as long on a CPU

    @classmethod
    def load(cls, path: str | Path = WEIGHTS) -> "Judge":
        return cls(EfficientNetLite0.load(path))

    @torch.inference_mode()
    def features(self, images: Sequence[Image.Image], title: str = "") -> Float[Tensor, "N F"]:
        """One vector of length 1 per picture, F = 1280 of the real network; `title` shows a progress bar."""
        starts: Iterable[int] = range(0, len(images), self.batch)
        if title:
            from rich.progress import track

            starts = track(starts, description=title)
        batches = (torch.stack([pixels(image) for image in images[i : i + self.batch]]) for i in starts)
        found = [self.network(batch.contiguous(memory_format=torch.channels_last)) for batch in batches]
        return F.normalize(torch.cat(found), dim=-1) if found else torch.zeros(0, 1280)

    def rank(self, feature_NF: Float[Tensor, "N F"], mean_KF: Float[Tensor, "K F"], truth_N: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
        """The place of each picture's true concept among the K candidates, 0 = nearest; an equally near one counts against it."""
        centre = mean_KF.mean(0)
        likeness_NK = F.normalize(feature_NF - centre, dim=-1) @ F.normalize(mean_KF - centre, dim=-1).T
        true_N1 = likeness_NK.gather(1, truth_N[:, None])
        return (likeness_NK >= true_N1).sum(1) - 1


def pixels(image: Image.Image) -> Float[Tensor, "3 224 224"]:
    """Values (x - 127) / 128, as these weights were trained with; bicubic, as their evaluation resizes."""
    import numpy as np

    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return (rearrange(torch.from_numpy(np.array(small)), "h w c -> c h w").float() - 127) / 128


def means(feature_NF: Float[Tensor, "N F"], labels: Sequence[str], candidates: Sequence[str]) -> Float[Tensor, "K F"]:
    """The mean feature of each candidate concept; every candidate needs a picture."""
    place = {label: k for k, label in enumerate(candidates)}
    keep = [n for n, label in enumerate(labels) if label in place]
    index = torch.tensor([place[labels[n]] for n in keep], dtype=torch.long)
    count_K = torch.bincount(index, minlength=len(candidates))
    if len(candidates) == 0 or int(count_K.min()) == 0:
        missing = [c for c, n in zip(candidates, count_K.tolist(), strict=True) if n == 0]
        raise InputError(f"{len(missing)} of {len(candidates)} candidate concepts have no picture ({missing[:3]}): leave them out")
    return torch.zeros(len(candidates), feature_NF.shape[1]).index_add_(0, index, feature_NF[keep]) / count_K[:, None]


def top(ranks: Int[Tensor, "N"], k: int) -> float:
    """Share of the pictures whose true concept is among the first k."""
    return float((ranks < k).float().mean()) if len(ranks) else float("nan")


def artist(row: Emoji) -> str:
    return ARTIST.get(row.style, row.style)


def shared_concepts(rows: Sequence[Emoji]) -> list[str]:
    """Labels that at least two artists drew: the others can tell what the one shows."""
    artists: dict[str, set[str]] = {}
    for row in rows:
        artists.setdefault(row.label, set()).add(artist(row))
    return sorted(label for label, drew in artists.items() if len(drew) >= 2)


def rank_unseen_artists(
    judge: Judge, feature_NF: Float[Tensor, "N F"], real_NF: Float[Tensor, "N F"], rows: Sequence[Emoji], candidates: Sequence[str]
) -> tuple[list[int], Int[Tensor, "M"]]:
    """(indices, ranks) of pictures of `rows`, each ranked against means of the real pictures of the *other* artists.

    Candidates are narrowed, artist by artist, to what the others drew. `feature_NF` are the pictures that are judged
    (originals or reconstructions), `real_NF` the originals.
    """
    kept, ranks = [], []
    for name in sorted({artist(row) for row in rows}):
        others = [n for n, row in enumerate(rows) if artist(row) != name]
        drawn = {rows[n].label for n in others}
        concepts = [label for label in candidates if label in drawn]
        place = {label: k for k, label in enumerate(concepts)}
        mine = [n for n, row in enumerate(rows) if artist(row) == name and row.label in place]
        if mine:
            mean_KF = means(real_NF[others], [rows[n].label for n in others], concepts)
            ranks.append(judge.rank(feature_NF[mine], mean_KF, torch.tensor([place[rows[n].label] for n in mine])))
            kept += mine
    return kept, torch.cat(ranks) if ranks else torch.zeros(0, dtype=torch.long)
