"""Sizes of a model and of a cluster -> docs/scaling.md: memory, traffic, stops and checkpoints, from the formulas in this file.

python tools/scaling.py > docs/scaling.md
"""

import math
from dataclasses import dataclass

from mmgpt.decoders.transformer import DecoderConfig, decoder_preset

IDS, POSITIONS, ROW = 65_536, 2**22, 4096  # ids of text and codes; positions of a global batch; of a row
SIZES = {"1.4B": 48, "7B": 84, "67B": 176}  # name -> depth, the preset's one dial
RANKS = (8, 64, 1024)
MASTER, MOMENTS, AVERAGE, GRADIENT = 4, 8, 4, 4  # bytes a weight: fp32 weights, AdamW's two moments, the average, fp32 gradients
STOPS = 419 / (16_384 * 54)  # unexpected stops a GPU and day: Llama 3 405B (Grattafiori et al., 2024, arXiv:2407.21783, section 3.3.4)
OFTEN = 10 * 60  # seconds: nobody saves more often than this
RESTART = 15 * 60  # seconds from a stop to the first new step, an assumption


@dataclass(frozen=True)
class GPU:
    """One accelerator and its links. The figures are the maker's; `used` is the share of `flops` that a good run reaches."""

    name: str = "H100 SXM"
    flops: float = 989e12  # bf16, dense
    used: float = 0.45
    memory: float = 80e9
    inside: float = 450e9  # bytes a second, one way, between the 8 of a node
    outside: float = 50e9  # bytes a second and GPU between nodes (400 Gbit/s)


def block_weights(c: DecoderConfig) -> int:
    """Matrices of one block: queries, keys and values, output, the three of the MLP."""
    return c.width * c.head_width * (2 * c.num_heads + 2 * c.num_kv_heads) + 3 * c.width * c.mlp_width


def weights(c: DecoderConfig) -> int:
    return c.depth * block_weights(c) + IDS * c.width


def flops(c: DecoderConfig) -> float:
    """Of one position, forward and backward: 6 a weight, and attention over a row (Chowdhery et al., 2022, arXiv:2204.02311, appendix B)."""
    return 6 * weights(c) + 12 * c.depth * c.num_heads * c.head_width * ROW


def shard(c: DecoderConfig, ranks: int) -> float:
    """Bytes a rank holds for good: everything is sharded (Rajbhandari et al., 2019, arXiv:1910.02054, stage 3)."""
    return weights(c) * (MASTER + MOMENTS + AVERAGE + GRADIENT) / ranks


def gathered(c: DecoderConfig) -> float:
    """Bytes of whole weights in bf16: the block at work, the one fetched ahead, the table."""
    return 2 * (2 * block_weights(c) + IDS * c.width)


def activations(c: DecoderConfig, rows: int, again: bool) -> float:
    """Bytes: 34 a position and channel of each block (Korthikanti et al., 2022, arXiv:2205.05198, without the scores, which are never
    stored); computed `again`, only each block's input and one whole block."""
    one = rows * ROW * c.width
    return (2 * c.depth + 34) * one if again else 34 * c.depth * one


def plan(c: DecoderConfig, ranks: int, gpu: GPU) -> tuple[int, bool] | None:
    """(rows of a rank's micro-batch, computed again): as many as fit in nine tenths of the memory, computed again only where it must be."""
    for again in (False, True):
        room = 0.9 * gpu.memory - shard(c, ranks) - gathered(c)
        rows = int(room // activations(c, 1, again)) if room > 0 else 0
        if rows:
            share = max(1, POSITIONS // ROW // ranks)
            return max(n for n in range(1, share + 1) if share % n == 0 and n <= rows), again
    return None


def traffic(c: DecoderConfig, ranks: int, rows: int) -> float:
    """Bytes a rank receives a step: for each micro-batch bf16 weights, for forward and again for backward, and fp32 gradients."""
    micro = POSITIONS / ROW / ranks / rows
    return micro * weights(c) * (2 + 2 + GRADIENT) * (ranks - 1) / ranks


def step_seconds(c: DecoderConfig, ranks: int, gpu: GPU, rows: int, again: bool) -> tuple[float, float]:
    """(computing, sending) of a step. They overlap: the longer one counts. A forward pass is a third of the computing."""
    link = gpu.inside if ranks <= 8 else gpu.outside
    return POSITIONS / ranks * flops(c) * (4 / 3 if again else 1) / (gpu.flops * gpu.used), traffic(c, ranks, rows) / link


def stops_a_week(ranks: int) -> float:
    return STOPS * ranks * 7


def checkpoint(c: DecoderConfig) -> float:
    return weights(c) * (MASTER + MOMENTS + AVERAGE)


def interval(stall: float, ranks: int) -> float:
    """Seconds between saves that lose the least: sqrt(2 · stall · time between stops) (Young, 1974, doi:10.1145/361147.361115), at least OFTEN."""
    return max(OFTEN, math.sqrt(2 * stall * 86_400 / (STOPS * ranks)))


def lost(stall: float, ranks: int) -> float:
    """Share of the time: stalls while saving, half an interval done again and the restart, for each stop."""
    every, between = interval(stall, ranks), 86_400 / (STOPS * ranks)
    return stall / every + (every / 2 + RESTART) / between


def gb(count: float) -> str:
    return f"{count / 1e9:.1f}" if count < 1e11 else f"{count / 1e9:.0f}"


def span(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def page(gpu: GPU) -> str:
    models = {name: decoder_preset(depth) for name, depth in SIZES.items()}
    sizes = [[name, str(c.depth), str(c.width), f"{weights(c) / 1e9:.2f}", f"{flops(c) / 1e9:.1f}", gb(checkpoint(c))] for name, c in models.items()]
    memory, steps, stops = [], [], []
    for name, c in models.items():
        for ranks in RANKS:
            found, held = plan(c, ranks, gpu), [gb(shard(c, ranks)), gb(gathered(c))]
            if found is None:
                memory.append([name, str(ranks), *held, "", "", "does not fit"])
                continue
            rows, again = found
            memory.append([name, str(ranks), *held, str(rows), gb(activations(c, rows, again)), "computed again" if again else "kept"])
            compute, send = step_seconds(c, ranks, gpu, rows, again)
            speed = POSITIONS / max(compute, send)
            steps.append(
                [name, str(ranks), gb(traffic(c, ranks, rows)), f"{compute:.2f}", f"{send:.2f}", f"{speed / 1e6:.2f}", f"{speed * 86_400 / 1e9:.0f}"]
            )
    for ranks in RANKS:
        for name, c in models.items():
            if plan(c, ranks, gpu) is None:
                continue
            stall = checkpoint(c) / ranks / 20e9  # to the host at 20 GB/s, an assumption
            every = interval(stall, ranks)
            stops.append(
                [
                    str(ranks),
                    name,
                    f"{stops_a_week(ranks):.2f}",
                    f"{stall:.2f} s",
                    span(every),
                    gb(checkpoint(c) / every),
                    f"{lost(stall, ranks):.2%}",
                ]
            )
    return TEXT.format(
        gpu=gpu.name, flops=gpu.flops / 1e12, used=gpu.used, memory=gpu.memory / 1e9, inside=gpu.inside / 1e9, outside=gpu.outside / 1e9,
        positions=POSITIONS, row=ROW, ids=IDS, restart=RESTART // 60, rate=STOPS * 1000,
        sizes=table(["model", "blocks", "width", "weights, 10⁹", "GFLOP a position", "checkpoint, GB"], sizes),
        memory_table=table(["model", "GPUs", "shard", "gathered", "rows at once", "activations", "are"], memory),
        steps=table(["model", "GPUs", "received a step, GB", "computing, s", "sending, s", "positions, 10⁶/s", "positions, 10⁹/day"], steps),
        stops=table(["GPUs", "model", "stops a week", "stall a save", "save every", "needs, GB/s", "time lost"], stops),
    )  # fmt: skip


TEXT = """# Scale: what 8, 64 and 1,024 GPUs need

Printed by `python tools/scaling.py`; the formulas and their sources are in that file. These are estimates for planning, none of them was
measured: mmgpt has been run on two CPU cores and, with several ranks, on gloo. What was measured there is in `LOG.md`.

Assumed: {gpu} ({flops:.0f} TFLOP/s bf16, of which {used:.0%} are reached, {memory:.0f} GB, {inside:.0f} GB/s inside a node, {outside:.0f} GB/s a GPU
between nodes); {ids:,} ids; a global batch of {positions:,} positions in rows of {row:,}; weights, moments, average and gradients in fp32, sharded
over all ranks; computing in bf16.

{sizes}

## Memory a rank, GB

`shard` is held for good, `gathered` is two blocks and the table in bf16. A rank takes its share of the batch in micro-batches of as many rows as
fit. Where activations of one row do not fit, only each block's input is kept and the rest is computed again, a third more computing.

{memory_table}

## Traffic and speed

For each micro-batch weights are fetched for the forward and again for the backward pass, and gradients are summed in fp32. Sending overlaps with
computing, so the longer of the two counts: where it is sending, a larger batch, or shards inside a node alone with whole copies across nodes
(which mmgpt does not do yet), is the remedy.

{steps}

## Stops and checkpoints

Unexpected stops come at {rate:.2f} a thousand GPUs and day, as Llama 3 405B saw; after one, {restart} minutes pass before the first new step. Saving
stalls training while a rank copies its shard to the host's memory; the disk is written meanwhile, and must keep up with `needs`.

{stops}
"""


if __name__ == "__main__":
    print(page(GPU()), end="")
