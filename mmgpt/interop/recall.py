"""Features of a picture -> the names that they recall -> words of a decoder's table, mixed: a projector that least squares finds in seconds."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmgpt.model import GPT

RIDGE, SHARP = 300.0, 300.0  # of least squares; of the scores, before the softmax


class Recall(nn.Module):
    """(B, F) features -> (B, N, D): the first N ids of the likeliest names, as rows of the decoder's table, each by its softmax share.

    Before `fit` all names are equally likely. Ridge regression (Hoerl and Kennard, 1970) from features of variance 1 to one score a name.
    """

    def __init__(self, gpt: GPT, names: Sequence[str], width: int, length: int):
        super().__init__()
        table, encode = gpt.table.weight.detach(), gpt.ports["text"].codec.encode
        spelled_KND = torch.zeros(len(names), length, table.shape[1])
        for k, name in enumerate(names):
            ids = torch.as_tensor(encode(name))[:length]
            spelled_KND[k, : len(ids)] = table[ids]
        self.spelled_KND, self.scores_FK = nn.Buffer(spelled_KND), nn.Buffer(torch.zeros(width, len(names)))

    def forward(self, feature_BF: Float[Tensor, "B F"]) -> Float[Tensor, "B N D"]:
        return torch.einsum("bk,knd->bnd", (feature_BF @ self.scores_FK * SHARP).softmax(1), self.spelled_KND)

    @torch.no_grad()
    def fit(self, feature_BF: Float[Tensor, "B F"], name_B: Int[Tensor, "B"]) -> None:
        """Scores from examples: their features, and which of the names each has."""
        sum_KF = torch.zeros_like(self.scores_FK.T).index_add_(0, name_B, feature_BF)
        square_FF = feature_BF.T @ feature_BF + RIDGE * torch.eye(feature_BF.shape[1])
        self.scores_FK.copy_(torch.linalg.solve(square_FF, sum_KF.T))
