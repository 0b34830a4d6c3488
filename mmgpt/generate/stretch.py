"""Rows that choose alike for many steps (codes of pictures, ids of texts) -> those ids, without asking each row in between.

The same ids as step by step. What is spared is the bookkeeping of rows, which takes as long as a small model's products.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mmgpt.generate.row import Row
from mmgpt.generate.sampling import choose

HELD = 2**22  # scores that are kept before their log-probabilities are computed


def kind(row: Row) -> tuple:
    """Rows of one kind are scored and drawn together."""
    return row.name, row.choice, row.sampling, row.guidance[row.name], len(row.branches)


def steps(rows: Sequence[Row]) -> int:
    """How many steps all rows can take together: in each of them every row reads one id, and draws one of the same choice in the same way."""
    return min(map(alike, rows)) if len({kind(row) for row in rows}) == 1 and all(map(quiet, rows)) else 1


def quiet(row: Row) -> bool:
    """Whether nobody waits for the next id, and nothing but the row's end hangs on which one it is, not even where the next stands."""
    asked, sampling = row.request, row.sampling
    loud = row.listening or row.free or asked.stop or asked.guess or sampling.looks_back or sampling.bias or row.automaton.script.moves
    return not loud and all(len(branch.pending) == 1 for branch in row.branches)


def alike(row: Row) -> int:
    """How many slots, from the next one on, are open to the same ids, however the segment goes on."""
    here, scripts = row.automaton.length, row.automaton.scripts
    first, last, count = scripts[0].first_N[here], scripts[0].last_N[here], min(map(len, scripts)) - here
    for script in scripts:
        other = (script.first_N[here : here + count] != first) | (script.last_N[here : here + count] != last)
        count = int(other.argmax()) if other.any() else count
    return max(1, count)  # where ways part, one step


def take(rows: Sequence[Row], count: int, begin: Callable[..., Callable[[int, Tensor], Tensor]], score: Callable[[Tensor], Tensor]):
    """At most `count` steps, until a row ends: the ids that were drawn and their log-probabilities, (R, N) both.

    `begin(position_BN3, block_BN)` -> `read(n, ids_B1)`, called for n = 0, 1 ... -> (B, D); `score` scores vectors.
    """
    one, device = rows[0], rows[0].gpt.device
    guidance, stops = one.guidance[one.name], set(one.automaton.script.stops)
    branches = sorted(((branch.slot, row, branch) for row in rows for branch in row.branches), key=lambda found: found[0])
    row_B = [rows.index(row) for _, row, _ in branches]
    slot_N = [branch.slot for row in rows for branch in row.branches[: 1 if guidance.off else None]]
    to_branches, scored = in_order(row_B, len(rows), device), in_order(slot_N, len(branches), device)
    position_BN3 = torch.from_numpy(np.stack([places(row, branch, count) for _, row, branch in branches])).to(device)
    block_BN = torch.tensor([[branch.block] for *_, branch in branches], device=device) + torch.arange(count, device=device)
    ids_B1 = torch.tensor([branch.pending for *_, branch in branches], device=device)
    id_V = torch.cat([torch.arange(span.start, span.stop, device=device) for span in one.choice.spans])
    read = begin(position_BN3, block_BN)
    ids, drawn, costs = [], [], []
    for n in range(count):
        logits_RV = score(scored(read(n, ids_B1)))
        if not guidance.off:
            logits_RV = guidance.mix(logits_RV.unflatten(0, (len(rows), -1)), [(len(row.ids) + n) / len(row.automaton.script) for row in rows])
        index_R = choose(logits_RV, one.sampling, [row.generator for row in rows]).to(device)
        drawn.append((logits_RV, index_R))
        if len(drawn) * logits_RV.numel() > HELD or n == count - 1:
            costs.append(costs_of(drawn))
            drawn = []
        ids.append(id_V.index_select(0, index_R))
        ids_B1 = to_branches(ids[-1])[:, None]
        if stops and not stops.isdisjoint(ids[-1].tolist()):
            break
    if drawn:
        costs.append(costs_of(drawn))
    return torch.stack(ids, 1), torch.cat(costs, 1)


def in_order(index: list[int], size: int, device) -> Callable[[Tensor], Tensor]:
    """Takes the rows of a tensor in this order; all of them as they are cost nothing."""
    if index == [*range(size)]:
        return lambda x: x
    index_N = torch.tensor(index, device=device)
    return lambda x: x.index_select(0, index_N)


def costs_of(drawn: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Scores of N steps and what was drawn from them -> log-probabilities, (R, N). Few calls: each is slow after a step."""
    logits_RNV, index_RN = (torch.stack(part, 1) for part in zip(*drawn, strict=True))
    return logits_RNV.log_softmax(-1).gather(-1, index_RN[..., None])[..., 0]


def places(row: Row, branch, count: int) -> np.ndarray:
    """Where the id stands that a branch reads next, and those that it will read after it."""
    here = row.automaton.length
    return np.concatenate([np.stack(branch.places), row.automaton.script.place_N3[here : here + count - 1] + branch.origin_3])
