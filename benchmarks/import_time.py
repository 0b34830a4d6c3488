"""What `import mmgpt` costs over `import torch`: fresh processes, A and B in turn, medians.

python benchmarks/import_time.py [repeats]
"""

import statistics
import subprocess
import sys

CODE = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
CASES = {
    "torch": "import torch",
    "torch, mmgpt": "import torch, mmgpt",
    "torch, mmgpt.load": "import torch, mmgpt; mmgpt.load",
    "torch, torchvision": "import torch, torchvision",
}


def seconds(statement: str) -> float:
    return float(subprocess.run([sys.executable, "-c", CODE.format(statement)], capture_output=True, text=True, check=True).stdout)


def main(repeats: int = 7) -> None:
    times = {name: [] for name in CASES}
    for _ in range(repeats + 1):  # the first round warms the disk
        for name, statement in CASES.items():
            times[name].append(seconds(statement))
    base = statistics.median(times["torch"][1:])
    for name, values in times.items():
        median = statistics.median(values[1:])
        print(f"{name:20} {median:6.2f} s   over torch {median - base:+.3f} s")


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]))
