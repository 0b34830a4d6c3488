"""One id a row -> the vector behind it: the step that is taken again and again, compiled where that is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmgpt.decoders.attention import grouped
from mmgpt.decoders.cache import Cache
from mmgpt.types import Stream


@dataclass
class Columns:
    """The cache of a step, and who reads what in it, of tensors alone: nothing that changes from step to step is a number to the compiler.

    Each row writes at its own column and reads everything up to it; what a row may not read has a `mask` of -inf.
    """

    k: Sequence[Float[Tensor, "B K S E"]]
    v: Sequence[Float[Tensor, "B K S E"]]
    column_B: Int[Tensor, "B"]
    mask_B11S: Float[Tensor, "B 1 1 S"] | None

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        mine_k, mine_v = self.k[layer], self.v[layer]
        if self.mask_B11S is None:
            mine_k.index_copy_(2, self.column_B[:1], k)
            mine_v.index_copy_(2, self.column_B[:1], v)
        else:
            row_B = torch.arange(len(self.column_B), device=k.device)
            mine_k[row_B, :, self.column_B] = k[:, :, 0]
            mine_v[row_B, :, self.column_B] = v[:, :, 0]
        return mine_k, mine_v

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return grouped(q, k, v, self.mask_B11S) if q.is_cuda else by_sums(q, k, v, self.mask_B11S)


def by_sums(q_BH1E: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, mask_B11S: Tensor | None) -> Tensor:
    """Attention of one query a row, written as sums: the compiler makes loops of them that beat a CPU's kernels for many queries."""
    q_BKGE = rearrange(q_BH1E, "b (k g) 1 e -> b k g e", k=k_BKSE.shape[1])
    score_BKGS = (q_BKGE[:, :, :, None] * k_BKSE[:, :, None]).sum(-1) * q_BH1E.shape[-1] ** -0.5
    if mask_B11S is not None:
        score_BKGS = score_BKGS + mask_B11S
    out_BKGE = (score_BKGS.softmax(-1)[..., None] * v_BKSE[:, :, None]).sum(-2)
    return rearrange(out_BKGE, "b k g e -> b (k g) 1 e")


def advance(decoder: nn.Module, x_B1D, cos, sin, k: Sequence[Tensor], v: Sequence[Tensor], column_B, mask_B11S) -> Tensor:
    columns = Columns(k, v, column_B, mask_B11S)
    return decoder.turned(x_B1D, cos, sin, columns, columns)


class Step:
    """The stream that a step reads, and the cache of its rows -> the vectors."""

    def __init__(self, gpt, compile: bool = False):
        self.gpt = gpt
        self.compiled = torch.compile(advance, fullgraph=True) if compile and not gpt.decoder.config.window else None
        if self.compiled is not None:
            position_1S3 = torch.arange(gpt.max_length, device=gpt.device)[None, :, None].expand(1, -1, 3)
            self.turns = [turn[0, 0] for turn in gpt.decoder.rotation(position_1S3)]  # (S, E) each
            pairs = gpt.decoder.config.head_width // 2
            self.axis_E = (torch.arange(2 * pairs, device=gpt.device) % pairs) % gpt.decoder.config.position_axes

    def __call__(self, stream: Stream, cache: Cache) -> Float[Tensor, "B T D"]:
        if self.compiled is None or stream.ids_BT.shape[1] != 1:
            return self.gpt(stream, cache)
        x_B1D, used_R = self.gpt.embed(stream), cache.used_R.copy()
        cache.room(1)
        cache.used_R += 1
        column_B, mask = torch.from_numpy(used_R).to(x_B1D.device), None
        k, v = ([one[:, :, : cache.stop] for one in some] for some in (cache.k, cache.v))
        at_BE = stream.position_BT3[:, 0].index_select(1, self.axis_E)
        cos, sin = (turn.gather(0, at_BE)[:, None, None].to(x_B1D.dtype) for turn in self.turns)
        if len(used_R) > 1:
            free = torch.arange(cache.stop, device=x_B1D.device) > column_B[:, None]
            mask = torch.zeros(free.shape, dtype=x_B1D.dtype, device=x_B1D.device).masked_fill_(free, -torch.inf)[:, None, None]
            mark(0, *k, *v, x_B1D, cos, sin, column_B, mask)
            mark(3, mask)
        mark(2, *k, *v)
        return self.compiled(self.gpt.decoder, x_B1D, cos, sin, k, v, column_B, mask)


def mark(axis: int, *tensors: Tensor) -> None:
    """Says that sizes along an axis change from step to step."""
    for tensor in tensors:
        torch._dynamo.mark_dynamic(tensor, axis)
