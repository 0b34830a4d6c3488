"""Queries, keys, values and who may read whom -> read values. One function, several back ends that tests hold equal."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def may_read(
    document_BT: Int[Tensor, "B T"], block_BT: Int[Tensor, "B T"], document_BS: Int[Tensor, "B S"], block_BS: Int[Tensor, "B S"], window: int = 0
) -> Bool[Tensor, "B 1 T S"]:
    """A position reads, within its own document, its own block and the blocks before it; with a `window`, the last so many blocks.

    document 1 1 1 1 1 2    two documents in one row never see each other
    block    0 1 2 3 4 0    text: every position is its own block, hence causal
    block    0 1 1 1 2 0    text, a 3-vector picture that is read as a whole, text
    """
    back_BTS = block_BT[:, :, None] - block_BS[:, None]
    near_BTS = (back_BTS >= 0) & (back_BTS < window) if window else back_BTS >= 0
    return ((document_BT[:, :, None] == document_BS[:, None]) & near_BTS)[:, None]


@runtime_checkable
class Attends(Protocol):
    """What a decoder asks of whoever says who may read whom: `Reading`, or a function handed in from outside (`interop/hf`)."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


FLASH = (torch.float32, torch.bfloat16, torch.float16)  # of the CPU's flash kernel


@dataclass(frozen=True)
class Reading:
    """Who may read whom: the rule's inputs for queries (T) and keys (S). Each back end makes its own mask of it, once.

    `cuts_N4`, where queries and keys are the same and lie on a CPU, says where the documents lie: then each is read by itself.
    `last`: one query a row, behind everything that its row holds, so that it reads all of it.
    """

    document_BT: Int[Tensor, "B T"]
    block_BT: Int[Tensor, "B T"]
    document_BS: Int[Tensor, "B S"]
    block_BS: Int[Tensor, "B S"]
    backend: str = "sdpa"
    window: int = 0
    cuts_N4: Int[Tensor, "N 4"] | None = None
    last: bool = False

    def attend(self, layer: int, q, k, v) -> Float[Tensor, "B H T E"]:
        return attend(q, k, v, self)

    @cached_property
    def mask(self) -> Bool[Tensor, "B 1 T S"]:
        return may_read(self.document_BT, self.block_BT, self.document_BS, self.block_BS, self.window)

    @cached_property
    def block_mask(self):
        from torch.nn.attention.flex_attention import create_block_mask  # a second to import

        (batch, queries), keys = self.document_BT.shape, self.document_BS.shape[1]
        window = self.window or 2**62
        return create_block_mask(
            # a lambda, since torch counts its arguments and a checked function (tests) hides them
            lambda b, h, q, k: (self.document_BT[b, q] == self.document_BS[b, k])
            & (self.block_BS[b, k] <= self.block_BT[b, q])
            & (self.block_BT[b, q] - self.block_BS[b, k] < window),
            batch, None, queries, keys, device=self.document_BT.device,
        )  # fmt: skip


def attend(
    q_BHTE: Float[Tensor, "B H T E"], k_BKSE: Float[Tensor, "B K S E"], v_BKSE: Float[Tensor, "B K S E"], reading: Reading
) -> Float[Tensor, "B H T E"]:
    return BACKENDS[reading.backend](q_BHTE, k_BKSE, v_BKSE, reading)


def sdpa(q, k, v, reading: Reading):
    if reading.cuts_N4 is not None and not reading.window and q.dtype in FLASH:
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        return torch.ops.mmgpt.attend_documents(q, k, v, reading.cuts_N4, reading.block_BT)[0]
    return grouped(q, k, v, None if reading.last and not reading.window else reading.mask)


def grouped(
    q_BHTE: Float[Tensor, "B H T E"], k_BKSE: Float[Tensor, "B K S E"], v_BKSE: Float[Tensor, "B K S E"], mask: Bool[Tensor, "B 1 T S"] | None
) -> Float[Tensor, "B H T E"]:
    """Heads that share keys are queries of one head: nothing of the keys is copied, and `enable_gqa` takes the slow path where there is a mask."""
    columns, groups = q_BHTE.shape[2], q_BHTE.shape[1] // k_BKSE.shape[1]
    if groups == 1:
        return F.scaled_dot_product_attention(q_BHTE, k_BKSE, v_BKSE, attn_mask=mask)
    q = rearrange(q_BHTE, "b (k g) t e -> b k (g t) e", g=groups)
    if mask is not None and columns > 1:
        mask = mask.repeat(1, 1, groups, 1)
    out = F.scaled_dot_product_attention(q, k_BKSE, v_BKSE, attn_mask=mask)
    return rearrange(out, "b k (g t) e -> b (k g) t e", g=groups, t=columns)


def flex(q, k, v, reading: Reading):
    """FlexAttention: compiled for a GPU it skips whole tiles that nobody may read; on a CPU it has no backward."""
    return flex_kernel(q.device.type)(q, k, v, block_mask=reading.block_mask, enable_gqa=q.shape[1] != k.shape[1])


@lru_cache
def flex_kernel(device_type: str) -> Callable:
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if device_type == "cuda" else flex_attention


BACKENDS = {"sdpa": sdpa, "flex": flex}
