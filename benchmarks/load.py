"""Time and memory to load a Llama-shaped folder of about a billion bf16 weights: mmgpt beside transformers, interleaved, medians.

python benchmarks/load.py [ROUNDS] [FOLDER]     the folder is made (2.2 GB) where it does not exist
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SIZES = {"vocab_size": 32_000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32}
SIZES |= {"num_key_value_heads": 4, "max_position_embeddings": 2048}

# Libraries and the family's module are imported before, by both. Every weight is read once after loading, so that memory that is only
# promised counts too. "again": a second load in the same process, without what the first one has to set up.
CHILD = """
import sys, time, json, torch
kind, folder = sys.argv[1:]
torch.set_num_threads(2)
def held(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 2**20
if kind == "mmgpt":
    import mmgpt.interop.text, transformers.models.llama.configuration_llama, tokenizers
    from mmgpt.interop.released import load
else:
    from transformers import AutoModelForCausalLM, LlamaForCausalLM
def loaded():
    begin = time.perf_counter()
    model = load(folder) if kind == "mmgpt" else AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    seconds = time.perf_counter() - begin
    total = sum(float(p.detach().view(torch.int16)[..., ::512].sum()) for p in model.parameters())
    return seconds, time.perf_counter() - begin
before = held("VmRSS")
seconds, touched = loaded()
peak = held("VmHWM") - before
print(json.dumps({"seconds": seconds, "touched": touched, "peak": peak, "again": loaded()[0]}))
"""


def make(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(**SIZES, dtype="bfloat16")
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in AutoModelForCausalLM.from_config(config).state_dict().items()}
    folder.mkdir(parents=True)
    save_file({name: torch.rand(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}, folder / "model.safetensors", {"format": "pt"})
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(Tokenizer(models.BPE({"a": 0}, [])).to_str())


def main(rounds: int = 3, folder: str = "") -> None:
    path = Path(folder or tempfile.gettempdir()) / "llama-1b"
    if not path.exists():
        make(path)
    size = sum(file.stat().st_size for file in path.glob("*.safetensors")) / 2**30
    found: dict[str, list[dict]] = {"mmgpt": [], "transformers": []}
    for number in range(rounds + 1):  # the first warms the file cache
        for kind in found:
            out = subprocess.run([sys.executable, "-c", CHILD, kind, str(path)], capture_output=True, text=True, check=True, env=os.environ)
            if number:
                found[kind].append(json.loads(out.stdout.splitlines()[-1]))
    print(f"{size:.2f} GiB of weights, median of {rounds}")
    for kind, runs in found.items():
        median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        print(
            f"{kind:13} {median['seconds']:6.3f} s to load, {median['touched']:6.3f} s until every weight was read, peak {median['peak']:.3f} GiB; "
            f"{median['again']:6.3f} s to load again"
        )


if __name__ == "__main__":
    main(*(int(a) if a.isdigit() else a for a in sys.argv[1:]))
