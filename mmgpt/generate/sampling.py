"""(R, V) logits of what may come next -> one index a row: greedy, temperature, top-k, top-p, min-p, penalties, biases."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmgpt.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How one id is drawn. `temperature` 0 is greedy. Applied in this order: penalties, bias, temperature, top_k, top_p, min_p.

    `repetition_penalty` divides (or, below zero, multiplies) the logits of what the row has written, `presence_penalty` is taken off them once,
    `frequency_penalty` once each time. `bias` is added to the logits of codes: ((code, amount), ...); -100 all but forbids one.
    """

    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0  # nucleus (Holtzman et al., 2020, arXiv:1904.09751)
    min_p: float = 0.0  # share of the likeliest (Nguyen et al., 2024, arXiv:2407.01082)
    repetition_penalty: float = 1.0  # Keskar et al., 2019, arXiv:1909.05858
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self):
        remedy = "use pairs (code, amount), codes from 0, amounts from -1000 to 1000"
        if not isinstance(self.bias, (tuple, list)) or not all(isinstance(pair, (tuple, list)) for pair in self.bias):
            raise InputError(f"bias={self.bias!r}: {remedy}")
        object.__setattr__(self, "bias", tuple(tuple(pair) for pair in self.bias))
        checks = {
            "temperature": (lambda x: 0 <= x <= 100, "a number from 0 (greedy) to 100"),
            "top_k": (lambda x: x >= 0 and isinstance(x, int), "a whole number, 0 (all) or more"),
            "top_p": (lambda x: 0 < x <= 1, "a number above 0, at most 1"),
            "min_p": (lambda x: 0 <= x < 1, "a number from 0 to below 1"),
            "repetition_penalty": (lambda x: 0 < x <= 1000, "a number above 0, at most 1000"),
            "presence_penalty": (lambda x: -100 <= x <= 100, "a number from -100 to 100"),
            "frequency_penalty": (lambda x: -100 <= x <= 100, "a number from -100 to 100"),
        }
        for name, (good, allowed) in checks.items():
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not good(value):
                raise InputError(f"{name}={value!r}: use {allowed}")
        for pair in self.bias:
            good = len(pair) == 2 and isinstance(pair[0], int) and isinstance(pair[1], (int, float)) and pair[0] >= 0
            if not good or not -1000 <= pair[1] <= 1000:
                raise InputError(f"bias={pair!r}: {remedy}")

    @property
    def looks_back(self) -> bool:
        """Whether what was written before matters."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


GREEDY = Sampling(temperature=0.0)


def choose(logits_RV: Float[Tensor, "R V"], sampling: Sampling, generators: Sequence[torch.Generator]) -> Int[Tensor, "R"]:
    """The index of the id that comes next in each row; each row has random numbers of its own."""
    if sampling.temperature == 0:
        return logits_RV.argmax(-1)
    logits_RV = (logits_RV - logits_RV.amax(-1, keepdim=True)) / max(sampling.temperature, 1e-6)  # colder overflows, and is greedy already
    probability_RV = filtered(logits_RV, sampling).softmax(-1).cpu()
    # argmax of p / exponential noise draws from p, and its noise has the same shape whatever was filtered out
    noise_RV = torch.stack([torch.empty(logits_RV.shape[1]).exponential_(generator=generator) for generator in generators])
    return (probability_RV / noise_RV).argmax(-1)


def penalised(logits_V: Float[Tensor, "V"], sampling: Sampling, seen_N: Int[Tensor, "N"]) -> Float[Tensor, "V"]:
    """Logits after penalties; `seen_N` are indices that were written before, each as often as it was."""
    seen_N, count_N = seen_N.unique(return_counts=True)
    seen = logits_V[seen_N]
    seen = torch.where(seen > 0, seen / sampling.repetition_penalty, seen * sampling.repetition_penalty)
    return logits_V.index_copy(0, seen_N, seen - sampling.presence_penalty - sampling.frequency_penalty * count_N)


def filtered(logits_RV: Float[Tensor, "R V"], sampling: Sampling) -> Float[Tensor, "R V"]:
    """Logits with what top-k, top-p and min-p leave out at -inf. The likeliest always stays."""
    if not sampling.top_k and sampling.top_p == 1 and sampling.min_p == 0:
        return logits_RV
    order_RV = logits_RV.argsort(dim=-1, descending=True, stable=True)
    probability_RV = logits_RV.gather(-1, order_RV).softmax(-1)
    keep_RV = torch.ones_like(order_RV, dtype=torch.bool)
    if sampling.top_k:
        keep_RV[:, sampling.top_k :] = False
    keep_RV &= probability_RV.cumsum(-1) - probability_RV < sampling.top_p
    keep_RV &= probability_RV >= sampling.min_p * probability_RV[:, :1]
    return logits_RV.masked_fill(~torch.empty_like(keep_RV).scatter_(-1, order_RV, keep_RV), -torch.inf)


def steered(logits_RV: Float[Tensor, "R V"], steers: Sequence[int], temperature: float) -> Float[Tensor, "R V"]:
    """Scores of which the columns `steers` are drawn at `temperature` as often as at 1, and all others together too: which of those it is, is drawn
    at `temperature`. At 0 a steer is taken where it is likelier than all others together."""
    is_steer_V = torch.zeros(logits_RV.shape[1], dtype=torch.bool, device=logits_RV.device)
    is_steer_V[list(steers)] = True
    others_RV = logits_RV.masked_fill(is_steer_V, -torch.inf)
    whole_R1 = others_RV.logsumexp(-1, keepdim=True)
    if temperature == 0:
        return torch.where(is_steer_V, logits_RV, logits_RV - others_RV.amax(-1, keepdim=True) + whole_R1)
    cold_R1 = (others_RV / temperature).logsumexp(-1, keepdim=True)
    return torch.where(is_steer_V, logits_RV * temperature, logits_RV + temperature * (whole_R1 - cold_R1))
