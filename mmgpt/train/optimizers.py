"""A model's weights + settings -> its optimizers, and how fast each part learns."""

import torch
from torch import nn

from mmgpt.train.muon import Muon, matrices
from mmgpt.train.settings import Settings


def optimizers(model: nn.Module, parameters: dict[str, nn.Parameter], settings: Settings) -> list[torch.optim.Optimizer]:
    """AdamW, with decay for what has two axes or more; with `muon`, Muon takes the weights of the layers.

    A model's `rates` (the beginning of a weight's name -> factor) give its parts learning rates of their own. Such parts have
    learned before: they keep AdamW, whose steps leave alone what has no gradient, where Muon's are as large in every direction.
    """
    mine, rates = matrices(model) if settings.muon else set(), getattr(model, "rates", {})
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, p in parameters.items():
        factor = next((factor for prefix, factor in rates.items() if name.startswith(f"{prefix}.")), None)
        groups.setdefault((p in mine and factor is None, p.ndim >= 2, 1.0 if factor is None else factor), []).append(p)
    of_each: dict[bool, list[dict]] = {False: [], True: []}
    for (muon, decays, factor), members in groups.items():
        of_each[muon].append({"params": members, "weight_decay": settings.weight_decay if decays else 0.0, "factor": factor})
    made: list[torch.optim.Optimizer] = []
    if of_each[False]:
        made.append(torch.optim.AdamW(of_each[False], lr=settings.learning_rate, betas=settings.betas, fused=True))
    if of_each[True]:
        made.append(Muon(of_each[True], settings.learning_rate))
    return made
