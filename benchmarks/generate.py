"""Greedy generation beside transformers' `generate`: the same random weights, the same ids, interleaved in one process, medians.

python benchmarks/generate.py [S M] [--codes 64 256 576] [--batch 1 8]    codes one by one; share of the measured read bandwidth
python benchmarks/generate.py [S M] --guided [--batch 1 4]                with guidance: Emu3 and Janus as transformers draw them
python benchmarks/generate.py [S M] --mixed                               four texts and four pictures together, and one after the other
    [--rounds 5] [--static] [--eager] [--device cuda]

Rows of the output table that are text are zero where codes are compared, so that both write codes without a constraint; that they write the
same ones is checked. `transformers` is `generate` as people call it; with --static also its static cache, without and with its forward pass compiled.
mmgpt's step is compiled, but with --eager. A call is timed whole: prompt, prefill, every id; a step is what each id after the first one takes.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from train import SIZES, Size

PROMPT, SCALE = 16, 3.0
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


class Ids:
    """Text that is a line of numbers."""

    num_codes = 0

    def encode(self, text: str) -> np.ndarray:
        return np.array([int(word) for word in text.split()], np.int64)

    def decode(self, codes) -> str:
        return " ".join(map(str, np.asarray(codes).flatten().tolist()))


class Codes:
    """Pictures that are their codes."""

    def encode(self, value: bytes) -> np.ndarray:
        return np.frombuffer(value, np.int64)[None]

    def decode(self, codes) -> bytes:
        return np.asarray(codes, np.int64).tobytes()


def sizes_of(size: Size) -> dict:
    heads = size.width // 64
    return {
        "vocab_size": size.text + size.codes + 2, "hidden_size": size.width, "num_hidden_layers": size.depth, "intermediate_size": size.mlp,
        "num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": 2048, "tie_word_embeddings": False,
        "pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.1,
    }  # fmt: skip


def theirs(size: Size, family: str = "Llama"):
    """A model of transformers whose head prefers codes."""
    import transformers

    torch.manual_seed(0)
    if family == "Llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes_of(size)))
    else:
        model = transformers.Emu3ForCausalLM(transformers.Emu3TextConfig(**sizes_of(size) | SPECIAL))
    with torch.no_grad():
        model.lm_head.weight[: size.text] = 0
        model.lm_head.weight[-2:] = 0
    return model.eval()


def ours(size: Size, model, rows: bool = False):
    """The same weights as a model of text and codes; with `rows` each row of codes has an end."""
    from mmgpt.decoders.heads import TableHead
    from mmgpt.decoders.transformer import DecoderConfig
    from mmgpt.generate.sampling import GREEDY
    from mmgpt.interop.text import keys
    from mmgpt.layout import CodesLayout, TextLayout
    from mmgpt.model import GPT, Port
    from mmgpt.script import Span

    heads, total = size.width // 64, size.text + size.codes
    config = DecoderConfig(
        size.width, size.depth, heads, heads, 64, size.mlp, position_axes=1, qk_norm="", rope_theta=theta(model), norm_eps=model.config.rms_norm_eps
    )
    text, codes = Span(0, size.text), Span(size.text, total)
    layout = CodesLayout(total, codes, None if rows else total + 1, row_end=total + 1 if rows else None, flat=True)
    ports = {
        "text": Port(str, codec=Ids(), writes=TextLayout(text, None), head=TableHead, grid=(1, 1, 64), sampling=GREEDY),
        "image": Port(bytes, codec=Codes(), writes=layout, head=TableHead, sampling=GREEDY, unconditional=without),
    }
    gpt = GPT(config, ports, total + 2, max_length=2048, tied=False).eval()
    found = model.state_dict()
    gpt.load_state_dict({mine: torch.cat([found[name] for name, _ in parts]) for mine, parts in keys(config, total + 2, False).items()})
    return gpt


def theta(model) -> float:
    config = model.config
    return float((getattr(config, "rope_parameters", None) or {}).get("rope_theta") or getattr(config, "rope_theta", 10_000.0))


def without(parts) -> list:
    """Zeros instead of the words, as Janus has it."""
    from mmgpt.types import Part

    return [Part(" ".join("0" for _ in part.value.split())) for part in parts]


def janus(size: Size, side: int):
    """transformers' Janus with a small tower, and the same weights as a model of ours."""
    import transformers

    from mmgpt.decoders.heads import MLPHead
    from mmgpt.decoders.transformer import DecoderConfig
    from mmgpt.generate.sampling import GREEDY
    from mmgpt.interop.janus import AlignedTable
    from mmgpt.interop.text import keys
    from mmgpt.layout import CodesLayout, TextLayout
    from mmgpt.model import GPT, Port
    from mmgpt.script import Span

    torch.manual_seed(0)
    begin, width = size.text - 1, size.width
    text = sizes_of(size) | {"model_type": "llama", "vocab_size": size.text} | SPECIAL
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4, "image_size": 16, "projection_dim": width}
    vq = {"embed_dim": 8, "num_embeddings": size.codes, "latent_channels": 8, "num_patches": side, "base_channels": 32, "num_res_blocks": 1}
    vq |= {"channel_multiplier": [1, 1, 1], "projection_dim": width, "num_hidden_layers": 2, "image_token_embed_dim": width}
    config = transformers.JanusConfig(
        text_config=text, vision_config=vision | {"depth": 2, "num_image_tokens": side**2}, vq_config=vq, image_token_id=size.text - 2
    )
    model = transformers.JanusForConditionalGeneration(config).eval()
    model.generation_config.generation_kwargs = {"boi_token_id": begin}
    model.generation_config.pad_token_id, model.generation_config.bos_token_id, model.generation_config.eos_token_id = 0, 1, 2
    heads, ids = width // 64, Span(size.text, size.text + size.codes)
    decoder = DecoderConfig(width, size.depth, heads, heads, 64, size.mlp, position_axes=1, qk_norm="", rope_theta=theta(model.model.language_model))
    table = AlignedTable(model.model.generation_embeddings, model.model.generation_aligner)
    ports = {
        "text": Port(str, codec=Ids(), writes=TextLayout(Span(0, size.text), None)),
        "image": Port(
            bytes, codec=Codes(), writes=CodesLayout(begin, ids, flat=True), head=lambda _, ids: MLPHead(ids, width, width),
            table=table, sampling=GREEDY, unconditional=without,
        ),
    }  # fmt: skip
    gpt = GPT(decoder, ports, size.text, max_length=2048, tied=False).eval()
    found = model.state_dict()
    weights = {
        mine: torch.cat([found[name] for name, _ in parts]) for mine, parts in keys(decoder, size.text, False, "model.language_model.").items()
    }
    gpt.load_state_dict(weights, strict=False)
    gpt.heads["image"].hidden.load_state_dict(model.model.generation_head.proj_out.state_dict())
    gpt.heads["image"].out.load_state_dict(model.model.generation_head.vision_head.state_dict())
    return model, gpt


def compiling():
    """How `generate` is told to compile its steps; on a CPU it leaves them alone unless this switch is set."""
    import transformers

    found = transformers.CompileConfig()
    found._compile_all_devices = True
    return found


def prompts_of(size: Size, batch: int) -> torch.Tensor:
    return torch.randint(3, size.text - 2, (batch, PROMPT), generator=torch.Generator().manual_seed(1))


def words(row: torch.Tensor) -> str:
    return " ".join(map(str, row.tolist()))


def timed(calls: dict[str, Callable], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each call, interleaved; the first and mmgpt must return the same. The first round warms up and is not counted."""
    times: dict[str, list[float]] = {}
    with torch.inference_mode():
        for number in range(rounds + 1):
            found = {}
            for who, call in calls.items():
                begin_at = time.perf_counter()
                found[who] = call()
                if device == "cuda":
                    torch.cuda.synchronize()
                if number:
                    times.setdefault(who, []).append(time.perf_counter() - begin_at)
            other = {who: int((codes.cpu() != found["mmgpt"].cpu()).sum()) for who, codes in found.items()}
            first = next(iter(other))
            assert not other[first], f"mmgpt wrote {other[first]} codes otherwise than {first}"
            assert max(other.values()) < 0.05 * found["mmgpt"].numel(), f"codes other than mmgpt's: {other}"
    for who, count in other.items():
        if count:  # two scores as good as equal, which one way of computing rounds this way and another that way
            print(f"  {who} wrote {count} of {found[who].numel()} codes otherwise than mmgpt and {first}", flush=True)
    return {who: statistics.median(seconds) for who, seconds in times.items()}


def report(name: str, batch: int, codes: int, median: dict[str, float], more: str = "") -> None:
    rest = "   ".join(f"{seconds / median['mmgpt']:5.2f} x {who} ({seconds:.3f} s)" for who, seconds in median.items() if who != "mmgpt")
    print(f"{name}  batch {batch}  {codes:4} codes   mmgpt {median['mmgpt']:.3f} s   {rest}   {more}", flush=True)


def codes_of(results, first: int) -> torch.Tensor:
    return torch.stack([torch.from_numpy(result.codes).flatten() + first for result in results])


def plain(name: str, codes: int, batch: int, o: argparse.Namespace) -> None:
    from mmgpt.generate.engine import Engine, Request

    size, side = SIZES[name], int(codes**0.5)
    model = theirs(size)
    gpt, prompts = ours(size, model).to(o.device), prompts_of(size, batch)
    model.to(o.device)
    begin = torch.full((batch, 1), size.text + size.codes)
    asked = {"input_ids": torch.cat([prompts, begin], 1).to(o.device), "max_new_tokens": codes, "do_sample": False}
    asked["attention_mask"] = torch.ones_like(asked["input_ids"])
    requests = [Request([words(row)], "image", guidance=1.0, grid=(1, side, codes // side)) for row in prompts]
    engine = Engine(gpt, compile=not o.eager)
    calls: dict[str, Callable] = {"transformers": lambda: model.generate(**asked)[:, PROMPT + 1 :]}
    if o.static:
        static = asked | {"cache_implementation": "static"}
        calls["static"] = lambda: model.generate(**static, disable_compile=True)[:, PROMPT + 1 :]
        calls["static, compiled"] = lambda: model.generate(**static, compile_config=compiling())[:, PROMPT + 1 :]
    calls["mmgpt"] = lambda: codes_of(engine.run(requests), size.text)
    median = timed(calls, o.rounds, o.device)
    weights = 4 * (sum(p.numel() for p in gpt.decoder.parameters()) + size.width * size.codes)
    held = 4 * 2 * size.width * size.depth * batch * (PROMPT + codes // 2)
    block, first = torch.ones((weights + held) // 4, device=o.device), [replace(request, grid=(1, 1, 1)) for request in requests]
    turns = [
        (seconds(block.sum, o.device), seconds(lambda: engine.run(first), o.device), seconds(lambda: engine.run(requests), o.device))
        for _ in range(15)
    ]
    floor, begun, whole = (statistics.median(times) for times in zip(*turns, strict=True))
    share = floor / ((whole - begun) / (codes - 1))
    report(name, batch, codes, median, f"a step reads at {share:.0%} of the bandwidth ({(weights + held) / floor / 1e9:.0f} GB/s)")


def seconds(call: Callable, device: str) -> float:
    begin_at = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin_at


def guided(name: str, codes: int, batch: int, o: argparse.Namespace) -> None:
    from mmgpt.generate.engine import Engine, Request

    size, side = SIZES[name], int(codes**0.5)
    prompts, total = prompts_of(size, batch), size.text + size.codes
    model = theirs(size, "Emu3")
    engine = Engine(ours(size, model, rows=True), compile=not o.eager)
    requests = [Request([words(row)], "image", guidance=SCALE, grid=(1, side, side)) for row in prompts]
    ids = torch.cat([prompts, torch.full((batch, 1), total)], 1)
    bare = torch.cat([torch.zeros_like(prompts), ids[:, -1:]], 1)
    allowed, row_end = list(range(size.text, total)), [total + 1]
    asked = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "negative_prompt_ids": bare, "guidance_scale": SCALE,
        "negative_prompt_attention_mask": torch.ones_like(ids), "max_new_tokens": side * (side + 1), "do_sample": False,
        "prefix_allowed_tokens_fn": lambda _, row: row_end if (len(row) - PROMPT) % (side + 1) == 0 else allowed,
    }  # fmt: skip
    calls = {
        "Emu3 in transformers": lambda: model.generate(**asked)[:, PROMPT + 1 :].unflatten(1, (side, side + 1))[:, :, :-1].flatten(1),
        "mmgpt": lambda: codes_of(engine.run(requests), size.text),
    }
    report(f"{name} guided", batch, codes, timed(calls, o.rounds, o.device))
    model, gpt = janus(size, side)
    drawing = Engine(gpt, compile=not o.eager)
    ids = torch.cat([prompts, torch.full((batch, 1), size.text - 1)], 1)
    calls = {
        "Janus in transformers": lambda: model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_mode="image", do_sample=False, guidance_scale=SCALE
        ),
        "mmgpt": lambda: codes_of(drawing.run(requests), 0),
    }
    report(f"{name} guided", batch, codes, timed(calls, o.rounds, o.device))


def mixed(name: str, codes: int, o: argparse.Namespace) -> None:
    """As many ids of text as codes, so that every row takes as many steps."""
    from mmgpt.generate.engine import Engine, Request

    size, side = SIZES[name], int(codes**0.5)
    gpt, prompts = ours(size, theirs(size)).to(o.device), prompts_of(size, 8)
    with torch.no_grad():  # so that texts are no row of zeros
        gpt.output.weight[: size.text].normal_(std=0.1, generator=torch.Generator(gpt.device).manual_seed(2))
    sizes = {"text": (1, 1, codes), "image": (1, side, codes // side)}
    requests = [Request([words(row)], to, guidance=1.0, grid=sizes[to]) for row, to in zip(prompts, ["text", "image"] * 4, strict=True)]
    engine = Engine(gpt, compile=not o.eager)
    calls = {
        "one after the other": lambda: codes_of([engine.run([request])[0] for request in requests], 0),
        "mmgpt": lambda: codes_of(engine.run(requests), 0),
    }
    report(f"{name} mixed", 8, codes, timed(calls, o.rounds, o.device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", default=["S", "M"])
    parser.add_argument("--codes", type=int, nargs="+", default=[64])
    parser.add_argument("--batch", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    for flag in ("static", "eager", "guided", "mixed"):
        parser.add_argument(f"--{flag}", action="store_true")
    parser.add_argument("--device", default="cpu")
    o = parser.parse_args()
    for name in o.sizes:
        for codes in o.codes:
            if o.mixed:
                mixed(name, codes, o)
                continue
            for batch in o.batch or ([1, 4] if o.guided else [1, 8]):
                (guided if o.guided else plain)(name, codes, batch, o)


if __name__ == "__main__":
    main()
