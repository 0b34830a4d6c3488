"""One id a row -> the vector behind it: the step that is taken again and again, compiled where that is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmgpt.decoders.attention import grouped
from mmgpt.decoders.cache import Cache
from mmgpt.types import Stream


@dataclass
class Columns:
    """The cache of a step, and who reads what in it, of tensors alone: nothing that changes from step to step is a number to the compiler.

    Each row writes at its own column and reads everything up to it.
    """

    k: Sequence[Float[Tensor, "B K S E"]]
    v: Sequence[Float[Tensor, "B K S E"]]
    column_B: Int[Tensor, "B"]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        mine_k, mine_v = self.k[layer], self.v[layer]
        if len(self.column_B) == 1:
            mine_k.index_copy_(2, self.column_B, k)
            mine_v.index_copy_(2, self.column_B, v)
        else:
            row_B = torch.arange(len(self.column_B), device=k.device)
            mine_k[row_B, :, self.column_B] = k[:, :, 0]
            mine_v[row_B, :, self.column_B] = v[:, :, 0]
        return mine_k, mine_v

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = None
        if len(self.column_B) > 1:
            mask = (torch.arange(k.shape[2], device=k.device) <= self.column_B[:, None])[:, None, None]
        return grouped(q, k, v, mask)


def advance(decoder: nn.Module, x_B1D, position_B13, k: Sequence[Tensor], v: Sequence[Tensor], column_B) -> Tensor:
    columns = Columns(k, v, column_B)
    return decoder(x_B1D, position_B13, columns, columns)


class Step:
    """The stream that a step reads, and the cache of its rows -> the vectors."""

    def __init__(self, gpt, compile: bool = False):
        self.gpt = gpt
        self.compiled = torch.compile(advance, fullgraph=True) if compile and not gpt.decoder.config.window else None

    def __call__(self, stream: Stream, cache: Cache) -> Float[Tensor, "B T D"]:
        if self.compiled is None or stream.ids_BT.shape[1] != 1:
            return self.gpt(stream, cache)
        x_B1D, column_B = self.gpt.embed(stream), torch.from_numpy(cache.used_R.copy()).to(self.gpt.device)
        cache.reading(stream.document_BT, stream.block_BT)
        k, v = ([one[:, :, : cache.stop] for one in some] for some in (cache.k, cache.v))
        position_B13 = stream.position_BT3
        for part in (*k, *v):
            torch._dynamo.mark_dynamic(part, 2)
        if len(column_B) > 1:
            for part in (*k, *v, x_B1D, position_B13, column_B):
                torch._dynamo.mark_dynamic(part, 0)
        return self.compiled(self.gpt.decoder, x_B1D, position_B13, k, v, column_B)
