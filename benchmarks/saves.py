"""What a saved state costs: seconds and memory to write and to read it, and how long training stands still for it.

python benchmarks/saves.py [MiB] [folder]      400 MiB of tensors, in a folder that is removed again
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mmgpt.checkpoint import read_folder, write_folder
from mmgpt.train.saves import Saves


def memory(name: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def measured(what: str, act: Callable[[], object]) -> object:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, begun = memory("VmRSS"), time.perf_counter()
    made = act()
    print(f"{what:34}{time.perf_counter() - begun:7.2f} s   {memory('VmHWM') - before:6.0f} MiB more at the peak")
    return made


def main(size: int = 400, folder: str | None = None) -> None:
    tensors = {"weights.safetensors": {f"w{n}": torch.randn(size // 4, 2**18) for n in range(4)}}  # of a quarter each
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path, texts = Path(place), {"run.json": "{}"}
        measured(f"{size} MiB written", lambda: write_folder(path / "one", tensors, texts))
        with Saves(path, 1) as saves:
            measured("saved: until training goes on", lambda: saves.save(1, tensors, texts))
            measured("saved: until it is on the disk", saves.wait)
        del tensors
        kept = measured("read, every byte checked", lambda: read_folder(path / "one"))
        print(f"{sum(t.nbytes for t in kept[0]['weights.safetensors'].values()) / 2**20:.0f} MiB of tensors are kept")


if __name__ == "__main__":
    main(*(int(word) if word.isdecimal() else word for word in sys.argv[1:]))
