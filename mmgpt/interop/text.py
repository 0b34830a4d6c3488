"""config.json of a Llama, Mistral, Qwen2 or Qwen3 -> a GPT that reads and writes text, and where its tensors come from."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from mmgpt.checkpoint import parsed
from mmgpt.decoders.heads import TableHead
from mmgpt.decoders.transformer import DecoderConfig
from mmgpt.encoders.text import TextCodec
from mmgpt.errors import CheckpointError
from mmgpt.generate.sampling import GREEDY, Sampling
from mmgpt.interop.released import KeyMap, Released
from mmgpt.layout import TextLayout
from mmgpt.model import GPT, Port
from mmgpt.script import Span

QK_NORM = {"qwen3": "rms", "chameleon": "layer"}
ANSWER = 256  # ids of an answer, where the caller names no limit and the model holds twice as many
IGNORED = ("rotary_emb.inv_freq",)  # written by old versions, follows from the config


def build(values: dict, texts: Mapping[str, str], folder: Path) -> tuple[GPT, Released]:
    config = config_class(values, folder)
    text, tied = tokenizer_of(texts, config.vocab_size, folder), bool(config.tie_word_embeddings)
    ports = {"text": text_port(text, config, texts, folder)}
    decoder = decoder_of(config, folder)
    gpt = GPT(decoder, ports, config.vocab_size, begin_of(text, config, texts), config.max_position_embeddings, tied)
    ignored = (*IGNORED, "lm_head.weight") if tied else IGNORED
    return gpt, Released(config.model_type, values, keys(decoder, config.vocab_size, tied), texts, ignored)


def config_class(values: Mapping, folder: Path):
    """transformers' own reading of the values, with its defaults."""
    from transformers import CONFIG_MAPPING

    try:
        config = CONFIG_MAPPING[values["model_type"]](**{k: v for k, v in values.items() if k != "model_type"})
    except Exception as error:  # whatever its validation raises
        raise CheckpointError(f"{folder}: config.json does not fit a {values['model_type']} ({said(error)})") from None
    return config


def said(error: Exception) -> str:
    """What an exception says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def decoder_of(config, folder: Path) -> DecoderConfig:
    if getattr(config, "hidden_act", "silu") != "silu":
        raise CheckpointError(f"{folder}: hidden_act={config.hidden_act!r} is not supported: known is 'silu'")
    heads = config.num_attention_heads
    bias = bool(getattr(config, "attention_bias", False))
    frequencies, gain = scaled_rope(config, folder)
    window, kinds = getattr(config, "sliding_window", None) or 0, getattr(config, "layer_types", None)
    windowed = tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention") if kinds else ()
    return DecoderConfig(
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=config.num_key_value_heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        mlp_width=config.intermediate_size,
        rope_theta=float(config.rope_parameters["rope_theta"]),
        position_axes=1,
        norm_eps=config.rms_norm_eps,
        qk_norm=QK_NORM.get(config.model_type, ""),
        qkv_bias=bias or config.model_type == "qwen2",
        out_bias=bias,
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        norm_after=bool(getattr(config, "swin_norm", False)),
        rope_frequencies=frequencies,
        rope_gain=gain,
        window=window if windowed or not kinds else 0,
        windowed=windowed,
    )


def scaled_rope(config, folder: Path) -> tuple[tuple[float, ...], float]:
    """The frequencies that transformers computes where they are not the plain ones, and what scales cosines and sines."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters
    kind, turned = rope.get("rope_type", "default"), rope.get("partial_rotary_factor", 1.0)
    if turned != 1.0:
        raise CheckpointError(f"{folder}: partial_rotary_factor={turned} is not supported: known is 1.0, all channels of a head turn")
    if kind == "default":
        return (), 1.0
    if kind not in ("linear", "llama3", "yarn"):
        raise CheckpointError(f"{folder}: rope_parameters {kind!r} follow the length of the text: known are default, linear, llama3, yarn")
    with torch.device("cpu"):  # the model is being built without memory
        frequencies, gain = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    return tuple(frequencies.tolist()), float(gain)


def keys(decoder: DecoderConfig, num_ids: int, tied: bool, prefix: str = "model.", head: str = "") -> KeyMap:
    """Our tensor -> theirs, one after the other."""
    c = decoder
    q, kv = c.num_heads * c.head_width, c.num_kv_heads * c.head_width
    found: dict[str, list[tuple[str, int]]] = {"table.weight": [(f"{prefix}embed_tokens.weight", num_ids)]}
    if not tied:
        found["output.weight"] = [(f"{head}lm_head.weight", num_ids)]
    parts = {
        "attention.qkv": (c.qkv_bias, [("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)]),
        "attention.out": (c.out_bias, [("self_attn.o_proj", c.width)]),
        "mlp.gate_up": (c.mlp_bias, [("mlp.gate_proj", c.mlp_width), ("mlp.up_proj", c.mlp_width)]),
        "mlp.down": (c.mlp_bias, [("mlp.down_proj", c.width)]),
        "attention_norm": (False, [("input_layernorm", c.width)]),
        "mlp_norm": (False, [("post_attention_layernorm", c.width)]),
    }
    if c.qk_norm:
        sizes = (c.head_width, c.head_width) if c.qk_norm == "rms" else (c.num_heads, c.num_kv_heads)
        for name, size in zip("qk", sizes, strict=True):
            parts[f"attention.{name}_norm"] = (c.qk_norm == "layer", [(f"self_attn.{name}_norm", size)])
    for layer in range(c.depth):
        for ours, (bias, theirs) in parts.items():
            for leaf in ("weight", "bias") if bias else ("weight",):
                found[f"decoder.blocks.{layer}.{ours}.{leaf}"] = [(f"{prefix}layers.{layer}.{name}.{leaf}", rows) for name, rows in theirs]
    return found | {"decoder.norm.weight": [(f"{prefix}norm.weight", c.width)]}


def tokenizer_of(texts: Mapping[str, str], num_ids: int, folder: Path) -> TextCodec:
    if "tokenizer.json" not in texts:
        raise CheckpointError(f"{folder} has no tokenizer.json: save its tokenizer with transformers' AutoTokenizer, which writes one")
    text = TextCodec.from_text(texts["tokenizer.json"])
    text.tokenizer.encode_special_tokens = True  # words that spell a control token stay words
    highest = max(text.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= num_ids:
        raise CheckpointError(f"{folder}: tokenizer.json has id {highest}, config.json {num_ids} ids: the two are not of one model")
    return text


def text_port(text: TextCodec, config, texts: Mapping[str, str], folder: Path, hole: Span | None = None) -> Port:
    """Text that is given is continued; what is written ends with any of the ends that the checkpoint names, and holds no id of `hole`."""
    asked = parsed(texts.get("generation_config.json", "{}"), f"{folder / 'generation_config.json'}")
    ends = asked.get("eos_token_id", config.eos_token_id)
    ends = [] if ends is None else list(ends) if isinstance(ends, list) else [ends]
    if any(not isinstance(end, int) or not 0 <= end < config.vocab_size for end in ends):
        raise CheckpointError(f"{folder}: eos_token_id {ends} with {config.vocab_size} ids: the ends must be among them")
    layout = TextLayout(Span(0, config.vocab_size), ends[0] if ends else None, tuple(ends[1:]), end_given=False, hole=hole)
    return Port(
        str,
        codec=text,
        writes=layout,
        grid=(1, 1, min(ANSWER, config.max_position_embeddings // 2)),
        head=partial(TableHead, hole=hole),
        sampling=sampling_of(asked),
    )


def sampling_of(asked: dict) -> Sampling:
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty") if asked.get("do_sample") else ("repetition_penalty",)
    return replace(Sampling() if asked.get("do_sample") else GREEDY, **{name: asked[name] for name in names if asked.get(name) is not None})


def begin_of(text: TextCodec, config, texts: Mapping[str, str]) -> int | None:
    """The id that opens every document, if the tokenizer puts one before a text."""
    asked = parsed(texts.get("tokenizer_config.json", "{}"), "tokenizer_config.json").get("add_bos_token")
    plain, marked = (text.tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    adds = marked[: len(marked) - len(plain)] == [config.bos_token_id] if asked is None else bool(asked)
    return config.bos_token_id if adds else None
