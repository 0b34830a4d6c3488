"""A model -> the same one with the decoder's matrices as whole numbers of 8 or 4 bits (torchao): smaller, and nearly as good."""

from importlib.util import find_spec

from mmgpt.errors import InputError

WEIGHTS = ("int8", "int4")
GROUP = 32  # 4-bit numbers that share a scale; 8-bit ones share one a row


def quantised(gpt, weights: str):
    """The model, changed in place: what is computed stays in its precision, weights alone are rounded. For generation, not for training."""
    if weights not in WEIGHTS:
        raise InputError(f"weights={weights!r}: use one of {', '.join(WEIGHTS)}")
    if find_spec("torchao") is None:
        raise InputError(f"weights={weights!r} needs torchao, which is not installed: pip install 'mmgpt[quant]'")
    import torch
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_

    uneven = [name for name, part in gpt.decoder.named_modules() if isinstance(part, torch.nn.Linear) and part.in_features % GROUP]
    if weights == "int4" and uneven:
        raise InputError(f"{uneven[0]} reads {gpt.decoder.get_submodule(uneven[0]).in_features} channels: int4 needs multiples of {GROUP}, use int8")
    if weights == "int8":
        config = Int8WeightOnlyConfig()
    elif gpt.device.type == "cuda":
        config = Int4WeightOnlyConfig(group_size=GROUP)
    else:
        config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(GROUP))
    quantize_(gpt.decoder, config)
    return gpt
