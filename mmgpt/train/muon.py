"""Gradients of matrices -> updates of equal size in every direction (Muon, Jordan et al., 2024, kellerjordan.github.io/posts/muon).

The momentum's singular values are brought near 1 by a Newton-Schulz iteration, and the update is scaled to the size of AdamW's
(0.2 sqrt(max(rows, columns)), Liu et al., 2025, arXiv:2502.16982), so that one learning rate serves both. torch.optim.Muon takes one
matrix at a time, in bfloat16; here matrices of one shape go together, in float32 where the device is a CPU.
"""

from collections import defaultdict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmgpt.train.ranks import like, local, whole


class Muon(torch.optim.Optimizer):
    """For weights of linear and convolutional layers, the latter as (out, in * h * w). Decay is decoupled, as in AdamW."""

    def __init__(self, params, lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for same in by_shape(p for p in group["params"] if p.grad is not None):
                looked_ahead = []
                for p in same:
                    state = self.state[p]
                    momentum, gradient = state.setdefault("momentum", torch.zeros_like(p)), p.grad.clone()
                    local(momentum).lerp_(local(p.grad), 1 - group["momentum"])
                    local(gradient).lerp_(local(momentum), group["momentum"])
                    looked_ahead.append(whole(gradient).flatten(1))  # of sharded weights every rank works on all rows, and keeps its own
                update_NRC = orthogonal(torch.stack(looked_ahead)) * 0.2 * max(looked_ahead[0].shape) ** 0.5
                for p, update_RC in zip(same, update_NRC, strict=True):
                    update = local(like(p, update_RC.view(p.shape)))
                    local(p).mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


def by_shape(params) -> list[list[Tensor]]:
    groups = defaultdict(list)
    for p in params:
        groups[p.flatten(1).shape].append(p)
    return list(groups.values())


def orthogonal(x_NRC: Float[Tensor, "N R C"], rounds: int = 5) -> Float[Tensor, "N R C"]:
    """U V^T of each matrix U S V^T, roughly: singular values end between 0.7 and 1.2 (the coefficients are Jordan's)."""
    tall = x_NRC.shape[1] > x_NRC.shape[2]
    x = (x_NRC.mT if tall else x_NRC).to(torch.bfloat16 if x_NRC.is_cuda else torch.float32)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.mT if tall else x).to(x_NRC.dtype)


def matrices(model: nn.Module) -> set[Tensor]:
    """The weights that Muon is for: of linear and convolutional layers, not of tables of ids or places."""
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {m.weight for m in model.modules() if isinstance(m, layers) and m.weight.requires_grad}
