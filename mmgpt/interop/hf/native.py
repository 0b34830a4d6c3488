"""A native GPT <-> the adapter's model: the same weights, copied or shared."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int
from PIL.Image import Image, fromarray
from torch import Tensor

from mmgpt.encoders.text import TextCodec
from mmgpt.errors import CheckpointError, InputError
from mmgpt.interop.hf.config import MMGPTConfig
from mmgpt.interop.hf.model import MMGPTForConditionalGeneration
from mmgpt.model import GPT
from mmgpt.native import NativeConfig, build
from mmgpt.types import Part


@torch.no_grad()
def from_native(gpt: GPT) -> MMGPTForConditionalGeneration:
    """A copy of a native model (of `mmgpt.load("emoji")`, of `mmgpt train`) as a model of transformers."""
    if not isinstance(getattr(gpt, "config", None), NativeConfig):
        raise CheckpointError("this model was not built by mmgpt.native: the adapter takes models in mmgpt's own format")
    if gpt.config.audio or gpt.config.video:
        raise CheckpointError(f"a model of {len(gpt.ports)} modalities, {', '.join(gpt.ports)}: the adapter takes those of text and pictures alone")
    model = MMGPTForConditionalGeneration(MMGPTConfig.of(gpt.config)).to(gpt.device, gpt.table.weight.dtype)
    inner = model.model
    rows = inner.get_input_embeddings().weight.zero_()
    rows[: len(gpt.table.weight)] = gpt.table.weight
    rows[model.config.pad_token_id] = 1e-6  # not the placeholder's zeros: where vectors come without ids, places are known by these
    inner.language_model.decoder.load_state_dict(gpt.decoder.state_dict())
    inner.vision_tower.encoder.load_state_dict(gpt.encoders["image"].state_dict())
    inner.codec.load_state_dict(gpt.codecs["image"].state_dict())
    model.generation_config.max_new_tokens = gpt.config.max_text
    return model.eval()


@torch.no_grad()
def to_native(model, text) -> GPT:
    """A copy of what `from_native` makes as a native model, whatever was trained or merged since. `text`: its processor, tokenizer or `TextCodec`."""
    if not isinstance(model, MMGPTForConditionalGeneration) or any("lora_" in name for name, _ in model.named_parameters()):
        raise InputError(f"a {type(model).__name__} is not the adapter's plain model: of a PEFT model pass what its merge_and_unload() gives")
    if not isinstance(text, TextCodec):
        from mmgpt.interop.hf.processor import words_of

        text = words_of(getattr(text, "tokenizer", text))
    shared = view(model)
    gpt = build(model.config.native(), text, shared.codecs["image"].codec).to(shared.device, shared.table.weight.dtype)
    found = {name: value.clone() for name, value in shared.state_dict().items()}
    gpt.load_state_dict(found | {"table.weight": found["table.weight"][: gpt.table.num_embeddings]})
    return gpt.eval()


class WordsAsIds(TextCodec):
    """The codec of words that are ids already: it only knows the empty text, which guidance compares with."""

    def __init__(self):
        self.num_codes = 0

    def encode(self, value: str) -> Int[np.ndarray, "N"]:
        return np.zeros(0, np.int64)


def view(model: MMGPTForConditionalGeneration) -> GPT:
    """The model's own modules as a native GPT that reads codes and pictures; its words are ids already."""
    if not model.config.tie_word_embeddings:
        raise CheckpointError("tie_word_embeddings=False: the native model scores ids with the table that embeds them; train with tied weights")
    inner = model.model
    codec, encoder = inner.codec, inner.vision_tower.encoder
    with torch.device("meta"):
        gpt = build(model.config.native(), WordsAsIds(), codec.codec)
    gpt.table.weight = inner.get_input_embeddings().weight
    gpt.decoder, gpt.encoders["image"] = inner.language_model.decoder, encoder
    gpt.ports["image"] = replace(gpt.ports["image"], encoder=encoder)
    return gpt.train(model.training)


def parts(model: MMGPTForConditionalGeneration, rows: Sequence[Sequence[int]], pixel_values: Tensor | None) -> list[list[Part]]:
    """Rows of ids -> the segments that they write, pictures in their order. What was begun at a row's end is left to be written."""
    pictures = iter(() if pixel_values is None else (picture_of(pixels) for pixels in pixel_values))
    return [list(segments(model, row, pictures)) for row in rows]


def segments(model: MMGPTForConditionalGeneration, ids: Sequence[int], pictures: Iterator[Image]) -> Iterator[Part]:
    config, words = model.config, []
    codes = range(config.first_code_id, config.image_token_id)
    at = 0
    while at < len(ids):
        id, at = ids[at], at + 1
        if id < config.num_text:
            words.append(id)
        if words and (id >= config.num_text or at == len(ids)):
            yield Part("words", codes=np.array(words))
            words = []
        if id == config.begin_image_id and at < len(ids):
            stop = next((n for n in range(at, len(ids)) if ids[n] == config.end_image_id), len(ids))
            inner, at = ids[at:stop], stop + 1
            if inner and inner[0] in codes:
                pixels = model.decode_image_tokens(torch.tensor([list(inner)], device=model.device))
                written = np.array(inner).reshape(config.written_grid) - config.first_code_id
                yield Part(picture_of(pixels[0]), codes=written)
            else:
                picture = next(pictures, None)
                if picture is None:
                    raise InputError("Image features and image tokens do not match: places for more pictures than were passed")
                yield Part(picture)


def picture_of(pixels: Tensor) -> Image:
    """Pixels in [-1, 1] -> a picture."""
    return fromarray(rearrange(((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu(), "c h w -> h w c").numpy())
