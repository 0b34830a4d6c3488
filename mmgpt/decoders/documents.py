"""Queries, keys, values of packed rows and where their documents lie -> read values, document by document, as if each stood alone.

A mask over a row costs the pairs of positions of all its documents, of which most are of two different ones. Here each document is one call
of the CPU's flash kernel. The loop is one operator to `torch.compile`: documents of other lengths are no reason to compile again.
"""

import torch
from jaxtyping import Int
from torch import Tensor

ROW, START, STOP, CAUSAL = range(4)
FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def cuts_of(document_BT: Int[Tensor, "B T"], block_BT: Int[Tensor, "B T"]) -> Int[Tensor, "N 4"]:
    """(row, start, stop, causal) of every document; it is causal if no block of it holds more than one position."""
    rows, length = document_BT.shape
    begins_BT = torch.ones_like(document_BT, dtype=torch.bool)
    begins_BT[:, 1:] = document_BT[:, 1:] != document_BT[:, :-1]
    start_N = (begins_BT & (document_BT > 0)).flatten().nonzero()[:, 0]
    edges = torch.cat([begins_BT.flatten().nonzero()[:, 0], torch.tensor([rows * length])])
    stop_N = edges[torch.searchsorted(edges, start_N, right=True)]
    shared = torch.zeros(rows * length + 1, dtype=torch.long)
    same_BT = (block_BT[:, 1:] == block_BT[:, :-1]) & ~begins_BT[:, 1:]
    shared[1:] = torch.cat([torch.zeros(rows, 1, dtype=torch.bool), same_BT], 1).flatten().cumsum(0)
    causal_N = shared[stop_N] == shared[start_N]
    return torch.stack([start_N // length, start_N % length, (stop_N - 1) % length + 1, causal_N.long()], 1)


def parts(cuts_N4: Tensor, block_BT: Tensor, dtype: torch.dtype):
    """For each document: its place in (B, H, T, E), whether it is causal, and its mask where it is not."""
    for row, start, stop, causal in cuts_N4.tolist():
        block_T = block_BT[row, start:stop]
        mask = None if causal else torch.zeros(1, 1, stop - start, stop - start, dtype=dtype).masked_fill_(block_T > block_T[:, None], -torch.inf)
        yield (slice(row, row + 1), slice(None), slice(start, stop)), bool(causal), mask


def whole(cuts_N4: Tensor, q: Tensor) -> bool:
    """Whether every row is one causal document: then all of them are one call."""
    rows, length = q.shape[0], q.shape[2]
    return len(cuts_N4) == rows and cuts_N4[:, STOP].eq(length).all().item() and cuts_N4[:, CAUSAL].all().item() and not cuts_N4[:, START].any()


def by_position(q: Tensor, new) -> Tensor:
    """(B, H, T, E), laid out as (B, T, H, E): as the kernel gives gradients, and as the layer before takes them."""
    return new((q.shape[0], q.shape[2], q.shape[1], q.shape[3])).transpose(1, 2)


@torch.library.custom_op("mmgpt::attend_documents", mutates_args=())
def attend_documents(q: Tensor, k: Tensor, v: Tensor, cuts: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H, T, E) each -> read values, and the logarithm of each softmax's sum, (B, T, H), which the backward pass needs."""
    if whole(cuts, q):
        out, sums = FORWARD(q, k, v, 0.0, True)
        return out, sums.transpose(1, 2)
    out, lse = torch.zeros_like(q), q.new_zeros(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)
    for here, causal, mask in parts(cuts, block, q.dtype):
        found, sums = FORWARD(q[here], k[here], v[here], 0.0, causal, attn_mask=mask)
        out[here] = found
        lse[here[0], here[2]] = sums.transpose(1, 2)
    return out, lse


@attend_documents.register_fake
def _(q, k, v, cuts, block):
    return torch.empty_like(q), q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)


@torch.library.custom_op("mmgpt::attend_documents_backward", mutates_args=())
def attend_documents_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cuts: Tensor, block: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if whole(cuts, q):
        return BACKWARD(grad, q, k, v, out, lse.transpose(1, 2), 0.0, True)
    grads = by_position(q, q.new_zeros), by_position(k, k.new_zeros), by_position(v, v.new_zeros)
    for here, causal, mask in parts(cuts, block, q.dtype):
        sums = lse[here[0], here[2]].transpose(1, 2)
        found = BACKWARD(grad[here], q[here], k[here], v[here], out[here], sums, 0.0, causal, attn_mask=mask)
        for all_of_it, part in zip(grads, found, strict=True):
            all_of_it[here] = part
    return grads


@attend_documents_backward.register_fake
def _(grad, q, k, v, out, lse, cuts, block):
    return by_position(q, q.new_empty), by_position(k, k.new_empty), by_position(v, v.new_empty)


def remember(ctx, inputs, output) -> None:
    q, k, v, cuts, block = inputs
    ctx.save_for_backward(q, k, v, *output, cuts, block)


def differentiate(ctx, grad, _):
    q, k, v, out, lse, cuts, block = ctx.saved_tensors
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    return *attend_documents_backward(grad, q, k, v, out, lse, cuts, block), None, None


attend_documents.register_autograd(differentiate, setup_context=remember)
