"""SmolLM2-135M-Instruct, real weights: 200 greedy ids of five prompts, ours and transformers', id by id; and the seconds both took.

No id ends a text here, so that all five are of full length.

python tools/fetch_parts.py
python benchmarks/same_text.py [FOLDER]     the folder of any text model that both know
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import mmgpt
from mmgpt.generate.engine import Request, run
from mmgpt.generate.sampling import GREEDY

FOLDER = Path("~/.cache/mmgpt/smollm2-135m-instruct").expanduser()
PROMPTS = ("The capital of France is", "Once upon a time", "def fibonacci(n):", "A red apple is", "The three laws of motion are")
LENGTH = 200


def main(folder: str | Path = FOLDER) -> None:
    ours, theirs = mmgpt.load(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    text = ours.ports["text"]
    ours.ports["text"] = replace(text, writes=replace(text.writes, end=None, other_ends=()))
    theirs.generation_config.eos_token_id = None
    begin, same = [] if ours.begin is None else [ours.begin], 0
    for prompt in PROMPTS:
        ids = torch.tensor([[*begin, *ours.ports["text"].codec.encode(prompt).tolist()]])
        start = time.perf_counter()
        wanted = theirs.generate(ids, max_new_tokens=LENGTH, do_sample=False, attention_mask=torch.ones_like(ids))[0, ids.shape[1] :].tolist()
        middle = time.perf_counter()
        found = list(run(ours, [Request([prompt], sampling=GREEDY, grid=(1, 1, LENGTH))])[0].ids)[:LENGTH]
        same += found == wanted
        print(f"{prompt!r}: {len(wanted)} ids, {'the same' if found == wanted else 'NOT the same'}; "
              f"transformers {middle - start:.1f} s, mmgpt {time.perf_counter() - middle:.1f} s", flush=True)  # fmt: skip
    raise SystemExit(same < len(PROMPTS))


if __name__ == "__main__":
    main(*sys.argv[1:])
