"""Pretrained parts -> one GPT: a text model's decoder, a tower to read with, a codec to write with; each frozen, adapted or trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mmgpt.encoders.codes import Table
from mmgpt.errors import InputError
from mmgpt.interop.parts import ImageTower, WhisperTower
from mmgpt.layout import CodesLayout, Span, VectorsLayout
from mmgpt.model import GPT, Codec, Port
from mmgpt.types import Audio, Grid


@dataclass(frozen=True)
class Policy:
    """What training does to a part: `how` is frozen, lora or trained; `rate` times the run's learning rate."""

    how: str = "trained"
    rate: float = 1.0
    rank: int = 16  # of LoRA (Hu et al., 2021, arXiv:2106.09685)

    def __post_init__(self):
        if self.how not in ("frozen", "lora", "trained") or not self.rate > 0 or self.rank < 1:
            raise InputError(
                f"how={self.how!r}, rate={self.rate}, rank={self.rank}: use frozen, lora or trained, a rate above 0, a rank of at least 1"
            )


FROZEN, LORA, TRAINED = Policy("frozen"), Policy("lora"), Policy("trained")
POLICY = {"decoder": LORA, "table": TRAINED, "tower": FROZEN, "projector": TRAINED}


def compose(
    decoder: GPT | str | Path,
    image_in: nn.Module | str | Path | None = None,
    image_out: Codec | None = None,
    audio_in: nn.Module | str | Path | None = None,
    image_grid: Grid | None = None,
    policy: Mapping[str, Policy] = POLICY,
) -> GPT:
    """The decoder's GPT with ports for pictures and sound.

    image_in   a tower (`ImageTower`, `FeatureTower`, any encoder) or the folder of one      image_out  a codec of pictures
    audio_in   a tower of sound or the folder of one                                         image_grid the size that is drawn, in codes
    policy     what is trained, by part: decoder, table, tower, projector
    """
    from mmgpt.hub import load

    gpt = load(decoder) if isinstance(decoder, (str, Path)) else decoder
    unknown = set(policy) - set(POLICY)
    if unknown:
        raise InputError(f"policy for {sorted(unknown)[0]!r}: the parts are {', '.join(POLICY)}")
    if image_in is None and image_out is None and audio_in is None:
        raise InputError("0 parts to compose with the decoder: pass image_in, image_out or audio_in")
    width, used = gpt.decoder.config.width, gpt.table.num_embeddings
    image_in = ImageTower.load(image_in) if isinstance(image_in, (str, Path)) else image_in
    audio_in = WhisperTower.load(audio_in) if isinstance(audio_in, (str, Path)) else audio_in
    ports = dict(gpt.ports)
    if image_in is not None or image_out is not None:
        from mmgpt.native import kind_of_pictures

        begin, end, codes = used, used + 1, Span(used + 2, used + 2 + (image_out.num_codes if image_out is not None else 0))
        used = codes.stop
        ports["image"] = Port(
            kind_of_pictures(), fitted(image_in, width), VectorsLayout(begin, end, flat=True) if image_in is not None else None,
            image_out, CodesLayout(begin, codes, end, flat=True) if image_out is not None else None, image_grid,
        )  # fmt: skip
    if audio_in is not None:
        ports["audio"] = Port(Audio, fitted(audio_in, width), VectorsLayout(used, used + 1, whole=False, flat=True))
        used += 2
    made = GPT(gpt.decoder.config, ports, used, gpt.begin, gpt.max_length, tied=not hasattr(gpt, "output"))
    made.decoder = gpt.decoder
    grow(made.table, gpt.table)
    if hasattr(gpt, "output"):
        grow(made.output, gpt.output)
    made.config = None
    for part in (made.table, made.encoders, made.heads):
        part.to(gpt.table.weight.device, gpt.table.weight.dtype)
    return apply(made, {**POLICY, **policy}).eval()


def fitted(tower: nn.Module | None, width: int) -> nn.Module | None:
    return tower.fit(width) if hasattr(tower, "fit") else tower


@torch.no_grad()
def grow(table: Table, old: Table) -> None:
    """Old rows stay; new ones start near their mean, so that no new id is likelier than a word from the start."""
    rows = old.weight.float()
    mean, spread = rows.mean(0), rows.std(0)
    table.weight[: len(rows)] = old.weight
    table.weight[len(rows) :] = mean + 0.1 * spread * torch.randn(
        len(table.weight) - len(rows), len(mean), generator=torch.Generator().manual_seed(0)
    )


def apply(gpt: GPT, policy: Mapping[str, Policy]) -> GPT:
    """Freezes, adapts or trains the parts, and notes their learning rates in `gpt.rates` (name of a weight's beginning -> factor)."""
    towers = [(f"encoders.{name}.{leaf}", part) for name, encoder in gpt.encoders.items() for leaf, part in encoder.named_children()]
    parts = {"decoder": [("decoder", gpt.decoder)], "table": [(name, part) for name, part in gpt.named_children() if name in ("table", "output")]}
    parts["projector"] = [(name, part) for name, part in towers if name.endswith(".projector")]
    parts["tower"] = [(name, part) for name, part in towers if not name.endswith(".projector")]
    gpt.rates = {}
    for name, found in parts.items():
        for prefix, module in found:
            module.requires_grad_(policy[name].how == "trained")
            if policy[name].how == "lora":
                adapt(module, policy[name].rank)
            gpt.rates[prefix] = policy[name].rate
    return gpt


def adapt(module: nn.Module, rank: int) -> None:
    """LoRA on every linear layer, by PEFT: the layers' weights stay, two thin matrices beside each learn."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise InputError("LoRA needs the package peft: pip install peft, or choose frozen or trained") from None
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear), module)
