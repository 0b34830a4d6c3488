"""Codes of a picture drawn ahead of their turn, on a checkpoint: how many passes that takes, how long they are, how a judge sees it.

python benchmarks/ahead.py emoji.parquet [emoji] [--num 300] [--stagger 2 3 4] [--window 4 8 16]

Every code has noise of its own (argmax of p / noise draws from p), so that what is drawn does not hang on when it is drawn.

window W     speculative Jacobi (after Song et al., 2021, arXiv:2002.03629; Teng et al., 2024, arXiv:2410.01699): the next W codes are guessed to be
             what the last pass drew there (at first: what stands above), and stand as far as they are drawn again. The same picture as one by one
stagger S    rows in parallel (after He et al., 2024, arXiv:2412.04062): a row begins when the one above has S codes, whatever its others will be;
             until then they are taken for what the last pass drew there. Another picture: it is judged

A pass is timed with guidance: one code wide as eager and as compiled step, of one picture and of eight, and eager W codes wide. The compiled step of
eight pictures multiplies as many vectors as one of eight codes would, which there is none of.
"""

import argparse
import statistics
import time
from dataclasses import replace
from itertools import product

import numpy as np
import torch
from einops import rearrange

import mmgpt
from mmgpt.data.emoji import drawing_prompt, load_emoji, seen_concepts, training_rows
from mmgpt.evaluate.draw import evaluate_drawing, one_of_each
from mmgpt.evaluate.judge import Judge
from mmgpt.generate.engine import Engine, Request
from mmgpt.generate.row import Row
from mmgpt.pack import lay, length
from mmgpt.types import Stream


class Pictures:
    """Some prompts' pictures as they are drawn: what stands, what is guessed."""

    def __init__(self, gpt, prompts: list[str], guidance: float, seed: int):
        self.gpt, self.port, self.guidance = gpt, gpt.ports["image"], guidance
        _, self.height, self.width = self.port.grid
        self.count, self.span = self.height * self.width, gpt.heads["image"].ids
        rows = [Row(gpt, Request([prompt], "image", guidance=guidance, seed=seed + n)) for n, prompt in enumerate(prompts)]
        written = self.port.writes.write(np.zeros(self.port.grid, np.int64), True)
        documents = [[*branch.document, written] for row in rows for branch in row.branches]
        self.stream = lay([[document] for document in documents], {}, max(map(length, documents)))
        first = [length(document) - len(written) + 1 for document in documents]
        self.slot_BN = torch.tensor(first)[:, None] + torch.arange(self.count)
        size = len(self.span)
        self.noise_RNV = torch.stack(
            [torch.stack([torch.empty(size).exponential_(generator=row.generator) for _ in range(self.count)]) for row in rows]
        )
        self.drawn_RN = torch.zeros(len(rows), self.count, dtype=torch.long)

    def draw(self) -> None:
        """One pass: what every code would be if all before it were what they are taken for."""
        branches = len(self.stream.ids_BT) // len(self.drawn_RN)
        ids_BN = (self.drawn_RN + self.span.start).repeat_interleave(branches, 0)
        self.stream.ids_BT.scatter_(1, self.slot_BN, ids_BN)
        h_BTD = self.gpt(self.stream)
        h_BND = h_BTD.gather(1, (self.slot_BN - 1)[..., None].expand(-1, -1, h_BTD.shape[-1]))
        logits = self.gpt.heads["image"].logits(h_BND, self.span).float()
        logits = rearrange(logits, "(r g) n v -> r g n v", g=branches)
        mixed_RNV = logits[:, 0] if branches == 1 else logits[:, 1] + self.guidance * (logits[:, 0] - logits[:, 1])
        probability = (mixed_RNV / self.port.sampling.temperature).softmax(-1)
        probability = probability.where(probability >= self.port.sampling.min_p * probability.amax(-1, keepdim=True), 0.0)
        self.drawn_RN = (probability / self.noise_RNV).argmax(-1)

    def values(self) -> list:
        return [self.port.codec.decode(codes.view(1, self.height, self.width).numpy()) for codes in self.drawn_RN]


def jacobi(pictures: Pictures, window: int) -> torch.Tensor:
    """Passes that each picture takes: all of a guessed window stand that were drawn as they were guessed, and the one behind them."""
    done_R, passes_R = (torch.zeros(len(pictures.drawn_RN), dtype=torch.long) for _ in range(2))
    at_N = torch.arange(pictures.count)
    while (going_R := done_R < pictures.count).any():
        guess_RN = pictures.drawn_RN.clone()
        pictures.draw()
        same_RN = (guess_RN == pictures.drawn_RN) | (at_N < done_R[:, None])
        right_R = same_RN.long().cumprod(1).sum(1).clamp(max=done_R + window - 1) + 1  # the first that was guessed wrongly is right now
        passes_R += going_R
        pictures.drawn_RN = torch.where(at_N < done_R[:, None], guess_RN, pictures.drawn_RN)
        beyond_RN = at_N >= done_R[:, None] + window
        pictures.drawn_RN = torch.where(beyond_RN, pictures.drawn_RN.roll(pictures.width, 1), pictures.drawn_RN)
        done_R = torch.where(going_R, right_R.clamp(max=pictures.count), done_R)
    return passes_R


def staggered(pictures: Pictures, stagger: int) -> int:
    """Passes until all rows are drawn, each `stagger` codes behind the one above."""
    turn_N = (torch.arange(pictures.height)[:, None] * stagger + torch.arange(pictures.width)).flatten()
    for turn in range(int(turn_N.max()) + 1):
        before_RN = pictures.drawn_RN
        pictures.draw()
        pictures.drawn_RN = torch.where(turn_N < turn, before_RN, pictures.drawn_RN)
    return int(turn_N.max()) + 1


class Staggered:
    """In the place of a model, for the exam of drawings."""

    def __init__(self, gpt, stagger: int):
        self.gpt, self.stagger = gpt, stagger

    @torch.inference_mode()
    def draw(self, prompts, guidance, seed, **_) -> list:
        pictures = Pictures(self.gpt, prompts, guidance, seed)
        staggered(pictures, self.stagger)
        return pictures.values()


@torch.inference_mode()
def pass_times(gpt, prompt: str, guidance: float, widths: list[int]) -> dict[str, float]:
    """Milliseconds of a pass of one guided picture, medians, interleaved."""
    engines, request = {"eager": Engine(gpt), "compiled": Engine(gpt, compile=True)}, Request([prompt], "image", guidance=guidance)
    begin = replace(request, grid=(1, 1, 1))
    pictures, found = Pictures(gpt, [prompt], guidance, 0), {}
    whole, used = pictures.stream, int(pictures.slot_BN[0, 0])
    cache = gpt.decoder.new_cache(len(whole.ids_BT), whole.ids_BT.shape[1])
    gpt(Stream(*(x[:, :used] for x in (whole.ids_BT, whole.document_BT, whole.block_BT, whole.position_BT3))), cache)
    for number in range(9):
        for (name, engine), many in product(engines.items(), (1, 8)):
            seconds = [clock(lambda asked=asked, engine=engine, many=many: engine.run([asked] * many)) for asked in (begin, request)]
            found.setdefault(f"{name}, 1 code, {many} picture{'s' * (many > 1)}", []).append((seconds[1] - seconds[0]) / (pictures.count - 1))
        for width in widths:
            some = Stream(*(x[:, used : used + width] for x in (whole.ids_BT, whole.document_BT, whole.block_BT, whole.position_BT3)))
            seconds = []
            for _ in range(9):
                cache.used_R[:] = used
                seconds.append(clock(lambda some=some: gpt.heads["image"].logits(gpt(some, cache), pictures.span)))
            found.setdefault(f"eager, {width} codes (no drawing)", []).append(statistics.median(seconds))
        if number == 0:
            found.clear()
    return {name: 1e3 * statistics.median(times) for name, times in found.items()}


def clock(call) -> float:
    begin_at = time.perf_counter()
    call()
    return time.perf_counter() - begin_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("checkpoint", nargs="?", default="emoji")
    parser.add_argument("--num", type=int, default=300)
    parser.add_argument("--stagger", type=int, nargs="*", default=[2, 3, 4], help="none: nothing is judged, which takes hours")
    parser.add_argument("--window", type=int, nargs="*", default=[4, 8, 16])
    o = parser.parse_args()
    gpt, rows = mmgpt.load(o.checkpoint), load_emoji(o.data)
    guidance, sampling, (_, height, width) = gpt.ports["image"].guidance, gpt.ports["image"].sampling, gpt.ports["image"].grid
    assert sampling.temperature > 0 and not sampling.top_k and sampling.top_p == 1, "drawn otherwise than this script draws"
    concepts = seen_concepts(rows, o.num)
    prompts = [
        drawing_prompt(row.label, row.style) for row in one_of_each(concepts, [row for row in training_rows(rows) if row.label in set(concepts)])
    ]
    for name, ms in pass_times(gpt, prompts[0], guidance, sorted({1, *o.window})).items():
        print(f"{name:30} {ms:6.2f} ms", flush=True)
    with torch.inference_mode():
        some = prompts[:8]
        plain = gpt.draw(some)
        for window in o.window:
            pictures = Pictures(gpt, some, guidance, 0)
            passes = jacobi(pictures, window).double()
            same = sum(a.tobytes() == b.tobytes() for a, b in zip(plain, pictures.values(), strict=True))
            print(f"window {window:2}   {passes.mean():5.1f} passes of {pictures.count}, {same} of {len(some)} pictures the same", flush=True)
    judge = Judge.load() if o.stagger else None
    for stagger in [0, *o.stagger] if o.stagger else []:
        figures = evaluate_drawing(Staggered(gpt, stagger) if stagger else gpt, rows, judge, [guidance], num=o.num)
        found = {exam: figures[exam][f"guidance_{guidance:g}"]["top5"] for exam in ("seen", "unseen_combinations")}
        print(
            f"{f'stagger {stagger}' if stagger else 'one by one':12} {(height - 1) * (stagger or width) + width:3} passes   top five {found}",
            flush=True,
        )


if __name__ == "__main__":
    main()
