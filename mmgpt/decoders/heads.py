"""(N, D) vectors -> logits and losses over the ids of one modality."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mmgpt.layout import Span

CHUNK = 2048  # vectors scored at a time: the logits of more are never held at once


class Head(nn.Module):
    """Scores of the ids `ids`, and what each target among them costs."""

    ids: Span

    def logits(self, h_ND: Float[Tensor, "N D"], rows: Span | None = None, /) -> Float[Tensor, "N V"]:
        """Scores of the ids `rows` (without: all of this head)."""
        raise NotImplementedError

    def answers(self, h_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """The scores that a loss compares."""
        return self.logits(h_ND)

    def loss(self, h_ND: Float[Tensor, "N D"], id_N: Int[Tensor, "N"], /) -> Float[Tensor, "N"]:
        """Cross-entropy of each target among this head's ids, in nats, not averaged."""
        chunks = zip(h_ND.split(CHUNK), (id_N - self.ids.start).split(CHUNK), strict=True)
        return torch.cat([F.cross_entropy(self.answers(h).float(), target, reduction="none") for h, target in chunks])


class TableHead(Head):
    """A view of one span of rows of a shared table: it computes only the rows that may come next.

    `table` is the embedding itself where weights are tied; the head holds no parameters of its own. Ids in `hole` are of another
    modality: they are no answers, and no loss is spent on them.
    """

    def __init__(self, table: nn.Embedding, ids: Span, hole: Span | None = None):
        super().__init__()
        self.ids, self.hole = ids, hole
        object.__setattr__(self, "table", table)  # seen, not owned: its weight is saved and counted once, by its owner

    def logits(self, h_ND: Float[Tensor, "N D"], rows: Span | None = None, /) -> Float[Tensor, "N V"]:
        rows = self.ids if rows is None else rows
        return F.linear(h_ND, self.table.weight[rows.start : rows.stop])

    def answers(self, h_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        logits_NV = self.logits(h_ND)
        if self.hole is not None:
            logits_NV[:, self.hole.start - self.ids.start : self.hole.stop - self.ids.start] = -torch.inf
        return logits_NV


class MLPHead(Head):
    """vectors -> two layers -> scores of one modality's codes, beside the shared table (Janus; Chen et al., 2025, arXiv:2501.17811)."""

    def __init__(self, ids: Span, width: int, hidden: int):
        super().__init__()
        self.ids = ids
        self.hidden, self.out = nn.Linear(width, hidden), nn.Linear(hidden, len(ids))

    def logits(self, h_ND: Float[Tensor, "N D"], rows: Span | None = None, /) -> Float[Tensor, "N V"]:
        rows = self.ids if rows is None else rows
        here = slice(rows.start - self.ids.start, rows.stop - self.ids.start)
        return F.linear(F.gelu(self.hidden(h_ND)), self.out.weight[here], self.out.bias[here])
