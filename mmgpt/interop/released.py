"""A folder or hub id of a released model -> a GPT of ours; and back. One table says which module knows which `model_type`.

No code from a checkpoint runs, and only safetensors are read. A family builds the model without memory and says, for each of our
tensors, which of theirs lie in it one after the other; names and shapes are compared before memory is taken.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from mmgpt.checkpoint import parsed, refuse_foreign, replace_folder, sync_folder
from mmgpt.errors import CheckpointError
from mmgpt.interop.shards import INDEX, Place, joined, places, view
from mmgpt.model import GPT

FAMILIES = dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), "mmgpt.interop.text")  # model_type -> module with `build`
FAMILIES |= {kind: f"mmgpt.interop.{kind}" for kind in ("chameleon", "emu3", "janus")}
TEXTS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja")
TEXTS += ("preprocessor_config.json", "processor_config.json")
MAX_TEXT = 2**28  # bytes of a JSON file
SHARD = 4 * 2**30  # bytes of a file that is written

# our tensor -> (their tensor, its rows), one after the other; rows None: all of it
KeyMap = Mapping[str, Sequence[tuple[str, int | None]]]


@dataclass(frozen=True)
class Released:
    """Where a model came from, and what it takes to write it back: its config, its key map, its small files."""

    model_type: str
    values: dict
    keys: KeyMap
    texts: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()  # endings of their tensors that hold nothing of their own


def load(folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> GPT:
    """The model of a folder in transformers' format; `dtype` None keeps the one that its config names, else that of its first tensor."""
    folder = Path(folder)
    values = config_of(folder)
    texts = {name: text_of(folder / name) for name in TEXTS if (folder / name).is_file()}
    with torch.device("meta"):
        gpt, released = family_of(values, folder).build(values, texts, folder)
    gpt.config = released
    found = places(folder)
    check(gpt, released, found, folder)
    dtype = dtype or named_dtype(values) or next(iter(found.values())).dtype
    fill(gpt, released, found, torch.device(device), dtype)
    return gpt.eval()


def config_of(folder: Path) -> dict:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has neither manifest.json nor config.json: pass the folder of a model")
    return parsed(text_of(folder / "config.json"), f"{folder / 'config.json'}")


def family_of(values: Mapping, folder: Path):
    """The module that knows the family of a config.json, if it asks for no code of its own."""
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        close = get_close_matches(str(kind), FAMILIES, 1)
        hint = f"; the closest is {close[0]}" if close else ""
        if kind == "mmgpt":
            hint = "; this one was saved by the adapter: open it with AutoModelForImageTextToText, and mmgpt.interop.hf.to_native makes it ours"
        raise CheckpointError(f"{folder} is of model_type {kind!r}: known are {', '.join(FAMILIES)}{hint}")
    if values.get("auto_map"):
        raise CheckpointError(
            f"{folder}: config.json asks for code of its own ({', '.join(values['auto_map'])}), and no code from a checkpoint is ever run: "
            "pass the checkpoint that is made for transformers itself"
        )
    if values.get("quantization_config"):
        raise CheckpointError(f"{folder}: its weights are quantised (quantization_config), which is not read: pass the checkpoint before that")
    return import_module(FAMILIES[kind])


def text_of(path: Path) -> str:
    if path.stat().st_size > MAX_TEXT:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes, at most {MAX_TEXT} are read: copy the checkpoint again")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is no text: copy the checkpoint again") from None


def named_dtype(values: dict) -> torch.dtype | None:
    name = values.get("dtype") or values.get("torch_dtype")
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else None


def check(gpt: GPT, released: Released, found: Mapping[str, Place], folder: Path) -> None:
    """Every tensor of ours has its parts, of the right shapes, and nothing is left over."""
    wanted = gpt.state_dict()
    listed = [name for parts in released.keys.values() for name, _ in parts]
    theirs = set(listed)
    assert len(theirs) == len(listed), f"the key map of {released.model_type} names a tensor twice: two of ours would share its memory"
    remedy = "copy the checkpoint again"
    if kinds := [kind for kind in released.values.get("architectures") or [] if not kind.endswith(("ForCausalLM", "ForConditionalGeneration"))]:
        remedy = f"it was saved as a {kinds[0]}, which does not write text; pass one of the class ForCausalLM"
    for name in sorted(theirs - found.keys()):
        raise CheckpointError(f"{folder}: tensor {name} is missing, {len(theirs - found.keys())} in all: {remedy}")
    for name in sorted(n for n in found.keys() - theirs if not n.endswith(released.ignored or "\0")):
        raise CheckpointError(f"{folder}: tensor {name} is not of a {released.model_type} with this config.json: {remedy}")
    if wanted.keys() != released.keys.keys():
        raise AssertionError(f"the key map of {released.model_type} names {sorted(wanted.keys() ^ released.keys.keys())[:3]}")
    for ours, parts in released.keys.items():
        for name, rows in parts:
            shape = tuple(wanted[ours].shape) if rows is None else (rows, *wanted[ours].shape[1:])
            if found[name].shape != shape:
                raise CheckpointError(
                    f"{folder}: tensor {name} has shape {found[name].shape}, config.json asks for {shape}: copy the checkpoint again"
                )
            if wanted[ours].is_floating_point() != found[name].dtype.is_floating_point:
                raise CheckpointError(
                    f"{folder}: tensor {name} is of {found[name].dtype}: quantised weights are not read; pass the checkpoint before that"
                )


def fill(gpt: GPT, released: Released, found: Mapping[str, Place], device: torch.device, dtype: torch.dtype) -> None:
    """Each tensor as it lies in its file, where it can be used so; else takes memory and reads its parts to where they belong."""
    apart = []
    for ours, tensor in list(gpt.state_dict(keep_vars=True).items()):
        home, _, leaf = ours.rpartition(".")
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        if ours.startswith("codecs.") and tensor.is_floating_point():  # rounded, a codec would write other codes
            kind = torch.promote_types(found[released.keys[ours][0][0]].dtype, dtype)
        whole = joined([found[name] for name, _ in released.keys[ours]])
        made = None if whole is None else view(whole, kind, device)
        if made is None:
            made = torch.empty(tensor.shape, dtype=kind, device=device)
            apart += [(found[name], part) for part, name in parts_of(made, released.keys[ours])]
        owner = gpt.get_submodule(home)
        if isinstance(tensor, nn.Parameter):
            setattr(owner, leaf, nn.Parameter(made, tensor.requires_grad))
        else:
            setattr(owner, leaf, made)
    with ThreadPoolExecutor(min(4, torch.get_num_threads())) as pool:  # what takes the time is memory that is used for the first time
        list(pool.map(lambda pair: pair[0].read(pair[1]), apart))
    for module in gpt.modules():
        refresh(module, device)


def parts_of(tensor: Tensor, parts: Sequence[tuple[str, int | None]]) -> list[tuple[Tensor, str]]:
    """Their tensors' stretches of one of ours."""
    if parts[0][1] is None:
        return [(tensor, parts[0][0])]
    return list(zip(tensor.split([rows for _, rows in parts]), (name for name, _ in parts), strict=True))


def refresh(module: nn.Module, device: torch.device) -> None:
    """Buffers of a transformers model that are in no checkpoint, made anew: it knows how, and leaves marked tensors as they are."""
    if not hasattr(module, "_init_weights"):
        return
    for tensor in module.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    for part in module.modules():
        lost = [name for name, buffer in part._buffers.items() if buffer is not None and buffer.is_meta]
        for name in lost:
            part._buffers[name] = torch.empty_like(part._buffers[name], device=device)
        if lost:
            module._init_weights(part)


def export(gpt: GPT, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
    """The model in transformers' format, for the families that were loaded from it: safetensors, config.json, its tokenizer's files."""
    from safetensors.torch import save_file

    folder, released = Path(folder), gpt.config
    if not isinstance(released, Released):
        raise CheckpointError("this model is mmgpt's own and has no format of others: use mmgpt.save")
    if gpt.state_dict().keys() != released.keys.keys():
        raise CheckpointError(
            f"{len(gpt.state_dict())} tensors, a {released.model_type} with this config.json has {len(released.keys)}: "
            "where LoRA stands beside its layers, call mmgpt.interop.compose.merge first"
        )
    refuse_foreign(folder, lambda name: name.endswith(".safetensors") or name in (INDEX, "config.json", *TEXTS), "config.json")
    fresh = folder.with_name(f"{folder.name}.new-{uuid.uuid4().hex[:8]}")
    fresh.mkdir(parents=True)
    try:
        shards = split(theirs(gpt, released, dtype))
        names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)] if len(shards) > 1 else ["model.safetensors"]
        for name, shard in zip(names, shards, strict=True):
            save_file({key: make() for key, (_, make) in shard.items()}, fresh / name, metadata={"format": "pt"})
        if len(shards) > 1:
            where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
            size = sum(bytes for shard in shards for bytes, _ in shard.values())
            (fresh / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": where}, indent=1))
        values = released.values | {"dtype": str(dtype or gpt.table.weight.dtype).removeprefix("torch.")}
        (fresh / "config.json").write_text(json.dumps(values, indent=1))
        for name, text in released.texts.items():
            (fresh / name).write_text(text, encoding="utf-8")
        sync_folder(fresh)
        replace_folder(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def theirs(gpt: GPT, released: Released, dtype: torch.dtype | None) -> dict[str, tuple[int, Callable[[], Tensor]]]:
    """Their tensors: how many bytes each takes, and a function that makes it."""
    ours, found = gpt.state_dict(), {}
    for name, parts in released.keys.items():
        for part, key in parts_of(ours[name], parts):
            kind = dtype if dtype and part.is_floating_point() else part.dtype
            found[key] = (part.numel() * kind.itemsize, partial(copied, part, kind))
    return found


def copied(part: Tensor, dtype: torch.dtype) -> Tensor:
    return part.to("cpu", dtype, copy=True).contiguous()


def split(tensors: Mapping[str, tuple[int, Callable]]) -> list[dict[str, tuple[int, Callable]]]:
    """In order, at most SHARD bytes a file."""
    shards: list[dict] = [{}]
    for name, (size, make) in tensors.items():
        if shards[-1] and sum(s for s, _ in shards[-1].values()) + size > SHARD:
            shards.append({})
        shards[-1][name] = (size, make)
    return shards
