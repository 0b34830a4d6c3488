"""Keys and values of what was read already: `extend` takes the new ones of a layer and returns all of them."""

from typing import Protocol, runtime_checkable

import numpy as np
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
    """Preallocated for `rows` rows of `length` positions; each row fills up by itself.

    A pass of T columns writes them behind what each row holds. Of a row with fewer ids than T the columns behind its last one are not kept:
    its next pass writes there again. So no row ever waits for, or is moved by, another. `cache[a:b]` is the cache of some rows, in the same memory.
    """

    def __init__(self, layers: int, rows: int, kv_heads: int, length: int, head_width: int, device=None, dtype=torch.float32):
        shape = (rows, kv_heads, length, head_width)
        self.k, self.v = ([torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)] for _ in range(2))
        self.block_RS = torch.zeros(rows, length, dtype=torch.long, device=device)
        self.used_R = np.zeros(rows, np.int64)
        self.here: slice | tuple[Tensor, slice, Tensor] = slice(0, 0)  # the columns that this pass writes: the same of all rows, or each row's own
        self.stop = 0  # columns that this pass reads

    @property
    def rows(self) -> int:
        return len(self.used_R)

    @property
    def length(self) -> int:
        return self.block_RS.shape[1]

    def __getitem__(self, rows: slice) -> "Cache":
        part = object.__new__(Cache)
        part.k, part.v = [k[rows] for k in self.k], [v[rows] for v in self.v]
        part.block_RS, part.used_R, part.here, part.stop = self.block_RS[rows], self.used_R[rows], slice(0, 0), 0
        return part

    def reading(self, document_BT: Int[Tensor, "B T"], block_BT: Int[Tensor, "B T"], backend: str = "sdpa") -> Reading:
        """Makes room for T new columns and says who reads whom in them. Call once a forward pass, before `extend`.

        Where document is 0 nothing stands; a row's ids come first.
        """
        columns, starts_R = document_BT.shape[1], self.used_R.copy()
        count_R = (document_BT > 0).sum(1).cpu().numpy()
        self.room(columns)
        even = bool((starts_R == starts_R[:1]).all())
        if even:
            self.here = slice(self.stop - columns, self.stop)
            self.block_RS[:, self.here] = block_BT
        else:
            column_BT = torch.from_numpy(starts_R[:, None] + np.arange(columns)).to(block_BT.device)
            row_B1 = torch.arange(self.rows, device=block_BT.device)[:, None]
            self.here = (row_B1, slice(None), column_BT)
            self.block_RS[row_B1, column_BT] = block_BT
        self.used_R += count_R
        if even and columns == 1 and count_R.all():
            return Reading(document_BT, block_BT, document_BT.expand(-1, self.stop), self.block_RS[:, : self.stop], backend, last=True)
        held_BS = torch.arange(self.stop, device=block_BT.device) < torch.from_numpy(self.used_R).to(block_BT.device)[:, None]
        return Reading(document_BT, block_BT, held_BS.long(), self.block_RS[:, : self.stop], backend)

    def room(self, columns: int) -> None:
        """Says how many columns a pass over so many new ones reads."""
        self.stop = int(self.used_R.max(initial=0)) + columns
        if self.stop > self.length:
            raise InputError(f"{self.stop} positions in a cache of {self.length}: ask for a longer cache or a shorter result")

    def extend(self, layer: int, k: Float[Tensor, "B K T E"], v: Float[Tensor, "B K T E"]) -> tuple[Tensor, Tensor]:
        mine_k, mine_v = self.k[layer], self.v[layer]
        if isinstance(self.here, slice):
            mine_k[:, :, self.here], mine_v[:, :, self.here] = k, v
        else:
            mine_k[self.here], mine_v[self.here] = k.transpose(1, 2), v.transpose(1, 2)
        return mine_k[:, :, : self.stop], mine_v[:, :, : self.stop]

    def move(self, source: int, target: int) -> None:
        """What a row holds, into another row."""
        self.put(target, self.held(source, int(self.used_R[source])))

    def held(self, row: int, length: int) -> "Cache":
        """The first `length` positions of a row: a view."""
        part = self[row : row + 1]
        part.k, part.v = [k[:, :, :length] for k in part.k], [v[:, :, :length] for v in part.v]
        part.block_RS, part.used_R = part.block_RS[:, :length], np.array([length])
        return part

    def copy(self) -> "Cache":
        """The same in memory of its own."""
        part = self[:]
        part.k, part.v = [k.clone() for k in self.k], [v.clone() for v in self.v]
        part.block_RS, part.used_R = self.block_RS.clone(), self.used_R.copy()
        return part

    def put(self, row: int, held: "Cache") -> None:
        """Fills a row with what was `held`."""
        length = held.length
        for mine, theirs in zip((*self.k, *self.v), (*held.k, *held.v), strict=True):
            mine[row, :, :length] = theirs[0]
        self.block_RS[row, :length] = held.block_RS[0]
        self.used_R[row] = length

    def empty(self, row: int) -> None:
        """Nothing is left of a row, not even numbers that are none."""
        self.used_R[row] = 0
        for mine in (*self.k, *self.v):
            mine[row].zero_()

    def grown(self, rows: int, length: int) -> "Cache":
        """The same rows in a larger cache."""
        layers, (_, kv_heads, _, head_width) = len(self.k), self.k[0].shape
        larger = Cache(layers, rows, kv_heads, length, head_width, self.k[0].device, self.k[0].dtype)
        for row in range(self.rows):
            larger.put(row, self.held(row, int(self.used_R[row])))
        return larger
