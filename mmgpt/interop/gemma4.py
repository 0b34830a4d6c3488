"""The folder of a Gemma 4 unified model -> its two ports that need no tower: raw patches of pictures and raw frames of sound to vectors.

Its decoder is not ours: the ports go into a model of any decoder of the same width.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from mmgpt.checkpoint import parsed
from mmgpt.encoders.audio import frames
from mmgpt.encoders.image import opaque
from mmgpt.errors import CheckpointError, InputError
from mmgpt.interop.pictures import processor_of
from mmgpt.interop.released import TEXTS, text_of
from mmgpt.interop.shards import places
from mmgpt.types import Audio, Prepared


class Gemma4Pictures(nn.Module):
    """Patches of 48 x 48 raw pixels, a linear map between norms, factorised positions; any size and aspect ratio."""

    def __init__(self, embedder: nn.Module, processor):
        super().__init__()
        self.embedder, self.processor = embedder, processor

    def prepare(self, value: Image.Image, /) -> Prepared:
        found = self.processor(images=opaque(value), return_tensors="pt")
        column_row_N2 = found["image_position_ids"][0]
        keep = (column_row_N2 >= 0).all(-1)
        place = torch.cat([torch.zeros(int(keep.sum()), 1, dtype=torch.long), column_row_N2[keep].flip(-1).long()], -1)
        rows, columns = (int(n) + 1 for n in place[:, 1:].amax(0))
        return Prepared(found["pixel_values"][0][keep], place, ((1, rows, columns),))

    def forward(self, prepared: Prepared, /) -> Float[Tensor, "N D"]:
        return self.embedder(prepared.values_NF[None], prepared.place_N3[None, :, 1:].flip(-1), return_dict=True).pooler_output[0]


class Gemma4Sound(nn.Module):
    """Frames of 640 raw samples at 16 kHz, normed and mapped."""

    def __init__(self, embedder: nn.Module, max_seconds: float = 30.0):
        super().__init__()
        self.embedder, self.max_seconds = embedder, max_seconds

    def prepare(self, value: Audio, /) -> Prepared:
        return frames(value, self.max_seconds)

    def forward(self, prepared: Prepared, /) -> Float[Tensor, "N D"]:
        return self.embedder(prepared.values_NF)


def ports(folder: str | Path, dtype: torch.dtype = torch.float32) -> tuple[Gemma4Pictures, Gemma4Sound]:
    """(pictures, sound) with the folder's weights. transformers >= 5.20 knows this model."""
    try:
        from transformers.models.gemma4_unified import configuration_gemma4_unified as configs
        from transformers.models.gemma4_unified import modeling_gemma4_unified as theirs
        from transformers.models.gemma4_unified.image_processing_gemma4_unified import Gemma4UnifiedImageProcessor
    except ImportError:
        raise InputError("the installed transformers does not know gemma4_unified: install a newer one") from None
    folder = Path(folder)
    values = parsed(text_of(folder / "config.json"), f"{folder / 'config.json'}")
    if values.get("model_type") != "gemma4_unified":
        raise CheckpointError(f"{folder} is of model_type {values.get('model_type')!r}: this reads gemma4_unified")
    config = configs.Gemma4UnifiedConfig(**{k: v for k, v in values.items() if k != "model_type"})
    texts = {name: text_of(folder / name) for name in TEXTS if (folder / name).is_file()}
    pictures = theirs.Gemma4UnifiedVisionEmbedder(config.vision_config, config.text_config).to(dtype)
    sound = theirs.Gemma4UnifiedMultimodalEmbedder(config.audio_config, config.text_config).to(dtype)
    found = places(folder)
    for ours, module in (("vision", pictures), ("audio", sound)):
        for name, tensor in module.state_dict().items():
            key = f"model.embed_{ours}.{name.removeprefix('multimodal_embedder.')}"
            if ours == "vision" and not name.startswith("multimodal_embedder."):
                key = f"model.vision_embedder.{name}"
            there = found[key].shape if key in found else "missing"
            if there != tuple(tensor.shape):
                raise CheckpointError(f"{folder}: tensor {key} is {there}, config.json asks for {tuple(tensor.shape)}")
            found[key].read(tensor)
    return Gemma4Pictures(pictures.eval(), processor_of(texts, Gemma4UnifiedImageProcessor, folder)), Gemma4Sound(sound.eval())
