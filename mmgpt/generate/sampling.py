"""(V,) logits of what may come next -> one index: greedy, temperature, top-k, top-p, min-p, repetition penalty."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmgpt.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How one id is drawn. `temperature` 0 is greedy. Filters apply in this order: penalty, temperature, top_k, top_p, min_p."""

    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0  # nucleus (Holtzman et al., 2020, arXiv:1904.09751)
    min_p: float = 0.0  # share of the likeliest (Nguyen et al., 2024, arXiv:2407.01082)
    repetition_penalty: float = 1.0  # Keskar et al., 2019, arXiv:1909.05858

    def __post_init__(self):
        checks = {
            "temperature": (lambda x: 0 <= x <= 100, "a number from 0 (greedy) to 100"),
            "top_k": (lambda x: x >= 0 and isinstance(x, int), "a whole number, 0 (all) or more"),
            "top_p": (lambda x: 0 < x <= 1, "a number above 0, at most 1"),
            "min_p": (lambda x: 0 <= x < 1, "a number from 0 to below 1"),
            "repetition_penalty": (lambda x: 0 < x <= 1000, "a number above 0, at most 1000"),
        }
        for name, (good, allowed) in checks.items():
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not good(value):
                raise InputError(f"{name}={value!r}: use {allowed}")


GREEDY = Sampling(temperature=0.0)


def choose(logits_V: Float[Tensor, "V"], sampling: Sampling, generator: torch.Generator, seen_N: Int[Tensor, "N"]) -> int:
    """The index of the id that comes next; `seen_N` are indices that were written before."""
    logits_V = logits_V.float()
    damaged_V = torch.isnan(logits_V) | (logits_V == torch.inf)
    if bool(damaged_V.any()) or not bool(torch.isfinite(logits_V).any()):
        raise InputError(f"{int(damaged_V.sum())} of {len(logits_V)} logits are NaN or infinite, or none is finite: the weights are damaged")
    if sampling.repetition_penalty != 1 and len(seen_N):
        logits_V = penalised(logits_V, seen_N, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    logits_V = (logits_V - logits_V.max()) / max(sampling.temperature, 1e-6)  # colder overflows, and is greedy already
    probability_V = filtered(logits_V, sampling).softmax(-1)
    # argmax of p / exponential noise draws from p, and its noise has the same shape whatever was filtered out
    noise_V = torch.empty(len(logits_V)).exponential_(generator=generator)
    return int((probability_V.cpu() / noise_V).argmax())


def penalised(logits_V: Float[Tensor, "V"], seen_N: Int[Tensor, "N"], penalty: float) -> Float[Tensor, "V"]:
    seen = logits_V[seen_N]
    return logits_V.index_copy(0, seen_N, torch.where(seen > 0, seen / penalty, seen * penalty))


def filtered(logits_V: Float[Tensor, "V"], sampling: Sampling) -> Float[Tensor, "V"]:
    """Logits with what top-k, top-p and min-p leave out at -inf. The likeliest always stays."""
    if not sampling.top_k and sampling.top_p == 1 and sampling.min_p == 0:
        return logits_V
    order = logits_V.argsort(descending=True, stable=True)
    probability_V = logits_V[order].softmax(-1)
    keep_V = torch.ones_like(order, dtype=torch.bool)
    if sampling.top_k:
        keep_V[sampling.top_k :] = False
    keep_V &= probability_V.cumsum(-1) - probability_V < sampling.top_p
    keep_V &= probability_V >= sampling.min_p * probability_V[0]
    return logits_V.index_fill(0, order[~keep_V], -torch.inf)
