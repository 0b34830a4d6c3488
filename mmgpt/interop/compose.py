"""Pretrained parts -> one GPT: a text model's decoder, a tower to read with, a codec to write with; each frozen, adapted or trained."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmgpt.errors import InputError
from mmgpt.interop.parts import ImageTower, WhisperTower
from mmgpt.layout import CodesLayout, FramesLayout, VectorsLayout
from mmgpt.model import GPT, Codec, Port
from mmgpt.script import Span
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
AGAIN = "{} layers have LoRA already, and a second one cannot stand on it: call `merge` first, or choose frozen"
PARTS = {"image_in": "image", "image_out": "image", "audio_in": "audio", "audio_out": "audio"}  # part -> its port
POLICY = {"decoder": LORA, "table": TRAINED, "tower": FROZEN, "projector": TRAINED}


@dataclass(frozen=True)
class Composed:
    """What a composed model is made of, without its weights: what `mmgpt.save` writes and `mmgpt.load` builds it of again."""

    decoder: object  # the config of the decoder's own model: NativeConfig, Released or Composed; None where it was built by hand
    parts: Mapping[str, Mapping]  # image_in, image_out, audio_in, audio_out -> its kind and what it is built of, see `composed.facts_of`
    image_grid: Grid | None
    policy: Mapping[str, Policy]
    left_out: str = ""  # the artist that the model was trained without, so that an evaluation can refuse another
    audio_grid: Grid | None = None


def compose(
    decoder: GPT | str | Path,
    image_in: nn.Module | str | Path | None = None,
    image_out: Codec | None = None,
    audio_in: nn.Module | str | Path | None = None,
    image_grid: Grid | None = None,
    policy: Mapping[str, Policy] = POLICY,
    audio_out: Codec | None = None,
    seconds: float = 10.0,
) -> GPT:
    """The decoder's GPT with ports for pictures and sound. `mmgpt.save` writes it, `mmgpt.load` opens it again.

    Models and towers that are passed are taken over, weights and all, not copied: go on with what is returned.

    image_in   a tower (`ImageTower`, `FeatureTower`, any encoder) or the folder of one      image_out  a codec of pictures
    audio_in   a tower of sound or the folder of one                                         audio_out  a codec of sound
    image_grid the size that is drawn, in codes                                              seconds    the most that is spoken
    policy     what is trained, by part: decoder, table, tower, projector
    """
    from mmgpt.hub import load
    from mmgpt.interop.composed import facts_of

    gpt = load(decoder) if isinstance(decoder, (str, Path)) else decoder
    if not isinstance(gpt, GPT):
        raise InputError(f"decoder of type {type(gpt).__name__}: pass a model, its folder or its hub id")
    check_policy(policy)
    if {**POLICY, **policy}["decoder"].how == "lora" and adapted(gpt.decoder):
        raise InputError(AGAIN.format(adapted(gpt.decoder)))  # before anything is changed: the decoder may be in use
    image_in = ImageTower.load(image_in) if isinstance(image_in, (str, Path)) else image_in
    audio_in = WhisperTower.load(audio_in) if isinstance(audio_in, (str, Path)) else audio_in
    parts = {name: part for name, part in zip(PARTS, (image_in, image_out, audio_in, audio_out), strict=True) if part is not None}
    if not parts:
        raise InputError("0 parts to compose with the decoder: pass image_in, image_out, audio_in or audio_out")
    taken = [name for name in parts if PARTS[name] in gpt.ports]
    if taken:
        raise InputError(
            f"{taken[0]} for a decoder with {len(gpt.ports)} ports, {', '.join(gpt.ports)}: it has one for {PARTS[taken[0]]} already; "
            f"leave {taken[0]} out, or compose with a model of text alone"
        )
    for name, part in parts.items():
        check_part(name, part)
    facts = {name: facts_of(part) for name, part in parts.items()}
    audio_grid = None if audio_out is None else frames_of(audio_out, seconds)
    config = Composed(getattr(gpt, "config", None), facts, image_grid, {**POLICY, **policy}, audio_grid=audio_grid)
    return assembled(gpt, parts, config).eval()


def check_policy(policy) -> None:
    if not isinstance(policy, Mapping):
        raise InputError(f"policy={policy!r}: pass a part and its Policy each, as {{'decoder': FROZEN}}")
    for name, one in policy.items():
        if name not in POLICY:
            raise InputError(f"policy for {name!r}: the parts are {', '.join(POLICY)}")
        if not isinstance(one, Policy):
            raise InputError(f"policy {name}={one!r}: use FROZEN, LORA or TRAINED of mmgpt.interop.compose, or a Policy of your own")


def check_part(name: str, part) -> None:
    """Towers prepare and codecs code: said here, not where the first picture is read."""
    reads = name.endswith("_in")
    lacks = [method for method in (("prepare", "forward") if reads else ("encode", "decode", "num_codes")) if not hasattr(part, method)]
    if lacks:
        takes = "a tower (ImageTower, FeatureTower, WhisperTower) or the folder of one" if reads else "a codec, as SoundCodes.load(folder)"
        raise InputError(f"{name} of type {type(part).__name__} has no {lacks[0]}: pass {takes}")


def frames_of(codec: Codec, seconds: float) -> Grid:
    """The codes of so much sound, counted on a second of silence: frames, 1, codes a frame."""
    frames, quantizers = codec.encode(Audio(torch.zeros(16_000), 16_000)).shape
    if not 0 < seconds * frames <= 100_000:
        raise InputError(f"seconds={seconds} of {frames} frames: use more than 0, up to 100,000 frames in all")
    return (max(1, int(seconds * frames)), 1, quantizers)


def assembled(gpt: GPT, parts: Mapping[str, nn.Module | Codec], config: Composed) -> GPT:
    """A new GPT with the decoder, the heads and the rows of `gpt`, and ports for the parts."""
    width, ports = gpt.decoder.config.width, dict(gpt.ports)
    used = max(gpt.table.num_embeddings, *(span.stop for span in gpt.spans.values()))  # codes with a table of their own lie behind
    image_in, image_out, audio_in, audio_out = (parts.get(name) for name in PARTS)
    if image_in is not None or image_out is not None:
        from mmgpt.native import kind_of_pictures

        begin, end, codes = used, used + 1, Span(used + 2, used + 2 + (image_out.num_codes if image_out is not None else 0))
        used = codes.stop
        ports["image"] = Port(
            kind_of_pictures(), fitted(image_in, width), VectorsLayout(begin, end, flat=True) if image_in is not None else None,
            image_out, CodesLayout(begin, codes, end, flat=True) if image_out is not None else None, config.image_grid,
        )  # fmt: skip
    if audio_in is not None or audio_out is not None:
        begin, end, grid = used, used + 1, config.audio_grid
        codes = Span(used + 2, used + 2 + (1 + grid[2] * audio_out.num_codes if audio_out is not None else 0))  # the first of them ends
        used = codes.stop
        ports["audio"] = Port(
            Audio, fitted(audio_in, width), VectorsLayout(begin, end, whole=False, flat=True) if audio_in is not None else None,
            audio_out, FramesLayout(begin, codes, grid[2]) if audio_out is not None else None, grid,
        )  # fmt: skip
    with torch.device("meta"):  # what is new is given its values below, the rest is there already
        made = GPT(gpt.decoder.config, ports, used, gpt.begin, gpt.max_length, tied=not hasattr(gpt, "output"))
    made.decoder, made.config = gpt.decoder, config
    for name, head in gpt.heads.items():
        made.heads[name].load_state_dict(head.state_dict(), assign=True)
    for name in ("table", "output") if hasattr(gpt, "output") else ("table",):
        getattr(made, name).weight = nn.Parameter(grown(getattr(gpt, name).weight, used))
    if not made.table.weight.is_meta:
        made.encoders.to(made.device, made.table.weight.dtype)
    return apply(made, config.policy)


def fitted(tower: nn.Module | None, width: int) -> nn.Module | None:
    return tower.fit(width) if hasattr(tower, "fit") else tower


@torch.no_grad()
def grown(old_VD: Float[Tensor, "V D"], count: int) -> Float[Tensor, "W D"]:
    """`count` rows: the old ones, and new ones near their mean, so that no new id is likelier than a word from the start."""
    table = old_VD.new_empty(count, old_VD.shape[1])
    if table.is_meta:
        return table
    rows, new = old_VD.float(), count - len(old_VD)
    noise = torch.randn(new, rows.shape[1], generator=torch.Generator().manual_seed(0)).to(rows.device)
    table[: len(rows)] = old_VD
    table[len(rows) :] = rows.mean(0) + 0.1 * rows.std(0) * noise
    return table


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
    if adapted(module):
        raise InputError(AGAIN.format(adapted(module)))
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear), module)


def adapted(module: nn.Module) -> int:
    """How many layers have LoRA matrices beside them."""
    return sum(hasattr(layer, "lora_A") for layer in module.modules())


def merge(gpt: GPT) -> GPT:
    """LoRA's matrices added into the weights beside them, in place: the same numbers from plain layers, which training then leaves alone."""
    for module in list(gpt.modules()):
        for name, layer in list(module.named_children()):
            if hasattr(layer, "lora_A"):
                layer.merge()
                setattr(module, name, layer.get_base_layer())
    if isinstance(gpt.config, Composed):
        gpt.config = merged(gpt.config)
    return gpt


def merged(config: Composed) -> Composed:
    policy = {name: replace(p, how="frozen") if p.how == "lora" else p for name, p in config.policy.items()}
    inner = merged(config.decoder) if isinstance(config.decoder, Composed) else config.decoder
    return replace(config, decoder=inner, policy=policy)
