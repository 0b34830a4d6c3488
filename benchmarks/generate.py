"""Greedy pictures beside transformers' `generate`: the same random weights, the same codes, interleaved in one process, medians.

python benchmarks/generate.py [S M] [--codes 64 256] [--batch 1 8] [--rounds 5] [--compile]

Rows of the output table that are text are zero, so that both write codes without a constraint; that they write the same ones is checked.
`transformers` is `generate` as people call it; `static` has its static cache, and with --compile its forward pass compiled too.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from train import SIZES, Size

PROMPT = 16


class Ids:
    """Text that is a line of numbers."""

    num_codes = 0

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, codes) -> str:
        return " ".join(map(str, np.asarray(codes).flatten().tolist()))


class Codes:
    """Pictures that are their codes."""

    def encode(self, value: bytes) -> np.ndarray:
        return np.frombuffer(value, np.int64)[None]

    def decode(self, codes) -> bytes:
        return np.asarray(codes, np.int64).tobytes()


def theirs(size: Size):
    """A Llama whose head prefers codes."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=size.text + size.codes + 2, hidden_size=size.width, num_hidden_layers=size.depth, intermediate_size=size.mlp,
        num_attention_heads=size.width // 64, num_key_value_heads=size.width // 64, max_position_embeddings=2048,
        tie_word_embeddings=False, pad_token_id=None, bos_token_id=None, eos_token_id=None, initializer_range=0.1,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight[: size.text] = 0
        model.lm_head.weight[-2:] = 0
    return model


def ours(size: Size, model):
    """The same weights as a model of text and codes."""
    from mmgpt.decoders.heads import TableHead
    from mmgpt.decoders.transformer import DecoderConfig
    from mmgpt.generate.sampling import GREEDY
    from mmgpt.interop.text import keys
    from mmgpt.layout import CodesLayout, Span, TextLayout
    from mmgpt.model import GPT, Port

    heads, total = size.width // 64, size.text + size.codes
    config = DecoderConfig(size.width, size.depth, heads, heads, 64, size.mlp, position_axes=1, qk_norm="")
    text, codes = Span(0, size.text), Span(size.text, total)
    ports = {
        "text": Port(str, codec=Ids(), writes=TextLayout(text, 0, end_given=False), head=TableHead, grid=(1, 1, 64), sampling=GREEDY),
        "image": Port(bytes, codec=Codes(), writes=CodesLayout(total, codes, total + 1, flat=True), head=TableHead, sampling=GREEDY),
    }
    gpt = GPT(config, ports, total + 2, max_length=2048, tied=False).eval()
    found = model.state_dict()
    gpt.load_state_dict({mine: torch.cat([found[name] for name, _ in parts]) for mine, parts in keys(config, total + 2, False).items()})
    return gpt


def compare(name: str, codes: int, batch: int, rounds: int, compiled: bool) -> None:
    from mmgpt.generate.engine import Request, run

    size = SIZES[name]
    model, side = theirs(size), int(codes**0.5)
    gpt, draw = ours(size, model), torch.Generator().manual_seed(1)
    prompts = torch.randint(1, size.text, (batch, PROMPT), generator=draw)
    begin = torch.full((batch, 1), size.text + size.codes)
    asked = {"input_ids": torch.cat([prompts, begin], 1), "max_new_tokens": codes, "do_sample": False}
    asked["attention_mask"] = torch.ones_like(asked["input_ids"])
    requests = [Request([" ".join(map(str, row.tolist()))], "image", guidance=1.0, grid=(1, side, codes // side)) for row in prompts]
    calls = {
        "transformers": lambda: model.generate(**asked)[:, PROMPT + 1 :],
        "static": lambda: model.generate(**asked, cache_implementation="static", disable_compile=not compiled)[:, PROMPT + 1 :],
        "mmgpt": lambda: torch.stack([torch.from_numpy(result.codes).flatten() + size.text for result in run(gpt, requests)]),
    }
    times: dict[str, list[float]] = {}
    with torch.inference_mode():
        for number in range(rounds + 1):
            found = {}
            for who, call in calls.items():
                begin_at = time.perf_counter()
                found[who] = call()
                if number:
                    times.setdefault(who, []).append(time.perf_counter() - begin_at)
            assert all(torch.equal(found["mmgpt"], other) for other in found.values()), {who: ids[:, :8].tolist() for who, ids in found.items()}
    median = {who: statistics.median(seconds) for who, seconds in times.items()}
    rest = "   ".join(f"{median[who] / median['mmgpt']:5.2f} x {who} ({median[who]:.3f} s)" for who in calls if who != "mmgpt")
    print(f"{name}  batch {batch}  {codes:4} codes   mmgpt {median['mmgpt']:.3f} s   {rest}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", default=["S", "M"])
    parser.add_argument("--codes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    for name in arguments.sizes:
        for batch in arguments.batch:
            for codes in arguments.codes:
                compare(name, codes, batch, arguments.rounds, arguments.compile)


if __name__ == "__main__":
    main()
