"""A name, a folder or a hub id -> a model that is ready to use. Shipped checkpoints lie inside the package."""

import re
from pathlib import Path

import torch

from mmgpt.checkpoint import MANIFEST
from mmgpt.errors import CheckpointError
from mmgpt.model import GPT

SHIPPED = Path(__file__).parent / "checkpoints"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
WANTED = ("*.safetensors", "*.json", "*.jinja")  # what is fetched: no code, no pickles


def find(name_or_folder: str | Path) -> Path:
    """The folder of a shipped checkpoint, the folder itself, or a hub's copy of `owner/name`, fetched once."""
    shipped = sorted(p.name for p in SHIPPED.iterdir() if p.is_dir()) if SHIPPED.is_dir() else []
    if str(name_or_folder) in shipped:
        return SHIPPED / str(name_or_folder)
    folder = Path(name_or_folder)
    if not folder.is_dir():
        if isinstance(name_or_folder, str) and HUB_ID.fullmatch(name_or_folder):
            return fetched(name_or_folder)
        raise CheckpointError(
            f"no checkpoint {str(name_or_folder)!r}: pass a folder, a hub id (owner/name), "
            f"or one of the {len(shipped)} shipped ones: {', '.join(shipped)}"
        )
    return folder


def fetched(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(WANTED)))
    except Exception as error:  # its errors have many roots
        reason = str(error).strip().splitlines()
        raise CheckpointError(f"{hub_id!r} is no folder here and could not be fetched ({reason[0] if reason else type(error).__name__})") from None


def load(name_or_folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> GPT:
    """mmgpt.load("emoji"); the folder of a checkpoint that mmgpt wrote, or of a released model in transformers' format; a hub id."""
    folder = find(name_or_folder)
    if (folder / MANIFEST).is_file() or not (folder / "config.json").is_file():
        from mmgpt.native import load as load_native

        gpt = load_native(folder, device)
        return gpt if dtype is None else gpt.to(dtype)
    from mmgpt.interop.released import load as load_released

    return load_released(folder, device, dtype)
