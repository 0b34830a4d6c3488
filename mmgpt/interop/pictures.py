"""A VQ model of transformers -> a codec of pictures in our contract. Pictures are prepared by the checkpoint's own processor."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from mmgpt.checkpoint import parsed
from mmgpt.encoders.image import opaque
from mmgpt.errors import CheckpointError, InputError
from mmgpt.interop.released import KeyMap, family_of
from mmgpt.interop.text import config_class, said


class VQPictures(nn.Module):
    """A VQ model of transformers as a codec of pictures: `to_codes` and `to_pixels` are what differs between families."""

    def __init__(
        self,
        model: nn.Module,
        processor,
        num_codes: int,
        to_codes: Callable[[nn.Module, Float[Tensor, "1 3 H W"]], Int[Tensor, "h w"]],
        to_pixels: Callable[[nn.Module, Int[Tensor, "1 h w"]], Float[Tensor, "1 3 H W"]] | None,
    ):
        super().__init__()
        self.model, self.processor, self.num_codes, self.to_codes, self.to_pixels = model, processor, num_codes, to_codes, to_pixels

    def facts(self) -> dict:
        """What it is built of, but for its weights."""
        return {"config": plain(self.model.config), "processor": plain(self.processor)}

    @staticmethod
    def of(facts: Mapping, place: Path) -> "VQPictures":
        config = config_class(facts["config"], place)
        family = family_of({"model_type": config.model_type.removesuffix("_vqgan")}, place)
        return family.codec_of(config, processor_again(facts["processor"], place))

    @property
    def weight(self) -> Tensor:
        return next(self.model.parameters())

    @torch.no_grad()
    def encode(self, value: Image.Image) -> Int[np.ndarray, "h w"]:
        pixels = self.processor(images=opaque(value), return_tensors="pt")["pixel_values"]
        return self.to_codes(self.model, pixels.to(self.weight)).cpu().numpy()

    @torch.no_grad()
    def decode(self, codes: Int[np.ndarray, "1 h w"]) -> Image.Image:
        if self.to_pixels is None:
            raise InputError("the released weights hold no decoder of codes to pixels: this model reads pictures; give it another codec to draw")
        pixels = self.to_pixels(self.model, torch.from_numpy(codes).to(self.weight.device))
        return shown(pixels[0], self.processor)


def shown(pixels: Float[Tensor, "3 H W"], processor) -> Image.Image:
    """What the processor does, undone. (Its own `postprocess` makes no pictures in every version.)"""
    mean, std = (torch.tensor(x, dtype=torch.float32).view(-1, 1, 1) for x in (processor.image_mean, processor.image_std))
    values = ((pixels.float().cpu() * std + mean) / processor.rescale_factor).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())


def processor_of(texts: Mapping[str, str], kind: type, folder: Path):
    """The checkpoint's own way to prepare pictures: preprocessor_config.json, or what processor_config.json says of pictures (transformers 5)."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        values = parsed(texts.get(name, "{}"), f"{folder / name}")
        values = values.get("image_processor") if name == "processor_config.json" else values
        if values:
            return prepares(values, kind, folder / name)
    raise CheckpointError(f"{folder} does not say how its pictures are prepared: it lacks preprocessor_config.json; copy it from the checkpoint")


def prepares(values: Mapping, kind: type, place: Path):
    try:
        return kind(**{k: v for k, v in values.items() if not k.endswith("_type") and k not in ("auto_map", "processor_class")})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{place} does not fit a {kind.__name__} ({said(error)})") from None


def processor_again(values: Mapping, place: Path):
    """transformers' own image processor of the name and the numbers that `plain` wrote down."""
    import transformers

    kind = getattr(transformers, str(values.get("image_processor_type")), None)
    if not isinstance(kind, type) or not issubclass(kind, transformers.ImageProcessingMixin):
        raise CheckpointError(f"{place}: {values.get('image_processor_type')!r} is no image processor of this transformers: install a newer one")
    return prepares(values, kind, place)


def plain(settings) -> dict:
    """A config or a processor of transformers as JSON holds it, with its defaults, without the place that it came from."""
    found = json.loads(settings.to_json_string(use_diff=False) if hasattr(settings, "to_diff_dict") else settings.to_json_string())
    return {key: value for key, value in found.items() if key != "_name_or_path"}


def own(module: nn.Module, ours: str, theirs: str) -> KeyMap:
    """A module of transformers keeps its names below ours."""
    return {f"{ours}.{name}": [(f"{theirs}.{name}", None)] for name in module.state_dict()}


def token(tokenizer, name: str, folder: Path) -> int:
    found = tokenizer.token_to_id(name)
    if found is None:
        raise CheckpointError(f"{folder}: tokenizer.json lacks the control token {name}, without which no picture can be written")
    return found


def code_ids(
    vocabulary: Mapping[str, int], code_of: Callable[[str], int | None], num_codes: int, folder: Path
) -> tuple[range, tuple[int, ...] | None]:
    """The ids of a codec's codes: their range, and the id of each code where they are not in order."""
    ids = {code: id for name, id in vocabulary.items() for code in [code_of(name)] if code is not None}
    span = range(min(ids.values(), default=0), max(ids.values(), default=-1) + 1)
    if sorted(ids) != list(range(num_codes)) or len(span) != num_codes:
        raise CheckpointError(f"{folder}: vocabulary_map names {len(ids)} picture codes in {len(span)} ids, its codec has {num_codes}")
    table = tuple(ids[code] for code in range(num_codes))
    return span, None if table == tuple(span) else table
