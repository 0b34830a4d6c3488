"""A name, a folder or a hub id -> a model that is ready to use; and any model -> a folder. Shipped checkpoints lie inside the package."""

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from mmgpt.checkpoint import MANIFEST, checked, parsed, read_manifest
from mmgpt.errors import CheckpointError, InputError
from mmgpt.model import GPT, Codec

SHIPPED = Path(__file__).parent / "checkpoints"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
KINDS = {"native": "mmgpt.native", "composed": "mmgpt.interop.composed"}  # kind in config.json -> module that saves and loads it
WANTED = ("*.safetensors", "*.json", "*.jinja")  # what is fetched: no code, no pickles


def find(name_or_folder: str | Path) -> Path:
    """The folder of a shipped checkpoint, the folder itself, or a hub's copy of `owner/name`, fetched once."""
    shipped = sorted(p.name for p in SHIPPED.iterdir() if p.is_dir()) if SHIPPED.is_dir() else []
    if str(name_or_folder) in shipped:
        return SHIPPED / str(name_or_folder)
    if not isinstance(name_or_folder, (str, Path)):
        raise InputError(f"a checkpoint of type {type(name_or_folder).__name__}: pass its name, folder or hub id")
    folder = Path(name_or_folder).expanduser()
    if folder.is_dir():
        if (folder / "log.jsonl").is_file() and not (folder / "config.json").exists():
            ready = (folder / "final").is_dir()
            hint = f"pass {folder / 'final'}" if ready else "its model is not finished; resume=true goes on"
            raise CheckpointError(f"{folder} is the folder of a run, not of a model: {hint}")
    else:
        local = folder.parent.is_dir() and folder.parent != Path(".")  # runs/mine is no hub id where there is a folder runs
        if isinstance(name_or_folder, str) and HUB_ID.fullmatch(name_or_folder) and not local:
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


def load(
    name_or_folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    parts: Mapping[str, nn.Module | Codec] | None = None,
) -> GPT:
    """mmgpt.load("emoji"); the folder of a checkpoint that mmgpt wrote, or of a released model in transformers' format; a hub id.

    `parts` are those of a composed model that no folder can hold, by name: {"image_in": tower}.
    """
    device, dtype = device_of(device), dtype_of(dtype)
    folder = find(name_or_folder)
    if not any((folder / name).is_file() for name in (MANIFEST, "config.json")):
        adapter = (folder / "adapter_config.json").is_file()
        hint = "it holds an adapter alone: merge it into its model with peft, and save that" if adapter else "pass the folder of a model"
        raise CheckpointError(f"{folder} has neither manifest.json, as what mmgpt wrote, nor config.json, as released models have: {hint}")
    if (folder / MANIFEST).is_file():
        kind = kind_of(folder)
        if parts and kind != "composed":
            raise InputError(f"{len(parts)} parts for {folder}, a checkpoint of kind {kind!r}: only a composed one takes them; leave parts out")
        gpt = import_module(KINDS[kind]).load(folder, device, **({"parts": parts} if parts else {}))
        if dtype is not None:
            gpt.to(dtype).codecs.float()  # codecs stay exact: rounded, they would be other codes
        return gpt
    if parts:
        raise InputError(f"{len(parts)} parts for {folder}, a released model: only a composed one takes them; leave parts out")
    from mmgpt.interop.released import load as load_released

    return load_released(folder, device, dtype)


def device_of(device: torch.device | str) -> torch.device:
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f'device={device!r}: use "cpu", "cuda" or "cuda:1"') from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device={device!r}: this machine shows {torch.cuda.device_count()} CUDA devices to torch; leave device out")
    return found


def dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found is not None and not (isinstance(found, torch.dtype) and found.is_floating_point) or (found is None and dtype is not None):
        raise InputError(f"dtype={dtype!r}: use torch.float32, torch.bfloat16 or torch.float16")
    return found


def kind_of(folder: Path) -> str:
    """Of a checkpoint that mmgpt wrote: what its config.json says."""
    facts = read_manifest(folder)["files"].get("config.json")
    if facts is None:
        raise CheckpointError(f"{folder} has no config.json: it is no model; pass the folder of a finished model")
    kind = parsed(bytes(checked(folder / "config.json", facts)).decode(errors="replace"), f"{folder}: config.json").get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise CheckpointError(f"{folder} is a checkpoint of kind {kind!r}: known are {', '.join(KINDS)}; it may be of a newer version of mmgpt")
    return kind


def save(gpt: GPT, folder: str | Path, dtype: torch.dtype | str | None = None) -> Path:
    """Any model as a folder that `load` opens again, weights in `dtype` where given; released models in transformers' format."""
    from mmgpt.interop.compose import Composed
    from mmgpt.interop.composed import save as save_composed
    from mmgpt.interop.released import Released, export
    from mmgpt.native import NativeConfig
    from mmgpt.native import save as save_native

    config, dtype = getattr(gpt, "config", None), dtype_of(dtype)
    for kind, write in ((NativeConfig, save_native), (Composed, save_composed), (Released, export)):
        if isinstance(config, kind):
            return write(gpt, folder, dtype=dtype)
    raise CheckpointError("this model was built by hand, so that no settings say how to build it again: keep gpt.state_dict() and the program")
