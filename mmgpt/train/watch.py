"""Gradients, scores, batches and clocks -> the figures of an update, and warnings where one of them drifts."""

import math
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mmgpt.errors import TrainingError
from mmgpt.train.ranks import blocks, local
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


class Look:
    """`with Look(model) as look:` what goes through heads and decoder meanwhile; `figures` adds up the looks of all ranks.

    entropy/image   of the scores, in nats, at the mean target     attention   the largest root mean square of what a block's attention adds
    logit/image     the largest score, either way
    """

    def __init__(self, model: nn.Module, inside: bool = True):
        self.heads = dict(model.heads) if hasattr(model, "heads") else {}
        self.blocks = blocks(model) if inside else []
        self.sums: dict[str, float] = {}
        self.tops: dict[str, float] = {}

    def __enter__(self) -> "Look":
        self.hooks = [block.attention.register_forward_hook(self.attended) for block in self.blocks]
        for name, head in self.heads.items():
            head.look = partial(self.scored, name)
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
        for head in self.heads.values():
            head.look = None

    def attended(self, module: nn.Module, given: tuple, out: Tensor) -> None:
        self.top("attention", float(out.detach().float().square().mean().sqrt()))

    def scored(self, name: str, scores_NV: Tensor) -> None:
        entropy = float(torch.special.entr(scores_NV.softmax(-1)).sum())
        self.sums = added([self.sums, {f"entropy/{name}": entropy, f"targets/{name}": len(scores_NV)}])
        self.top(f"logit/{name}", float(scores_NV.masked_fill(scores_NV == -torch.inf, 0).abs().amax()))  # what can never come scores -inf

    def top(self, name: str, value: float) -> None:
        self.tops[name] = max(value, self.tops.get(name, 0.0))

    @staticmethod
    def figures(said: list[dict]) -> dict[str, float]:
        sums, found = added(one["sums"] for one in said), {}
        for name, value in sums.items():
            kind, _, head = name.partition("/")
            if kind == "entropy":
                found[name] = value / sums[f"targets/{head}"]
        for name in sorted({name for one in said for name in one["tops"]}):
            found[name] = max(one["tops"].get(name, 0.0) for one in said)
        return found


class Drift:
    """Figures -> warnings: a part whose gradient grew, or withered, to ten times what it was over the last hundred updates, and stays there.

    One modality's gradients run away long before the loss shows it, while the others' still hide it in the sum.
    """

    def __init__(self, times: float = 10.0, settle: int = 100, stays: int = 10):
        self.times, self.settle, self.stays = times, settle, stays
        self.mean: dict[str, float] = {}
        self.seen: dict[str, int] = {}
        self.far: dict[str, int] = {}  # updates in a row that it was away

    def __call__(self, figures: Mapping[str, float]) -> list[str]:
        said = []
        for name, norm in figures.items():
            if not name.startswith("norm/") or norm <= 0:
                continue
            usual, seen = self.mean.get(name, math.log(norm)), self.seen.get(name, 0)
            away = seen >= self.settle and abs(math.log(norm) - usual) > math.log(self.times)
            self.far[name] = self.far.get(name, 0) + 1 if away else 0
            if self.far[name] == self.stays:
                said.append(f"{name} is {norm:.3g}, it was about {math.exp(usual):.3g}: watch this part's loss, or lower learning_rate")
            self.mean[name], self.seen[name] = usual + (math.log(norm) - usual) / min(seen + 1, self.settle), seen + 1
        return said


class Board:
    """`with Board(folder, wanted) as board: board.write(step, figures)`: the figures, and samples as they are made, for TensorBoard."""

    def __init__(self, folder: str | Path, wanted: bool = True):
        self.writer, self.folder = None, Path(folder)
        if not wanted:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise TrainingError("tensorboard=true, and 0 of its packages are installed: pip install tensorboard, or leave it out") from None
        self.writer = SummaryWriter(str(self.folder / "tensorboard"))

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items() if self.writer is not None else ():
            self.writer.add_scalar(name, value, step)

    def samples(self, step: int) -> None:
        """The pictures and texts that a task has put into `samples/`."""
        for path in sorted((self.folder / "samples").glob(f"{step:07d}*")) if self.writer is not None else ():
            if path.suffix == ".txt":
                self.writer.add_text("samples", path.read_text(), step)
            elif path.suffix == ".png":
                from PIL import Image
                from torchvision.transforms.v2.functional import pil_to_tensor

                self.writer.add_image("samples", pil_to_tensor(Image.open(path).convert("RGB")), step)


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
