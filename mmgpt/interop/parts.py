"""Pretrained towers of transformers, by folder or hub id -> encoders in our contract, to be mixed by `compose`.

Only safetensors are read, and no code but transformers' own runs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from mmgpt.encoders.audio import RATE, line, mono
from mmgpt.encoders.image import opaque
from mmgpt.encoders.places import on_grid
from mmgpt.errors import CheckpointError, InputError
from mmgpt.interop.pictures import plain, processor_again
from mmgpt.interop.text import config_class
from mmgpt.types import Audio, Prepared

IMAGE_TOWERS = {"siglip": "SiglipVisionModel", "siglip_vision_model": "SiglipVisionModel"}  # SigLIP 2 of one size is of this kind too
IMAGE_TOWERS |= {"clip": "CLIPVisionModel", "clip_vision_model": "CLIPVisionModel", "dinov2": "Dinov2Model"}
SILENCE, DEEPEST = -1.5, 2.0  # Whisper's log-mel values: those of no sound, and how far the lowest of a clip lie below its highest
LOCAL = {"use_safetensors": True, "trust_remote_code": False}


def model_of(folder: str | Path, known: dict[str, str], what: str) -> nn.Module:
    """transformers' model of a known kind, in evaluation mode."""
    import transformers

    try:
        kind = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
        if kind in known:
            return getattr(transformers, known[kind]).from_pretrained(folder, **LOCAL).eval()
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} cannot be read as {what} ({str(error).splitlines()[0]})") from None
    raise CheckpointError(f"{folder} is a {kind}, no {what} that is known: {', '.join(sorted(known))}")


def model_again(values: Mapping, known: dict[str, str], what: str, place: Path) -> nn.Module:
    """transformers' model of a known kind by its config, without the weights that it had."""
    import transformers

    if values.get("model_type") not in known:
        raise CheckpointError(f"{place}: {what} of model_type {values.get('model_type')!r}: known are {', '.join(sorted(known))}")
    return getattr(transformers, known[values["model_type"]])(config_class(values, place)).eval()


def side_of(processor) -> int:
    """How large the pictures are that a processor makes; square ones alone are read."""
    with torch.device("cpu"):  # the model may be in the making, without memory
        height, width = processor(images=Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"].shape[-2:]
    if height != width:
        raise CheckpointError(f"the processor makes pictures of {width}x{height} pixels: towers of square ones are known")
    return height


class Projector(nn.Sequential):
    """Two layers from a part's width to the decoder's (Liu et al., 2023, LLaVA-1.5, arXiv:2310.03744)."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__(nn.LayerNorm(width_in), nn.Linear(width_in, width_out), nn.GELU(), nn.Linear(width_out, width_out))


def fit(tower: nn.Module, width: int) -> None:
    """Gives a tower its projector to the decoder's width; one that it has already stays."""
    if not hasattr(tower, "projector"):
        tower.projector = Projector(tower.width, width)
    elif tower.projector[-1].out_features != width:
        raise InputError(f"a tower with a projector to {tower.projector[-1].out_features} for a decoder of width {width}: load the tower again")


class Tower(nn.Module):
    """Square pictures of `side` pixels -> `rows` x `rows` vectors of a tower, projected. Without a projector one comes with `fit`."""

    def __init__(self, tower: nn.Module, side: int, rows: int, width: int):
        super().__init__()
        self.tower, self.side, self.rows, self.width = tower, side, rows, width

    def fit(self, width: int):
        fit(self, width)
        return self

    def pieces(self, pixels: Float[Tensor, "3 H W"]) -> Prepared:
        """The picture's pixels as one piece a vector, filled up where they do not divide."""
        if pixels.shape != (3, self.side, self.side):
            raise InputError(f"a prepared picture of {tuple(pixels.shape)}, the tower reads (3, {self.side}, {self.side})")
        values = F.pad(pixels.flatten(), (0, -pixels.numel() % self.rows**2))
        return on_grid(values.view(self.rows**2, -1), (1, self.rows, self.rows))

    def features(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N E"]:
        raise NotImplementedError

    def forward(self, prepared: Prepared, /) -> Float[Tensor, "N D"]:
        weight = next(self.parameters())
        values = rearrange(prepared.values_NF, "(b n) f -> b (n f)", n=self.rows**2)[:, : 3 * self.side**2]
        pixels = values.reshape(-1, 3, self.side, self.side).to(weight)
        return self.projector(self.features(pixels)).flatten(0, 1)


class ImageTower(Tower):
    """A vision model of transformers, with its own processor. `width` is the tower's."""

    def __init__(self, tower: nn.Module, processor, side: int, patch: int, projector: nn.Module | None = None):
        super().__init__(tower, side, side // patch, tower.config.hidden_size)
        self.processor = processor
        if projector is not None:
            self.projector = projector

    @classmethod
    def load(cls, folder: str | Path) -> "ImageTower":
        from transformers import AutoImageProcessor

        model = model_of(folder, IMAGE_TOWERS, "image tower")
        try:
            processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{folder} does not say how its pictures are prepared, in preprocessor_config.json ({reason})") from None
        return cls(model, processor, side_of(processor), model.config.patch_size)

    def facts(self) -> dict | None:
        """What it is built of, but for its weights; None where the tower is of a kind that `of` cannot build."""
        known = self.tower.config.model_type in IMAGE_TOWERS
        return {"config": plain(self.tower.config), "processor": plain(self.processor)} if known else None

    @classmethod
    def of(cls, facts: Mapping, place: Path) -> "ImageTower":
        model = model_again(facts["config"], IMAGE_TOWERS, "image tower", place)
        processor = processor_again(facts["processor"], place)
        return cls(model, processor, side_of(processor), model.config.patch_size)

    def prepare(self, value: Image.Image, /) -> Prepared:
        return self.pieces(self.processor(images=opaque(value), return_tensors="pt")["pixel_values"][0])

    def features(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N E"]:
        """One vector a patch; what some towers put before them (class and register vectors) is left out."""
        return self.tower(pixels).last_hidden_state[:, -(self.rows**2) :]


class FeatureTower(Tower):
    """Any module from (B, 3, side, side) pixels to (B, width, rows, rows) features (timm, EfficientNet); pixels are (x - mean) / std, x in [0, 1].

    With `early` the tower runs in `prepare`: it cannot be trained then, but what it sees in a picture can be kept.
    """

    def __init__(self, tower: nn.Module, side: int, rows: int, width: int, mean: float = 0.5, std: float = 0.5, early: bool = False):
        super().__init__(tower, side, rows, width)
        self.mean, self.std, self.early = mean, std, early

    def prepare(self, value: Image.Image, /) -> Prepared:
        return self.prepare_all([value])[0]

    def prepare_all(self, values: Sequence[Image.Image]) -> list[Prepared]:
        """Several pictures at once: with `early` the tower sees them together, which is faster."""
        pixels = self.pixels(values)
        if not self.early:
            return [self.pieces(one) for one in pixels]
        with torch.no_grad():
            return [on_grid(vectors.clone(), (1, self.rows, self.rows)) for vectors in self.features(pixels)]

    def pixels(self, values: Sequence[Image.Image]) -> Float[Tensor, "B 3 H W"]:
        """The pictures as the tower wants them: of one size, (x - mean) / std."""
        resized = [np.array(opaque(value).resize((self.side, self.side), Image.Resampling.BICUBIC)) for value in values]
        return rearrange((torch.from_numpy(np.stack(resized)).float() / 255 - self.mean) / self.std, "b h w c -> b c h w")

    def features(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N E"]:
        return rearrange(self.tower(pixels), "b c h w -> b (h w) c")

    def forward(self, prepared: Prepared, /) -> Float[Tensor, "N D"]:
        if self.early:
            return self.projector(prepared.values_NF.to(next(self.projector.parameters())))
        return super().forward(prepared)


class WhisperTower(nn.Module):
    """Sound -> the vectors of Whisper's encoder, one for each 20 ms, projected. The encoder itself always sees 30 seconds."""

    PER_VECTOR = 320  # samples

    def __init__(self, encoder: nn.Module, extractor, max_seconds: float = 30.0):
        super().__init__()
        self.encoder, self.extractor, self.max_seconds, self.width = encoder, extractor, max_seconds, encoder.config.d_model

    @classmethod
    def load(cls, folder: str | Path) -> "WhisperTower":
        from transformers import WhisperFeatureExtractor

        model = model_of(folder, {"whisper": "WhisperModel"}, "sound tower")
        return cls(model.encoder, WhisperFeatureExtractor.from_pretrained(folder))

    def facts(self) -> dict:
        return {"config": plain(self.encoder.config), "extractor": plain(self.extractor), "max_seconds": self.max_seconds}

    @classmethod
    def of(cls, facts: Mapping, place: Path) -> "WhisperTower":
        from transformers import WhisperFeatureExtractor

        extractor = {key: value for key, value in facts["extractor"].items() if not key.endswith("_type")}
        model = model_again(facts["config"], {"whisper": "WhisperModel"}, "sound tower", place)
        return cls(model.encoder, WhisperFeatureExtractor(**extractor), facts["max_seconds"])

    def fit(self, width: int) -> "WhisperTower":
        fit(self, width)
        return self

    def prepare(self, value: Audio, /) -> Prepared:
        sound_N = mono(value, self.max_seconds)
        mel_MT = self.extractor(sound_N.numpy(), sampling_rate=RATE, return_tensors="pt")["input_features"][0]
        count = max(1, -(-len(sound_N) // self.PER_VECTOR))
        self_contained = rearrange(mel_MT, "m (n k) -> n (m k)", k=2)
        return line(self_contained[:count])

    def forward(self, prepared: Prepared, /) -> Float[Tensor, "N D"]:
        weight, found = next(self.encoder.parameters()), []
        length = self.encoder.config.max_source_positions
        for values in prepared.values_NF.split([grid[0] for grid in prepared.grids]):
            silence = (values.max() - DEEPEST).clamp(min=SILENCE)  # the extractor cuts each clip so far below its loudest
            whole = torch.cat([values, silence.expand(length - len(values), values.shape[1])])
            mel = rearrange(whole, "n (m k) -> 1 m (n k)", k=2).to(weight)
            found.append(self.encoder(mel).last_hidden_state[0, : len(values)])
        return self.projector(torch.cat(found))
