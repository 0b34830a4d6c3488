"""A training step beside transformers: same sizes, fp32, AdamW, interleaved in one process, medians.

python benchmarks/train.py [S M] [--rounds 7] [--compile] [--device cuda]     seconds a step, ratios, share of the measured matmul rate
python benchmarks/train.py S M --memory                                       peak memory of each, in a process of its own
python benchmarks/train.py S --packing [--compile]                            48 documents of 20 to 1,019 positions: useful positions a second

A row is half text and half picture codes. Peers score every position among all ids, which is what they can do; mmgpt's heads score their own
positions among their own ids. The share of the matmul rate counts what each has to do at least: 6 FLOPs a weight and position, 12 a layer,
channel and pair of positions for attention, halved as it is causal (Chowdhery et al., 2022, arXiv:2204.02311, appendix B).
"""

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Size:
    width: int
    depth: int
    mlp: int
    text: int
    codes: int
    rows: int
    length: int


SIZES = {"S": Size(256, 6, 704, 8192, 1024, 4, 256), "M": Size(512, 8, 1408, 8192, 8192, 2, 512)}
SIZES |= {"1B": Size(2048, 20, 5632, 32_768, 16_384, 4, 4096)}  # for a GPU


def ids_of(size: Size, device: str) -> torch.Tensor:
    """(rows, length): text, then codes."""
    draw = torch.Generator().manual_seed(0)
    half = (size.rows, size.length // 2)
    text, codes = torch.randint(size.text, half, generator=draw), torch.randint(size.codes, half, generator=draw)
    return torch.cat([text, size.text + codes], 1).to(device)


def ours(size: Size):
    from mmgpt.decoders.heads import TableHead
    from mmgpt.decoders.transformer import DecoderConfig
    from mmgpt.layout import CodesLayout, TextLayout
    from mmgpt.model import GPT, Port
    from mmgpt.script import Span
    from mmgpt.types import Stream, Target

    heads, total = size.width // 64, size.text + size.codes
    config = DecoderConfig(size.width, size.depth, heads, heads, 64, size.mlp, position_axes=1, qk_norm="")
    spans = {"text": Span(0, size.text), "image": Span(size.text, total)}
    ports = {
        "text": Port(str, writes=TextLayout(spans["text"], 0), head=TableHead),
        "image": Port(bytes, writes=CodesLayout(total, spans["image"], total + 1)),
    }
    gpt = GPT(config, ports, total + 2, tied=False)

    def loss(ids_BT, document_BT=None, at_BT=None):
        document_BT = torch.ones_like(ids_BT) if document_BT is None else document_BT
        at_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT) if at_BT is None else at_BT
        goes_on = (document_BT[:, 1:] == document_BT[:, :-1]) & (document_BT[:, 1:] > 0)
        last = torch.arange(ids_BT.numel(), device=ids_BT.device).view_as(ids_BT)[:, :-1][goes_on]
        next_N = ids_BT[:, 1:][goes_on]
        mine = {name: (next_N >= span.start) & (next_N < span.stop) for name, span in spans.items()}
        targets = tuple(Target(name, last[here], next_N[here]) for name, here in mine.items())
        stream = Stream(ids_BT, document_BT, at_BT, at_BT[..., None].expand(-1, -1, 3), (), targets)
        return torch.cat(list(gpt.losses(stream, "flex" if ids_BT.is_cuda else "sdpa").values())).mean()

    return gpt, loss, lambda: gpt.decoder.compile(fullgraph=True)


def peer(name: str, size: Size):
    import transformers

    sizes = {"vocab_size": size.text + size.codes, "hidden_size": size.width, "num_hidden_layers": size.depth, "intermediate_size": size.mlp}
    sizes |= {"num_attention_heads": size.width // 64, "num_key_value_heads": size.width // 64, "max_position_embeddings": size.length}
    sizes |= {"tie_word_embeddings": False, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if name == "chameleon":
        vq = {"embed_dim": 8, "num_embeddings": 16, "latent_channels": 8, "base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1}
        config = transformers.ChameleonConfig(**sizes, vq_config=vq, vocabulary_map={"<image>": 3, "IMGIMGBSZ": 4})
        model = transformers.ChameleonForConditionalGeneration(config)
    else:
        kinds = {"llama": ("LlamaConfig", "LlamaForCausalLM"), "qwen3": ("Qwen3Config", "Qwen3ForCausalLM")}
        kinds |= {"emu3": ("Emu3TextConfig", "Emu3ForCausalLM")}
        config = getattr(transformers, kinds[name][0])(**sizes, **({"head_dim": 64} if name == "qwen3" else {}))
        model = getattr(transformers, kinds[name][1])(config)
    return model, lambda ids_BT: model(input_ids=ids_BT, labels=ids_BT).loss, lambda: model.compile()


NAMES = ("mmgpt", "llama", "qwen3", "chameleon", "emu3")


def step_of(model, optimizer, losses, weights, device: str = "cpu"):
    """A function that makes one step over several batches: the sum of their losses, each weighted, is what is minimised."""

    def step() -> tuple[float, float]:
        begin, total = time.perf_counter(), 0.0
        for loss_of, weight in zip(losses, weights, strict=True):
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = loss_of() * weight
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin, total

    return step


def contender(name: str, size: Size, device: str, compiled: bool):
    """A function that makes one step."""
    torch.manual_seed(0)
    model, loss_of, compile = ours(size) if name == "mmgpt" else peer(name, size)
    model.to(device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    ids = ids_of(size, device)
    if compiled:
        compile()

    return step_of(model, optimizer, [lambda: loss_of(ids)], [1.0], device)


def useful(size: Size, own_rows: bool) -> float:
    """FLOPs of a step at the least, by the model's own way of scoring."""
    blocks = size.depth * (4 * size.width**2 + 3 * size.width * size.mlp)
    scored = (size.text + size.codes) * size.width / (2 if own_rows else 1)  # half of the positions, each among its own ids
    return size.rows * size.length * (6 * (blocks + scored) + 6 * size.depth * size.width * size.length)


def matmul_rate(device: str) -> float:
    """FLOPs a second of a large matrix product, now."""
    n, kind = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    a, b, times = torch.rand(n, n, device=device, dtype=kind), torch.rand(n, n, device=device, dtype=kind), []
    for _ in range(5):
        begin = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return 2 * n**3 / min(times)


def compare(name: str, rounds: int, device: str, compiled: bool) -> None:
    size, times, rates = SIZES[name], {}, []
    steps = {f"{who}{how}": contender(who, size, device, how != "") for how in ("", *([" compiled"] if compiled else [])) for who in NAMES}
    for number in range(rounds + 2):  # the first two warm up
        rates.append(matmul_rate(device))
        for who, step in steps.items():
            seconds, _ = step()
            if number >= 2:
                times.setdefault(who, []).append(seconds)
    rate, median = statistics.median(rates), {who: statistics.median(found) for who, found in times.items()}
    print(f"{name}: width {size.width}, {size.depth} blocks, {size.rows} x {size.length}; matmul {rate / 1e9:.0f} GFLOP/s; median of {rounds}")
    for how in {who.partition(" ")[2] for who in median}:
        best = min(seconds for who, seconds in median.items() if who.partition(" ")[2] == how and not who.startswith("mmgpt"))
        for who, seconds in median.items():
            if who.partition(" ")[2] == how:
                share = useful(size, who.startswith("mmgpt")) / seconds / rate
                print(f"  {who:20} {seconds:7.3f} s   {best / seconds:5.2f} x the best peer   {share:4.0%} of the matmul rate", flush=True)


def documents(size: Size, count: int = 48) -> list[torch.Tensor]:
    """Lengths of a realistic mix: two thirds are pairs of a caption and a small picture, the rest pages."""
    draw = torch.Generator().manual_seed(0)
    number = lambda low, high: int(torch.randint(low, high, (1,), generator=draw))  # noqa: E731
    lengths = [1019, *(number(20, 91) if n % 3 else number(150, 1020) for n in range(1, count))]
    half = lambda low, high, n: torch.randint(low, high, (n,), generator=draw)  # noqa: E731
    return [torch.cat([half(0, size.text, n // 2), half(size.text, size.text + size.codes, n - n // 2)]) for n in lengths]


def padded(some: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from torch.nn.utils.rnn import pad_sequence

    ids = pad_sequence(some, batch_first=True)
    real = pad_sequence([torch.ones_like(x) for x in some], batch_first=True)
    return ids, real, ids.masked_fill(real == 0, -100)


def flat(some: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One row: ids, positions that begin anew with each document, labels without each document's first."""
    at = torch.cat([torch.arange(len(x)) for x in some])
    ids = torch.cat(some)
    return ids[None], at[None], ids.masked_fill(at == 0, -100)[None]


def packing(name: str, rounds: int, compiled: bool) -> None:
    from mmgpt.pack import assign

    size, docs = SIZES[name], documents(SIZES[name])
    total, order = sum(map(len, docs)), torch.randperm(len(docs), generator=torch.Generator().manual_seed(1)).tolist()
    rows = [[docs[i] for i in row] for row in assign([len(x) for x in docs], 1024)]
    targets = total - len(docs)
    steps = {}

    def add(who, model, losses, counts):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
        steps[who] = step_of(model.train(), optimizer, losses, [count / targets for count in counts])

    model, _, compile = peer("llama", size)
    if compiled:
        compile()
    by_eight = lambda order: [[docs[i] for i in order[n : n + 8]] for n in range(0, len(docs), 8)]  # noqa: E731
    for who, batches in (("llama, padded", by_eight(order)), ("llama, sorted", by_eight(sorted(range(len(docs)), key=lambda i: len(docs[i]))))):
        losses = [
            lambda ids=ids, real=real, labels=labels: model(ids, attention_mask=real, labels=labels).loss
            for ids, real, labels in map(padded, batches)
        ]
        add(who, model, losses, [sum(map(len, some)) - len(some) for some in batches])
    losses = [lambda ids=ids, at=at, labels=labels: model(ids, position_ids=at, labels=labels).loss for ids, at, labels in map(flat, rows)]
    add("llama, packed", model, losses, [sum(map(len, some)) - len(some) for some in rows])
    gpt, loss_of, compile = ours(size)
    if compiled:
        compile()

    def row(some):
        return [
            torch.nn.functional.pad(x, (0, 1024 - len(x)))
            for x in (  # noqa: E731
                torch.cat(some),
                torch.cat([torch.full_like(x, n) for n, x in enumerate(some, 1)]),
                torch.cat([torch.arange(len(x)) for x in some]),
            )
        ]

    packed = [torch.stack(x) for x in zip(*map(row, rows), strict=True)]
    add("mmgpt, packed", gpt, [lambda: loss_of(*packed)], [targets])
    with torch.no_grad():
        alone = sum(float(loss_of(x[None])) * (len(x) - 1) for x in docs) / targets
        print(f"mmgpt: loss packed {float(loss_of(*packed)):.7f}, document by document {alone:.7f}")
    times: dict[str, list[float]] = {}
    for number in range(rounds + 2):
        for who, step in steps.items():
            seconds, _ = step()
            if number >= 2:
                times.setdefault(who, []).append(seconds)
    median = {who: statistics.median(found) for who, found in times.items()}
    print(f"{name}: {len(docs)} documents of {total / len(docs):.0f} positions, the longest {max(map(len, docs))}; {len(rows)} rows of 1024")
    for who, seconds in median.items():
        print(
            f"  {who:16} {total / seconds:8.0f} useful positions a second; mmgpt takes {median['mmgpt, packed'] / seconds:.3f} of its time",
            flush=True,
        )


CHILD = """
import sys; sys.path.insert(0, sys.argv[3])
import torch, transformers, train
transformers.LlamaForCausalLM, transformers.Qwen3ForCausalLM, transformers.ChameleonForConditionalGeneration, transformers.Emu3ForCausalLM
import mmgpt.model
def held(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 2**20
before = held("VmRSS")
step = train.contender(sys.argv[1], train.SIZES[sys.argv[2]], "cpu", False)
for _ in range(4):
    step()
print(held("VmHWM") - before)
"""


def memory(name: str) -> None:
    from pathlib import Path

    found = {}
    for who in NAMES:
        out = subprocess.run([sys.executable, "-c", CHILD, who, name, str(Path(__file__).parent)], capture_output=True, text=True, check=True)
        found[who] = float(out.stdout.splitlines()[-1])
    best = min(size for who, size in found.items() if who != "mmgpt")
    for who, size in found.items():
        print(f"  {name} {who:12} {size:6.3f} GiB above what importing takes, {size / best:.2f} x the best peer", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", default=["S", "M"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    for name in arguments.sizes:
        if arguments.memory:
            memory(name)
        elif arguments.packing:
            packing(name, arguments.rounds, arguments.compile)
        else:
            compare(name, arguments.rounds, arguments.device, arguments.compile)


if __name__ == "__main__":
    main()
