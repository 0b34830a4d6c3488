"""A composed model <-> its folder: config.json says what its parts are, model.safetensors holds all weights. No code of a checkpoint is run."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from mmgpt.checkpoint import load_exactly, parsed, read_folder, write_folder
from mmgpt.decoders.audio_codec import SoundCodec
from mmgpt.decoders.image_codec import PictureCodec
from mmgpt.encoders.text import TextCodec
from mmgpt.errors import CheckpointError, InputError
from mmgpt.interop.compose import PARTS, Composed, Policy, assembled
from mmgpt.interop.parts import ImageTower, WhisperTower
from mmgpt.interop.pictures import VQPictures
from mmgpt.interop.released import TEXTS, Released, family_of, refresh
from mmgpt.interop.sounds import SoundCodes
from mmgpt.model import GPT, Codec
from mmgpt.native import NativeConfig, codecs_of, config_from
from mmgpt.native import build as build_native

# kind of a part -> the class that says its `facts` (what it is built of, without weights) and builds it again `of` them
KINDS = {
    "image tower": ImageTower,
    "whisper tower": WhisperTower,
    "picture codec": PictureCodec,
    "vq codec": VQPictures,
    "sound codec": SoundCodec,
    "sound codes": SoundCodes,
}
GIVEN = "given"  # a part that only its maker can build


def facts_of(part: nn.Module | Codec) -> dict:
    for kind, known in KINDS.items():
        facts = part.facts() if type(part) is known else None
        if facts is not None:
            return json.loads(json.dumps({"kind": kind, **facts}))
    return {"kind": GIVEN, "type": type(part).__name__}


def save(gpt: GPT, folder: str | Path, dtype: torch.dtype | None = None, card: str = "") -> Path:
    """All weights (in `dtype` where given), LoRA's too where they are not merged, and what it takes to build the model again."""
    kept = ("codecs.",)  # rounded, they would write other codes
    tensors = {name: t.to(dtype) if dtype and t.is_floating_point() and not name.startswith(kept) else t for name, t in gpt.state_dict().items()}
    texts = {"config.json": json.dumps(described(gpt.config), indent=1), **texts_of(gpt.config, gpt)}
    return write_folder(folder, {"model.safetensors": tensors}, texts | ({"README.md": card} if card else {}))


def described(config: NativeConfig | Released | Composed | None) -> dict:
    if isinstance(config, Released):
        return {"kind": "released", "values": config.values}
    if isinstance(config, NativeConfig):
        return {"kind": "native", **asdict(config)}
    if not isinstance(config, Composed):
        raise CheckpointError("the decoder's own model was built by hand, so that no settings say how to build it again: keep gpt.state_dict()")
    about = {
        "parts": config.parts,
        "image_grid": config.image_grid,
        "audio_grid": config.audio_grid,
        "policy": {name: asdict(p) for name, p in config.policy.items()},
    }
    return {"kind": "composed", "decoder": described(config.decoder), **about, "left_out": config.left_out}


def texts_of(config: NativeConfig | Released | Composed, gpt: GPT) -> Mapping[str, str]:
    """The small files of the decoder's own model, its tokenizer above all."""
    if isinstance(config, Composed):
        return texts_of(config.decoder, gpt)
    return config.texts if isinstance(config, Released) else {"tokenizer.json": gpt.ports["text"].codec.text()}


def load(folder: str | Path, device: torch.device | str = "cpu", parts: Mapping[str, nn.Module | Codec] | None = None) -> GPT:
    """A composed model from its folder, every byte checked; `parts` are those that only their maker can build, by name."""
    tensors, texts = read_folder(folder)
    values, parts = parsed(texts.get("config.json", "{}"), f"{folder}: config.json"), dict(parts or {})
    try:
        with torch.device("meta"):
            gpt = built(values, texts, Path(folder), parts)
    except (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: config.json does not fit ({error}): it is of another version of mmgpt") from None
    if parts:
        raise InputError(f"{folder} has no part {sorted(parts)[0]!r} that was left to be given: leave it out")
    load_exactly(gpt, tensors.get("model.safetensors", {}), folder, assign=True)
    for module in gpt.modules():
        refresh(module, torch.device("cpu"))
    lost = [name for name, t in chain(gpt.named_parameters(), gpt.named_buffers()) if t.is_meta]
    assert not lost, f"{lost} are in no file and were not made anew"
    return gpt.to(device).eval()


def built(values: Mapping, texts: Mapping[str, str], folder: Path, given: dict) -> GPT:
    """The model without its weights. What is taken from `given` is taken out of it."""
    kind = values["kind"]
    if kind == "released":
        small = {name: text for name, text in texts.items() if name in TEXTS}
        gpt, released = family_of(values["values"], folder).build(values["values"], small, folder)
        gpt.config = released
        return gpt
    if kind == "native":
        config = config_from(values, folder)
        with torch.device("cpu"):  # it holds tensors that are in no file
            codecs = codecs_of(config)
        return build_native(config, TextCodec.from_text(texts["tokenizer.json"]), *codecs)
    if kind != "composed":
        raise CheckpointError(f"{folder}: a decoder of kind {kind!r}: known are native, released, composed")
    gpt = built(values["decoder"], texts, folder, given)
    image_grid, audio_grid = (tuple(grid) if (grid := values.get(name)) else None for name in ("image_grid", "audio_grid"))
    policy = {name: Policy(**p) for name, p in values["policy"].items()}
    config = Composed(gpt.config, values["parts"], image_grid, policy, values["left_out"], audio_grid)
    return assembled(gpt, {name: part_of(name, facts, folder, given) for name, facts in config.parts.items()}, config)


def part_of(name: str, facts: Mapping, folder: Path, given: dict) -> nn.Module | Codec:
    kind, settings = facts["kind"], {key: value for key, value in facts.items() if key != "kind"}
    if kind == GIVEN and name in given:
        return given.pop(name)
    if kind == GIVEN:
        raise CheckpointError(
            f"{folder}: its {name} was a {facts['type']} of its maker's own, which no folder can hold: "
            f"build it again and pass mmgpt.load({str(folder)!r}, parts={{{name!r}: it}})"
        )
    if kind not in KINDS or name not in PARTS:
        raise CheckpointError(f"{folder}: {name} of kind {kind!r}: known are {', '.join(PARTS)} of {', '.join(KINDS)}")
    return KINDS[kind].of(settings, folder)
