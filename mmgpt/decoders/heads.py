"""(N, D) vectors -> logits and losses over the ids of one modality."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmgpt.decoders.fused import linear_cross_entropy, plain
from mmgpt.script import Span

CHUNK = 2048  # vectors scored at a time: the logits of more are never held at once
HELD = 2**26  # scores that are kept for the backward pass; where there are more, it computes those of each chunk again


class Head(nn.Module):
    """Scores of the ids `ids`, and what each target among them costs."""

    ids: Span
    look: Callable[[Tensor], None] | None = None  # is shown the scores of every chunk, while somebody watches

    def logits(self, h_ND: Float[Tensor, "N D"], rows: Span | None = None, /) -> Float[Tensor, "N V"]:
        """Scores of the ids `rows` (without: all of this head)."""
        raise NotImplementedError

    def answers(self, h_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """The scores that a loss compares."""
        return self.logits(h_ND)

    def loss(
        self, h_ND: Float[Tensor, "N D"], id_N: Int[Tensor, "N"], z_loss: float = 0.0, /, rows_VD: Float[Tensor, "V D"] | None = None
    ) -> Float[Tensor, "N"]:
        """Cross-entropy of each target among this head's ids, in nats, not averaged. `rows_VD`: see `rows_of`.

        `z_loss` times the squared logarithm of the softmax' normaliser is added (PaLM, arXiv:2204.02311, section 5: 1e-4): scores
        that all grow alike cost nothing otherwise, and where modalities share weights they do grow (Chameleon, arXiv:2405.09818).
        """
        again = torch.is_grad_enabled() and len(h_ND) * len(self.ids) > HELD
        cost = partial(checkpoint, self.cost, use_reentrant=False) if again else self.cost
        chunks = zip(h_ND.split(CHUNK), (id_N - self.ids.start).split(CHUNK), strict=True)
        return torch.cat([cost(h, target, z_loss, rows_VD) for h, target in chunks])

    def cost(self, h_ND: Float[Tensor, "N D"], target_N: Int[Tensor, "N"], z_loss: float, rows_VD: Tensor | None) -> Float[Tensor, "N"]:
        """The loss of one chunk."""
        scores_NV = self.answers(h_ND).float()
        if self.look is not None:
            self.look(scores_NV.detach())
        loss_N = F.cross_entropy(scores_NV, target_N, reduction="none")
        return loss_N + z_loss * scores_NV.logsumexp(-1).square() if z_loss else loss_N


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
        return F.linear(h_ND, self.rows(self.ids if rows is None else rows))

    def cost(self, h_ND: Float[Tensor, "N D"], target_N: Int[Tensor, "N"], z_loss: float, rows_VD: Tensor | None) -> Float[Tensor, "N"]:
        if self.hole is not None or plain(h_ND, self.table.weight):
            return super().cost(h_ND, target_N, z_loss, rows_VD)
        if self.look is not None:  # the fused form does not hand its scores out, so they are made once more to be seen
            with torch.no_grad():
                self.look(self.logits(h_ND))
        return linear_cross_entropy(h_ND, self.rows(self.ids) if rows_VD is None else rows_VD, target_N, z_loss)

    def rows(self, ids: Span) -> Float[Tensor, "V D"]:
        return self.table.weight[ids.start : ids.stop]

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


def rows_of(heads: Sequence[Head]) -> list[Tensor | None]:
    """What each head scores of a table that several share, cut by one operation: its gradient is written once, not once a head.

    None for heads that must cut it themselves: those without a table or with a hole, and all where there are several tables.
    """
    found: list[Tensor | None] = [None] * len(heads)
    order = [n for n, head in enumerate(heads) if isinstance(head, TableHead) and head.hole is None]
    if len({id(heads[n].table) for n in order}) != 1:
        return found
    weight = heads[order[0]].table.weight
    edges = sorted({0, len(weight), *(edge for n in order for edge in (heads[n].ids.start, heads[n].ids.stop))})
    pieces = dict(zip(edges, weight.split([b - a for a, b in pairwise(edges)]), strict=False))
    spans = {heads[n].ids: [piece for edge, piece in pieces.items() if heads[n].ids.start <= edge < heads[n].ids.stop] for n in order}
    rows = {span: torch.cat(parts) if len(parts) > 1 else parts[0] for span, parts in spans.items()}  # heads of the same ids share what is cut
    for n in order:
        found[n] = rows[heads[n].ids]
    return found
