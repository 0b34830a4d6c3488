"""Classifier-free guidance (Ho & Salimans, 2022, arXiv:2207.12598): one convention, one unconditional form."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from mmgpt.errors import GuidanceError
from mmgpt.types import Part


def guide(conditional: Float[Tensor, "V"], unconditional: Float[Tensor, "V"], scale: float) -> Float[Tensor, "V"]:
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
