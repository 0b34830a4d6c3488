"""A name or a folder -> a model that is ready to use. Shipped checkpoints lie inside the package."""

from pathlib import Path

import torch

from mmgpt.errors import CheckpointError
from mmgpt.model import GPT
from mmgpt.native import load as load_native

SHIPPED = Path(__file__).parent / "checkpoints"


def find(name_or_folder: str | Path) -> Path:
    """The folder of a shipped checkpoint, or the folder itself."""
    shipped = sorted(p.name for p in SHIPPED.iterdir() if p.is_dir()) if SHIPPED.is_dir() else []
    if str(name_or_folder) in shipped:
        return SHIPPED / str(name_or_folder)
    folder = Path(name_or_folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"no checkpoint {str(name_or_folder)!r}: pass a folder, or one of the {len(shipped)} shipped ones: {', '.join(shipped)}"
        )
    return folder


def load(name_or_folder: str | Path, device: torch.device | str = "cpu") -> GPT:
    """mmgpt.load("emoji"), or the folder of a checkpoint that mmgpt wrote."""
    return load_native(find(name_or_folder), device)
