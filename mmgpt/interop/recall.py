"""Features of a picture -> the names that they recall -> words of a decoder's table, mixed: a projector that least squares finds in seconds."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmgpt.model import GPT

RIDGE, SHARP = 300.0, 60.0  # of least squares; of the scores, before the softmax


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

    def words(self, feature_BF: Float[Tensor, "B F"], scores_FK: Float[Tensor, "F K"]) -> Float[Tensor, "B N D"]:
        return torch.einsum("bk,knd->bnd", (feature_BF @ scores_FK * SHARP).softmax(1), self.spelled_KND)

    def forward(self, feature_BF: Float[Tensor, "B F"]) -> Float[Tensor, "B N D"]:
        return self.words(feature_BF, self.scores_FK)

    @torch.no_grad()
    def fit(self, feature_BF: Float[Tensor, "B F"], name_B: Int[Tensor, "B"], group_B: Int[Tensor, "B"]) -> Float[Tensor, "B N D"]:
        """Scores from all examples; returns what each example recalls where its own group is left out, as it will be of a new group."""
        found = torch.zeros(len(name_B), *self.spelled_KND.shape[1:])
        mine = {group: group_B == group for group in group_B.unique().tolist()}
        squares = {group: feature_BF[here].T @ feature_BF[here] for group, here in mine.items()}
        sums = {group: torch.zeros_like(self.scores_FK.T).index_add_(0, name_B[here], feature_BF[here]) for group, here in mine.items()}
        all_FF, all_KF = RIDGE * torch.eye(feature_BF.shape[1]) + sum(squares.values()), sum(sums.values())
        for group, here in mine.items():
            found[here] = self.words(feature_BF[here], torch.linalg.solve(all_FF - squares[group], (all_KF - sums[group]).T))
        self.scores_FK.copy_(torch.linalg.solve(all_FF, all_KF.T))
        return found
