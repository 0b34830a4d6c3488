"""Picture parts of transformers in our contracts: a VQ model as codec, a vision tower as encoder. Pictures are prepared by their own processors."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from mmgpt.checkpoint import parsed
from mmgpt.errors import CheckpointError, InputError
from mmgpt.interop.released import KeyMap
from mmgpt.types import Prepared


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

    @property
    def weight(self) -> Tensor:
        return next(self.model.parameters())

    @torch.no_grad()
    def encode(self, value: Image.Image) -> Int[np.ndarray, "h w"]:
        pixels = self.processor(images=value.convert("RGB"), return_tensors="pt")["pixel_values"]
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


class TowerEncoder(nn.Module):
    """A vision tower and its projector: one vector a patch, of square pictures of one size."""

    def __init__(self, tower: nn.Module, projector: nn.Module, processor, side: int, patch: int):
        super().__init__()
        self.tower, self.projector, self.processor, self.side, self.patches = tower, projector, processor, side, side // patch

    def prepare(self, value: Image.Image) -> Prepared:
        pixels = self.processor(images=value.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        if pixels.shape != (3, self.side, self.side):
            raise InputError(f"the processor makes pictures of {tuple(pixels.shape)}, the tower reads (3, {self.side}, {self.side})")
        count = self.patches**2
        place = torch.from_numpy(np.stack(np.unravel_index(np.arange(count), (1, self.patches, self.patches)), -1))
        return Prepared(pixels.reshape(count, -1), place, ((1, self.patches, self.patches),))

    def forward(self, prepared: Prepared) -> Float[Tensor, "N D"]:
        weight = next(self.tower.parameters())
        pixels = prepared.values_NF.reshape(-1, 3, self.side, self.side).to(weight)
        return self.projector(self.tower(pixels).last_hidden_state).flatten(0, 1)


def processor_of(texts: Mapping[str, str], kind: type, folder: Path):
    """The checkpoint's own way to prepare pictures, its numbers from preprocessor_config.json."""
    values = parsed(texts.get("preprocessor_config.json", "{}"), f"{folder / 'preprocessor_config.json'}")
    return kind(**{k: v for k, v in values.items() if not k.endswith("_type") and k not in ("auto_map", "processor_class")})


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
