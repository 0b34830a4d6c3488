"""Finished models of one shape -> one model of their mean weights, which often reads what is new better than each of them.

python tools/average.py runs/a/final runs/b/final runs/mean [--shares 0.5,0.5]

Runs must have begun from the same weights (Wortsman et al., 2022, Model soups, arXiv:2203.05482). Settings and codes of pictures are the first's.
"""

import argparse
from pathlib import Path

import torch

from mmgpt.checkpoint import read_folder, write_folder
from mmgpt.errors import CheckpointError


def averaged(folders: list[Path], shares: list[float]) -> tuple[dict, dict]:
    """(tensors, texts) of the mean, for `write_folder`. What is no number with a fraction is the first's."""
    read = [read_folder(folder) for folder in folders]
    tensors, texts = read[0]
    for folder, (others, said) in zip(folders, read, strict=True):
        shapes = [{(file, name): t.shape for file, named in found.items() for name, t in named.items()} for found in (tensors, others)]
        if shapes[0] != shapes[1] or said["config.json"] != texts["config.json"]:
            raise CheckpointError(f"{folder} is another model than {folders[0]}: average finished models of runs from the same weights")
        if any(t.dtype == torch.int8 for named in others.values() for t in named.values()):
            raise CheckpointError(f"{folder} holds weights of 8 bits, in steps of their own: average models before they are rounded")
    mean = {}
    for file, named in tensors.items():
        mean[file] = {}
        for name, tensor in named.items():
            floats = tensor.is_floating_point()
            total = sum(share * found[file][name].double() for share, (found, _) in zip(shares, read, strict=True)) if floats else tensor
            mean[file][name] = total.to(tensor.dtype)
    return mean, texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="at least two folders of finished models, then the folder to write")
    parser.add_argument("--shares", help="of each, for example 0.3,0.7; equal if left out")
    arguments = parser.parse_args()
    *folders, target = arguments.models
    shares = [float(word) for word in arguments.shares.split(",")] if arguments.shares else [1 / len(folders)] * len(folders)
    if len(folders) < 2 or len(shares) != len(folders) or abs(sum(shares) - 1) > 1e-6:
        parser.error(f"{len(folders)} models and shares {shares}: pass two models or more, and a share of each that add up to 1")
    with torch.no_grad():
        print(write_folder(target, *averaged(folders, shares)))


if __name__ == "__main__":
    main()
