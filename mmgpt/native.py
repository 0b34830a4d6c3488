"""Settings -> a whole model in our own format: text and pictures, read and written by one decoder; and its checkpoint folder.

ids     text ids, END | BEGIN, picture begin, picture end | picture codes
text    ids END
picture, read      begin  patches  end     (the patches read each other)
picture, written   begin  codes    end     (causal, in reading order)
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmgpt.checkpoint import load_exactly, match, parsed, read_folder, write_folder
from mmgpt.decoders.image_codec import ImageCodec, ImageCodecConfig, PictureCodec
from mmgpt.decoders.transformer import DecoderConfig
from mmgpt.encoders.image import TOWERS, square_encoder
from mmgpt.encoders.text import TextCodec
from mmgpt.errors import CheckpointError, InputError, MmgptError
from mmgpt.generate.sampling import Sampling
from mmgpt.layout import CodesLayout, Span, TextLayout, VectorsLayout
from mmgpt.model import GPT, Port
from mmgpt.tensorfile import AGAIN

MAX_SIDE = 4096  # pixels of a picture's side, as much as any picture may have that is opened


@dataclass(frozen=True)
class NativeConfig:
    """All that shapes a model. `picture` is the side in pixels of what is drawn, and to which pictures are resized to be read."""

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    codec: ImageCodecConfig = field(default_factory=ImageCodecConfig)
    num_text: int = 2048
    picture: int = 64
    patch: int = 8
    patch_hidden: int = 0
    conv_stem: int = 0  # above 0: patches are read through a convolutional network of so many channels at half size
    max_length: int = 1024
    max_text: int = 64  # ids of an answer, where the caller names no limit
    guidance: float = 3.0  # of pictures, and how their codes are drawn
    temperature: float = 1.0
    min_p: float = 0.0
    left_out: str = ""  # the artist that the model was trained without, so that an evaluation can refuse another
    tower: str = ""  # "efficientnet-lite0": patches are seen by it, instead of by what patch_hidden and conv_stem say
    turns: int = 0  # of a conversation that the model has learned to look back on

    def __post_init__(self):
        sides = (self.patch, *self.codec.stride)
        if not 1 <= self.picture <= MAX_SIDE or min(self.max_length, self.max_text) < 1:
            raise InputError(
                f"picture={self.picture}, max_length={self.max_length}, max_text={self.max_text}: use 1 to {MAX_SIDE} pixels, lengths of at least 1"
            )
        if any(side < 1 or self.picture % side for side in sides):
            raise InputError(
                f"pictures of {self.picture} pixels in patches of {self.patch} and codes of {self.codec.stride}: use sides that divide them"
            )
        if self.tower and self.tower not in TOWERS:
            raise InputError(f"tower={self.tower!r}: known are {', '.join(TOWERS)}, and nothing")
        if self.decoder.position_axes != 3:
            raise InputError(f"position_axes={self.decoder.position_axes}: written pictures need 3, or their codes share one position")


class Ids:
    """Hands out neighbouring ids."""

    def __init__(self):
        self.used = 0

    def take(self, count: int = 1) -> Span:
        self.used += count
        return Span(self.used - count, self.used)


def build(config: NativeConfig, text: TextCodec, codec: ImageCodec) -> GPT:
    if text.num_codes > config.num_text or codec.config != config.codec:
        raise InputError(
            f"{text.num_codes} text ids for num_text={config.num_text}, {codec.config} for {config.codec}: use the codecs of this config"
        )
    ids = Ids()
    words = ids.take(config.num_text + 1)  # END is the last of them: a head that writes text also ends it
    begin, open_picture, close_picture = (ids.take().start for _ in range(3))
    codes = ids.take(config.codec.num_codes)
    rows, columns = (config.picture // stride for stride in config.codec.stride)
    ports = {
        "text": Port(str, codec=text, writes=TextLayout(words, words.stop - 1), grid=(1, 1, config.max_text)),
        "image": Port(
            kind_of_pictures(),
            square_encoder(config.decoder.width, config.patch, config.picture, config.patch_hidden, config.conv_stem, config.tower),
            VectorsLayout(open_picture, close_picture),
            PictureCodec(codec, config.picture),
            CodesLayout(open_picture, codes, close_picture),
            (1, rows, columns),
            sampling=Sampling(config.temperature, min_p=config.min_p),
            guidance=config.guidance,
        ),
    }
    model = GPT(config.decoder, ports, ids.used, begin, config.max_length)
    model.config = config
    return model


def build_from(model: GPT, config: NativeConfig) -> GPT:
    """A model of another config with all weights that both have: what the config adds is new."""
    made = build(config, model.ports["text"].codec, model.codecs["image"].codec)
    known = made.state_dict()
    made.load_state_dict({name: t for name, t in model.state_dict().items() if name in known and known[name].shape == t.shape}, strict=False)
    return made


def kind_of_pictures() -> type:
    from PIL.Image import Image

    return Image


def save(model: GPT, folder: str | Path, weights: dict[str, Tensor] | None = None, card: str = "", dtype: torch.dtype | None = None) -> Path:
    """The model as a checkpoint folder: weights (in `dtype` where given), codec, tokenizer, settings, model card."""
    kept = {**model.state_dict(), **(weights or {})}
    kept = {name: t.to(dtype) if dtype and t.is_floating_point() else t for name, t in kept.items()}
    tensors = {"model.safetensors": kept}
    texts = {"config.json": json.dumps({"kind": "native", **asdict(model.config)}, indent=1), "tokenizer.json": model.ports["text"].codec.text()}
    return write_folder(folder, tensors, texts | ({"README.md": card} if card else {}))


def load(folder: str | Path, device: torch.device | str = "cpu") -> GPT:
    """A model from its folder. Nothing is used, nor memory taken, before its hash, its names and its shapes were found right."""
    tensors, texts = read_folder(folder)
    for name in ("config.json", "tokenizer.json"):
        if name not in texts:
            raise CheckpointError(f"{folder} has no {name}: it is no model; pass the folder of a finished model")
    config = config_from(parsed(texts["config.json"], f"{folder}: config.json"), folder)
    text, found = TextCodec.from_text(texts["tokenizer.json"]), tensors.get("model.safetensors", {})
    fit(config, text, found, folder)
    model = build(config, text, ImageCodec(config.codec))
    load_exactly(model, found, folder)
    return model.to(device).eval()


def fit(config: NativeConfig, text: TextCodec, found: Mapping[str, Tensor], folder: str | Path) -> None:
    """Compares the file with a model without memory: whatever sizes a config names, none are taken that the file does not hold."""
    try:
        rows = found["table.weight"].shape[0] if "table.weight" in found else 0
        if max(config.decoder.depth, config.codec.blocks) > len(found) or config.codec.num_codes > rows:  # each has weights of its own
            raise CheckpointError(
                f"{folder}: {len(found)} tensors and {rows} ids for a depth of {config.decoder.depth}, {config.codec.blocks} blocks of a codec "
                f"and {config.codec.num_codes} codes: {AGAIN}"
            )
        with torch.device("meta"):
            match(build(config, text, ImageCodec(config.codec)).state_dict(), found, folder)
    except MmgptError:
        raise
    except (TypeError, ValueError, ArithmeticError, AttributeError, IndexError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{folder}: config.json describes no model ({reason}): {AGAIN}") from None


def config_from(values: dict, folder: str | Path) -> NativeConfig:
    values = dict(values)
    kind = values.pop("kind", None)
    if kind != "native":
        raise CheckpointError(f"{folder} is a checkpoint of kind {kind!r}: known is 'native'")
    unknown = sorted(set(values) - {f.name for f in fields(NativeConfig)})
    if unknown or not {"decoder", "codec"} <= set(values):
        raise CheckpointError(f"{folder}: config.json has unknown fields {unknown} or lacks decoder or codec: it is of a newer version of mmgpt")
    try:
        decoder, codec = ({k: tuple(v) if isinstance(v, list) else v for k, v in values.pop(part).items()} for part in ("decoder", "codec"))
        if isinstance(decoder.get("qk_norm"), bool):  # as it was written before there were several
            decoder["qk_norm"] = "rms" if decoder["qk_norm"] else ""
        return of_kind(NativeConfig, values | {"decoder": of_kind(DecoderConfig, decoder), "codec": of_kind(ImageCodecConfig, codec)})
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{folder}: config.json does not fit ({error}): it is of another version of mmgpt") from None


def of_kind(kind: type, values: dict) -> Any:
    """A config of JSON's values, each of the type that its field has where nothing is said; TypeError where one is not."""
    for f in fields(kind):
        value, default = values.get(f.name), f.default
        if f.name not in values or default is MISSING:
            continue
        numbers = isinstance(default, tuple) and isinstance(value, tuple) and all(type(v) in (int, float) for v in value)
        if not numbers and type(value) is not type(default) and (type(value), type(default)) != (int, float):
            raise TypeError(f"{f.name} is {value!r}, not of type {type(default).__name__}")
    return kind(**values)
