"""Classifier-free guidance (Ho & Salimans, 2022, arXiv:2207.12598): one convention, `u + s (c - u)`, over one or two unconditional branches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmgpt.errors import GuidanceError, InputError
from mmgpt.types import Part


@dataclass(frozen=True)
class Guidance:
    """How far to go from what is written without the words towards what is written with them.

    `scale`      1 is none, 0 the unconditional model
    `negative`   words to go away from, in the place of no words
    `picture`    a scale of its own for what else is given (pictures): a second branch, without them too: u + picture (w - u) + scale (c - w),
                 w without words, u without anything (InstructPix2Pix: Brooks et al., 2022, arXiv:2211.09800, equation 3)
    `rescale`    this share of the guided scores is brought back to the spread of c's (Lin et al., 2023, arXiv:2305.08891, section 3.4)
    `interval`   of the segment, as shares of its codes: outside it there is none (Kynkaanniemi et al., 2024, arXiv:2404.07724)
    """

    scale: float
    negative: str = ""
    picture: float | None = None
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        if not isinstance(self.interval, (tuple, list)) or not all(isinstance(share, (int, float)) for share in self.interval):
            raise GuidanceError(f"interval={self.interval!r}: use two numbers from 0 to 1, the smaller first")
        object.__setattr__(self, "interval", tuple(self.interval))
        for name, value, top in [("guidance", self.scale, 100), ("guidance of pictures", self.picture or 0, 100), ("rescale", self.rescale, 1)]:
            if not isinstance(value, (int, float)) or not 0 <= value <= top:
                raise GuidanceError(f"{name}={value}: use 0 to {top}" + (" (1 is none)" if top > 1 else ""))
        if len(self.interval) != 2 or not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise GuidanceError(f"interval={self.interval}: use two numbers from 0 to 1, the smaller first")

    @property
    def off(self) -> bool:
        return self.scale == 1 and self.picture in (None, 1)

    def forms(self, parts: Sequence[Part], unconditional) -> list[list[Part]]:
        """The samples that are compared with `parts`: without words (`unconditional` makes it), and without anything."""
        if self.off:
            return []
        bare = unconditional(parts)
        if self.negative:
            bare = with_words(bare, self.negative)
        if self.picture is None:
            return [bare]
        rest = [part for part in bare if isinstance(part.value, str) or part.learn]
        if len(rest) == len(bare):
            raise GuidanceError(f"picture={self.picture} was asked for, but the request has nothing but words to leave out: pass picture=None")
        return [bare, rest or [Part("")]]

    def mix(self, logits_RGV: Float[Tensor, "R G V"], done_R: Sequence[float]) -> Float[Tensor, "R V"]:
        """The scores of each row's branches as one; `done_R` are the shares of their segments that are written."""
        conditional = logits_RGV[:, 0]
        if logits_RGV.shape[1] == 1:
            return conditional
        guided = guide(conditional, logits_RGV[:, 1], self.scale)
        if self.picture is not None:
            guided = guided - logits_RGV[:, 1] + guide(logits_RGV[:, 1], logits_RGV[:, 2], self.picture)
        if self.rescale:
            spread = conditional.std(-1, keepdim=True) / guided.std(-1, keepdim=True).clamp_min(1e-9)
            guided = guided * (self.rescale * spread + 1 - self.rescale)
        if self.interval == (0.0, 1.0):
            return guided
        inside = torch.tensor([self.interval[0] <= done < self.interval[1] for done in done_R], device=guided.device)
        return torch.where(inside[:, None], guided, conditional)


def guide(conditional: Float[Tensor, "*R V"], unconditional: Float[Tensor, "*R V"], scale: float) -> Float[Tensor, "*R V"]:
    """u + s (c - u): scale 1 is no guidance, 0 the unconditional model."""
    return unconditional + scale * (conditional - unconditional)


def without_condition(sample: Sequence[Part]) -> list[Part]:
    """The sample with every given text emptied: what training shows at random and guidance compares with."""
    return [Part("") if isinstance(part.value, str) and not part.learn else part for part in sample]


def unconditional_form(sample: Sequence[Part]) -> list[Part]:
    bare = without_condition(sample)
    if all(a.value == b.value for a, b in zip(bare, sample, strict=True) if isinstance(a.value, str)):
        raise GuidanceError("guidance was asked for, but the request has no words to leave out: pass a prompt, or guidance=1")
    return bare


def with_words(bare: Sequence[Part], words: str) -> list[Part]:
    """The unconditional form with `words` where its last given text was."""
    places = [n for n, part in enumerate(bare) if isinstance(part.value, str) and not part.learn]
    if not places:
        raise InputError(f"negative={words[:40]!r}: the unconditional form of this model has no place for words")
    return [Part(words) if n == places[-1] else part for n, part in enumerate(bare)]
