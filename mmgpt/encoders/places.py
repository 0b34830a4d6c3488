"""(N, 3) places (time, row, column) -> (N, D) vectors: a learned vector an axis, summed (factorised positions)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmgpt.errors import InputError
from mmgpt.types import Grid, Prepared


def on_grid(values_NF: Float[Tensor, "N F"], grid: Grid) -> Prepared:
    """One segment's raw values, in the order of its grid: frame by frame, row by row."""
    return Prepared(values_NF, torch.cartesian_prod(*map(torch.arange, grid)), (grid,))


class Places(nn.Module):
    """`limits` is how many frames, rows and columns can be told apart (Dehghani et al., 2023, NaViT, arXiv:2307.06304)."""

    def __init__(self, limits: tuple[int, int, int], width: int):
        super().__init__()
        self.limits = limits
        self.tables = nn.ParameterList(nn.Parameter(torch.randn(n, width) * 0.02) for n in limits)

    def check(self, grid: tuple[int, int, int]) -> None:
        if any(n > limit for n, limit in zip(grid, self.limits, strict=True)):
            raise InputError(f"a grid of {grid} (frames, rows, columns), the encoder places at most {self.limits}: pass a smaller or shorter one")

    def forward(self, place_N3: Int[Tensor, "N 3"]) -> Float[Tensor, "N D"]:
        return sum(table[place_N3[:, axis]] for axis, table in enumerate(self.tables))
