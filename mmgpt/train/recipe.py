"""What recipes are made of: `key=value` words -> options and settings -> a job; and what several recipes need."""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmgpt.errors import TrainingError
from mmgpt.train.saves import how_to_begin
from mmgpt.train.settings import Settings, override
from mmgpt.train.task import Task

Words = dict[str, str]  # key=value, as they were typed


@dataclass(frozen=True)
class Job:
    """A recipe, made concrete: what is trained, how, and where it is written."""

    task: Task
    settings: Settings
    out: str
    resume: str = "false"  # or true, or auto


@dataclass(frozen=True)
class Recipe:
    """A function from (options, settings, words) to a job; and what options and settings are where no words say otherwise."""

    make: Callable[[Any, Settings, Words], Job]
    options: Any
    settings: Settings

    def __call__(self, words: Words) -> Job:
        return self.make(*split(self.options, self.settings, words), words)


def freeze(model, names: str) -> None:
    """Parts that stay as they are, with commas between their names."""
    for name in filter(None, names.split(",")):
        if name not in dict(model.named_modules()):
            raise TrainingError(f"frozen={names}: {name!r} is no part of this model: use {', '.join(dict(model.named_children()))}")
        model.get_submodule(name).requires_grad_(False)


def device_of(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise TrainingError(f"device={name}: use cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device=cuda: this machine shows 0 CUDA devices to torch; leave device out")
    if device == torch.device("cuda") and "LOCAL_RANK" in os.environ:  # torchrun: each process its own
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


def squared(sources, side: int) -> Tensor:
    """(N, 3, side, side) uint8: each picture squeezed to a square, just as the model will see it when it reads."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    from mmgpt.data.pictures import open_picture
    from mmgpt.encoders.image import fitted

    return torch.stack([pil_to_tensor(fitted(open_picture(source), 1, side**2, side)) for source in sources])


def emoji_item(row, skin_weight: float):
    from mmgpt.data.emoji import drawing_prompt
    from mmgpt.train.gpt import Item

    styled = drawing_prompt(row.label, row.style)
    draws = (*[styled] * 7, f"a {styled}", f"a {styled}", row.label)
    captions = (*[("caption:", row.label)] * 9, ("group:", row.group))
    return Item(draws, captions, skin_weight if row.skin else 0.5 if row.group == "flags" else 1.0)


def pixels(rows, side: int = 64) -> Tensor:
    """(N, 3, side, side) uint8 of all rows' pictures, which are stored with 64."""
    from PIL import Image

    if side != 64:
        return squared([row.image for row in rows], side)
    stacked = np.stack([np.array(Image.open(BytesIO(row.image)).convert("RGB")) for row in rows])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def split(options, settings: Settings, words: dict[str, str]):
    """`key=value` words to the recipe's own options and to the loop's settings; an unknown key lists both."""
    mine, loops = {f.name for f in fields(options)}, {f.name for f in fields(settings)}
    unknown = [key for key in words if key not in mine | loops]
    if unknown:
        raise TrainingError(f"unknown setting {unknown[0]!r}: known are {', '.join(sorted(mine | loops))}")
    how_to_begin(words.get("resume", False))
    if "steps" in words and "minutes" not in words:
        settings = replace(settings, minutes=0.0)  # a length in steps replaces the recipe's own in minutes
    return override(options, {k: v for k, v in words.items() if k in mine}), override(settings, {k: v for k, v in words.items() if k in loops})
