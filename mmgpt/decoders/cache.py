"""Keys and values of what was read already: `extend` takes the new ones of a layer and returns all of them."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmgpt.decoders.attention import Reading
from mmgpt.errors import InputError


@runtime_checkable
class Remembers(Protocol):
    """What a decoder asks of a cache."""

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]: ...


class NoCache:
    """Nothing is kept: what is read is what was passed. For training and for single forward passes."""

    def reading(self, document_BT: Int[Tensor, "B T"], block_BT: Int[Tensor, "B T"], backend: str = "sdpa") -> Reading:
        cuts_N4 = None
        if backend == "sdpa" and document_BT.device.type == "cpu":
            from mmgpt.decoders.documents import cuts_of  # registers an operator of torch

            cuts_N4 = cuts_of(document_BT, block_BT)
        return Reading(document_BT, block_BT, document_BT, block_BT, backend, cuts_N4=cuts_N4)

    def extend(self, layer: int, k: Float[Tensor, "B K T E"], v: Float[Tensor, "B K T E"]) -> tuple[Tensor, Tensor]:
        return k, v.contiguous()  # a view would keep, for the backward pass, queries and keys as they were before they were turned


class Cache:
    """Preallocated for `rows` rows of `length` positions.

    All rows grow by the same number of columns at a time; a row with less to add leaves holes, which are document 0 and
    which nobody reads. So no row ever waits for, or is moved by, another.
    """

    def __init__(self, layers: int, rows: int, kv_heads: int, length: int, head_width: int, device=None, dtype=torch.float32):
        shape = (layers, rows, kv_heads, length, head_width)
        self.k, self.v = torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype)
        self.document_BS = torch.zeros(rows, length, dtype=torch.long, device=device)
        self.block_BS = torch.zeros(rows, length, dtype=torch.long, device=device)
        self.start = self.stop = 0

    def reading(self, document_BT: Int[Tensor, "B T"], block_BT: Int[Tensor, "B T"], backend: str = "sdpa") -> Reading:
        """Makes room for T new columns and says who reads whom in them. Call once a forward pass, before `extend`."""
        self.start, self.stop = self.stop, self.stop + document_BT.shape[1]
        if self.stop > self.document_BS.shape[1]:
            raise InputError(f"{self.stop} positions in a cache of {self.document_BS.shape[1]}: ask for a longer cache or a shorter result")
        self.document_BS[:, self.start : self.stop] = document_BT
        self.block_BS[:, self.start : self.stop] = block_BT
        return Reading(document_BT, block_BT, self.document_BS[:, : self.stop], self.block_BS[:, : self.stop], backend)

    def extend(self, layer: int, k: Float[Tensor, "B K T E"], v: Float[Tensor, "B K T E"]) -> tuple[Tensor, Tensor]:
        self.k[layer, :, :, self.start : self.stop] = k
        self.v[layer, :, :, self.start : self.stop] = v
        return self.k[layer, :, :, : self.stop], self.v[layer, :, :, : self.stop]
