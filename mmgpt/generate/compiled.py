"""One id a row -> the vector behind it: the step that is taken again and again, compiled where that is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from mmgpt.decoders.attention import grouped
from mmgpt.decoders.cache import Cache
from mmgpt.types import Stream

BUCKET = 64  # columns by which the part of the cache that a step reads grows: its views, and what is known of them, stay for so long
TURNED = 2**29  # bytes of weights that are kept a second time, turned


@dataclass
class Columns:
    """The cache of a step, and who reads what in it, of tensors alone: nothing that changes from step to step is a number to the compiler.

    Each row writes at its own column; what it may not read has a `mask` of -inf.
    """

    k: Sequence[Float[Tensor, "B K S E"]]
    v: Sequence[Float[Tensor, "B K S E"]]
    column_B: Int[Tensor, "B"]
    mask_B11S: Float[Tensor, "B 1 1 S"]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        mine_k, mine_v = self.k[layer], self.v[layer]
        row_B = torch.arange(len(self.column_B), device=k.device)
        mine_k[row_B, :, self.column_B] = k[:, :, 0]
        mine_v[row_B, :, self.column_B] = v[:, :, 0]
        return mine_k, mine_v

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return grouped(q, k, v, self.mask_B11S) if q.is_cuda else by_sums(q, k, v, self.mask_B11S)


def by_sums(q_BH1E: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, mask_B11S: Tensor) -> Tensor:
    """Attention of one query a row, written as sums: the compiler makes loops of them that beat a CPU's kernels for many queries."""
    q_BKGE = rearrange(q_BH1E, "b (k g) 1 e -> b k g e", k=k_BKSE.shape[1])
    score_BKGS = (q_BKGE[:, :, :, None] * k_BKSE[:, :, None]).sum(-1) * q_BH1E.shape[-1] ** -0.5 + mask_B11S
    out_BKGE = (score_BKGS.softmax(-1)[..., None] * v_BKSE[:, :, None]).sum(-2)
    return rearrange(out_BKGE, "b k g e -> b (k g) 1 e")


class Body(nn.Module):
    """The decoder, given what a step needs as tensors."""

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder = decoder

    def forward(self, x_B1D, cos, sin, k: Sequence[Tensor], v: Sequence[Tensor], column_B, mask_B11S) -> Tensor:
        columns = Columns(k, v, column_B, mask_B11S)
        return self.decoder.turned(x_B1D, cos, sin, columns, columns)


def advance(body: Body, weights: dict[str, Tensor], *given) -> Tensor:
    return functional_call(body, weights, given) if weights else body(*given)


class Step:
    """The stream that a step reads, the cache and the number of its rows -> the vectors."""

    def __init__(self, gpt, compile: bool = False):
        self.gpt, self.known = gpt, set()
        self.compiled = None
        if compile and not gpt.decoder.config.window:
            options = {"cpp_wrapper": True} if gpt.device.type == "cpu" else None
            self.compiled, self.body = torch.compile(advance, fullgraph=True, options=options), Body(gpt.decoder)
            pairs, axes = gpt.decoder.config.head_width // 2, gpt.decoder.config.position_axes
            every_1S3 = torch.arange(gpt.max_length + BUCKET, device=gpt.device)[None, :, None].expand(1, -1, 3)
            self.cos_SE, self.sin_SE = (turn[0, 0] for turn in gpt.decoder.rotation(every_1S3))
            self.axis_E = (torch.arange(2 * pairs, device=gpt.device) % pairs) % axes
            self.place_S = torch.arange(gpt.max_length + BUCKET, device=gpt.device)
            self.matrices = [(name, weight) for name, weight in self.body.named_parameters() if weight.ndim == 2]
            self.views: tuple = (None, [], [])
            self.turned: tuple = (None, {})

    def __call__(self, stream: Stream, cache: Cache, rows: int) -> Float[Tensor, "B T D"]:
        if self.compiled is None or stream.ids_BT.shape[1] != 1:
            return self.gpt(stream, cache[:rows])
        x_B1D, used_R = self.gpt.embed(stream), cache.used_R[:rows].copy()
        columns = -(-(int(used_R.max()) + 1) // BUCKET) * BUCKET
        cache.used_R[:rows] += 1
        cache.block_RS[torch.arange(rows), used_R] = stream.block_BT[:, 0]
        k, v = self.windows(cache, rows, columns)
        column_B = torch.from_numpy(used_R).to(x_B1D.device)
        at_BE = stream.position_BT3[:, 0].index_select(1, self.axis_E)
        cos, sin = (turn.gather(0, at_BE)[:, None, None].to(x_B1D.dtype) for turn in (self.cos_SE, self.sin_SE))
        later_BS = self.place_S[:columns] > column_B[:, None]
        mask = x_B1D.new_zeros(later_BS.shape).masked_fill_(later_BS, -torch.inf)[:, None, None]
        given = x_B1D, cos, sin, k, v, column_B, mask
        kind = (rows == 1, tuple(cache.k[0].shape), x_B1D.dtype, x_B1D.device)
        if kind in self.known:
            with torch.compiler.set_stance(skip_guard_eval_unsafe=True):  # nothing else can have changed
                return self.compiled(self.body, self.weights(rows), *given)
        for axis, parts in ((0, (x_B1D, cos, sin, *k, *v, column_B, mask) if rows > 1 else ()), (2, (*k, *v)), (3, (mask,))):
            for part in parts:
                torch._dynamo.mark_dynamic(part, axis)
        found = self.compiled(self.body, self.weights(rows), *given)
        self.known.add(kind)
        return found

    def windows(self, cache: Cache, rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
        """What a step reads and writes of the cache: the same tensors as long as nothing about them changes."""
        key = (cache.k[0].data_ptr(), rows, columns)
        if self.views[0] != key:
            self.views = key, *([one[:rows, :, :columns] for one in some] for some in (cache.k, cache.v))
        return self.views[1:]

    def weights(self, rows: int) -> dict[str, Tensor]:
        """For a single row the matrices lie (in, out) in memory: so its products run at the rate of memory. Made again when weights change."""
        if rows > 1 or self.gpt.device.type != "cpu" or sum(weight.nbytes for _, weight in self.matrices) > TURNED:
            return {}
        key = [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for _, weight in self.matrices]
        if self.turned[0] != key:
            self.turned = key, {name: weight.detach().t().contiguous().t() for name, weight in self.matrices}
        return self.turned[1]
