"""ids -> vectors: the rows of the one table that all heads are views of."""

from jaxtyping import Float, Int
from torch import Tensor, nn


class Table(nn.Embedding):
    """The table of all ids: text, control ids, a span a codec. With tied weights the heads read the same rows."""

    def __init__(self, num_ids: int, width: int):
        super().__init__(num_ids, width)
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """Ids that are no rows of it (vectors stand there, or another table's codes) give some row, to be replaced."""
        return nn.functional.embedding(ids.clamp(0, len(self.weight) - 1), self.weight)
