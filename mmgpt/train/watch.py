"""Gradients, batches and clocks -> the figures of an update: norms of each part, padding, the share of the machine that is used."""

import math
import time
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from mmgpt.train.ranks import local
from mmgpt.train.task import Task, Work
from mmgpt.types import Stream


def added(figures: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Figures of parts -> figures of the whole."""
    total: dict[str, float] = {}
    for one in figures:
        for name, value in one.items():
            total[name] = total[name] + value if name in total else value
    return total


def finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Without what JSON cannot hold and no mean survives."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def parts_of(names: Iterable[str]) -> dict[str, str]:
    """weight -> part: the decoder, the shared table, or the modality whose encoder, head or table it belongs to.

    decoder.blocks.0.mlp.down.weight -> decoder     encoders.image.linear.weight -> image     table.weight -> table
    """
    owned = ("encoders", "heads", "tables")
    return {name: name.split(".")[1 if name.startswith(tuple(f"{part}." for part in owned)) else 0] for name in names}


def gradient_squares(parts: Mapping[str, str], parameters: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """The squared norm of each part's gradient; of sharded ones, what this rank's rows add to it."""
    squares = dict.fromkeys(parts.values(), 0.0)
    gradients = {name: local(p.grad) for name, p in parameters.items() if p.grad is not None}
    if gradients:
        norms = torch.stack(torch._foreach_norm(list(gradients.values()))).double().square().tolist()
        for name, square in zip(gradients, norms, strict=True):
            squares[parts[name]] += square
    return squares


# --- how fast -------------------------------------------------------------------------------------------------------------------------


def stream_work(model: nn.Module, streams: Iterable[Stream]) -> Work:
    """The work of a training step on these streams.

    6 N + 12 L H E T floating-point operations a position: N weights of the decoder, L layers, H heads of E channels, rows of T positions
    (PaLM, Chowdhery et al., 2022, arXiv:2204.02311, appendix B). Its N counts the output table too; here a head is paid for
    where it has a target: 6 D V a target, V the ids it scores. Encoders are not counted, recomputed activations neither, and
    positions that hold nothing count for nothing: what is called use of the machine is useful use.
    """
    c, spans = model.decoder.config, model.spans
    weights = sum(p.numel() for p in model.decoder.parameters())
    flops, empty, positions = 0.0, 0, 0
    for stream in streams:
        rows, length = stream.ids_BT.shape
        held = int((stream.document_BT > 0).sum())
        flops += held * (6 * weights + 12 * c.depth * c.num_heads * c.head_width * length)
        flops += sum(6 * c.width * len(spans[target.head]) * len(target.id_N) for target in stream.targets)
        empty, positions = empty + rows * length - held, positions + rows * length
    return Work(flops, empty, positions)


def work_of(task: Task, parts: Iterable) -> dict[str, float]:
    """The work of this rank's parts, where the task counts it."""
    return added(vars(task.work(part)) for part in parts) if hasattr(task, "work") else {}


def speed_of(work: Mapping[str, float], seconds: float, peak: float) -> dict[str, float]:
    """padding: the share of positions that hold nothing; mfu: the share of `peak` operations a second that was used (PaLM's "model FLOPs")."""
    if not work:
        return {}
    used = {"mfu": work["flops"] / seconds / peak} if peak else {}
    return {"padding": work["empty"] / max(1, work["positions"]), **used}


def matmul_rate(device: torch.device) -> float:
    """Operations a second of one large matrix product here: bfloat16 on a GPU, float32 elsewhere; the best of five."""
    side, kind = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    a = torch.ones(side, side, device=device, dtype=kind)
    best = math.inf
    for _ in range(5):
        begin = time.perf_counter()
        float((a @ a)[0, 0])  # the number is waited for
        best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best
