"""ids of a row -> where each stands (time, row, column), which are read as a whole, and what may come next: the native layouts, from ids alone."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import LogitsProcessor

from mmgpt.interop.hf.config import MMGPTConfig


def run_starts(member_BT: Tensor) -> Int[Tensor, "B T"]:
    """Where the run of members that holds a position began.

    member  . . x x x . x
    start   . . 2 2 2 . 6      (positions outside a run: any number)
    """
    index = torch.arange(member_BT.shape[1], device=member_BT.device)
    opens_BT = member_BT & ~F.pad(member_BT, (1, 0))[:, :-1]
    return torch.where(opens_BT, index, 0).cummax(1).values


def offsets(ids_BT: Int[Tensor, "B T"], config: MMGPTConfig) -> Int[Tensor, "3 B T"]:
    """(time, row, column) less the place in a line: 0 in text; a picture of rows x columns spans max(rows, columns) steps.

    example: begin, 2 x 2 vectors, end, word    place  000 | 111 112 121 122 | 333 444      offset  0 | 0.. | -2 -2
    """
    line_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
    step_BT, grid_3BT = torch.ones_like(ids_BT), torch.zeros_like(ids_BT).repeat(3, 1, 1)
    first, placeholder = config.first_code_id, config.image_token_id
    pictures = ((ids_BT == placeholder, config.read_grid), ((ids_BT >= first) & (ids_BT < placeholder), config.written_grid))
    for member_BT, (rows, columns) in pictures:
        rank_BT = (line_BT - run_starts(member_BT)) % (rows * columns)
        span = max(rows, columns)
        # the first slot carries the whole picture's span, so that whatever follows stands behind it: the others take it back
        step_BT = torch.where(member_BT, torch.where(rank_BT == 0, span, 0), step_BT)
        back_BT = torch.where(rank_BT == 0, 0, span)
        inner_3BT = torch.stack([-back_BT, rank_BT // columns - back_BT, rank_BT % columns - back_BT])
        grid_3BT = torch.where(member_BT, inner_3BT, grid_3BT)
    return step_BT.cumsum(1) - step_BT + grid_3BT - line_BT


def placed(line_BT: Int[Tensor, "B T"], offset_3BT: Int[Tensor, "3 B T"]) -> Int[Tensor, "4 B T"]:
    """The place in a line, for the mask; behind it time, row and column, for the decoder."""
    line_BT = line_BT.expand(offset_3BT.shape[1:])
    return torch.cat([line_BT[None], line_BT + offset_3BT])


def blocks(vector_BT: Tensor) -> Int[Tensor, "B T"]:
    """A number for each picture whose vectors read each other, -1 where reading is causal."""
    return torch.where(vector_BT, run_starts(vector_BT), -1)


class Grammar(LogitsProcessor):
    """What may come next, as the native automaton says: after a picture's begin its codes, then its end; else words and their end."""

    supports_continuous_batching = False

    def __init__(self, config: MMGPTConfig):
        self.config = config
        self.length = config.written_grid[0] * config.written_grid[1]

    def __call__(self, input_ids: Int[Tensor, "B T"], scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        c, id_V = self.config, torch.arange(scores.shape[1], device=scores.device)
        code_V = (id_V >= c.first_code_id) & (id_V < c.image_token_id)
        tail_BT = input_ids[:, -self.length :]
        run_B = ((tail_BT >= c.first_code_id) & (tail_BT < c.image_token_id)).long().flip(1).cumprod(1).sum(1)
        drawing_B = (run_B > 0) | (input_ids[:, -1:] == c.begin_image_id).any(1)
        allowed_BV = torch.where(drawing_B[:, None], code_V, id_V <= c.num_text)
        allowed_BV = torch.where((run_B == self.length)[:, None], id_V == c.end_image_id, allowed_BV)
        return scores.masked_fill(~allowed_BV, -torch.inf)
