"""The decoder and the encoder of pictures as models of transformers: its attention functions and caches are handed to our decoder."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from mmgpt.decoders.cache import NoCache
from mmgpt.decoders.image_codec import ImageCodec
from mmgpt.decoders.transformer import Attention, Block, Decoder, SwiGLU
from mmgpt.encoders.conv import ResidualBlock
from mmgpt.encoders.image import square_encoder
from mmgpt.encoders.places import Places
from mmgpt.errors import InputError
from mmgpt.interop.hf.config import MMGPTConfig, MMGPTTextConfig, MMGPTVisionConfig
from mmgpt.types import join


def eager_attention(module: nn.Module, q, k, v, mask, scaling: float, dropout: float = 0.0, **_):
    """Attention written out, for its weights."""
    k, v = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * scaling
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
    return (nn.functional.dropout(weights, dropout, module.training) @ v).transpose(1, 2).contiguous(), weights


class MMGPTAttention(nn.Module):
    """The attention function of one layer, chosen by the config. It has no weights: the decoder's `Attention` has."""

    def __init__(self, config: MMGPTTextConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, True
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5

    def forward(self, q, k, v, attention_mask, **kwargs) -> tuple[Float[Tensor, "B T H E"], Tensor | None]:
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        return attend(self, q, k, v, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)


@dataclass
class Handed:
    """What the decoder is handed for one pass: transformers' attention functions and mask, and its cache (see `Attends`, `Remembers`)."""

    functions: nn.ModuleList
    mask: object = None
    cache: object = None
    settings: dict = field(default_factory=dict)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "B H T E"]:
        mask = self.mask.to(q.device) if self.mask is not None else None
        return self.functions[layer](q, k, v, mask, **self.settings)[0].transpose(1, 2)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.cache.update(k, v, layer)


class MMGPTBlock(GradientCheckpointingLayer, Block):
    """The decoder's block, which transformers may recompute in the backward pass, place on a device, shard."""


class MMGPTPreTrainedModel(PreTrainedModel):
    config: MMGPTConfig
    base_model_prefix = "model"
    input_modalities = ("text", "image")
    supports_gradient_checkpointing = True
    _no_split_modules = ["MMGPTBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: what `_init_weights` writes, it writes through transformers' `init`, which leaves loaded tensors as they are."""
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, (Attention, SwiGLU)):  # what writes to the residual stream starts smaller, by depth
            last = module.out if isinstance(module, Attention) else module.down
            text = self.config.get_text_config()
            init.normal_(last.weight, std=text.initializer_range / (2 * text.num_hidden_layers) ** 0.5)
        elif isinstance(module, ResidualBlock):
            init.zeros_(module.mix.weight)
        elif isinstance(module, Places):
            for table in module.tables:
                init.normal_(table, std=self.config.initializer_range)
        elif isinstance(module, ImageCodec):  # its quantiser's constants are in no checkpoint
            with torch.device("cpu"):
                fresh = dict(ImageCodec(module.config).quantise.named_buffers())
            for name, buffer in module.quantise.named_buffers():
                init.copy_(buffer, fresh[name])


class MMGPTTextModel(MMGPTPreTrainedModel):
    """The table and the decoder: vectors of ids -> vectors."""

    config: MMGPTTextConfig
    input_modalities = ("text",)
    _can_record_outputs = {"hidden_states": MMGPTBlock, "attentions": MMGPTAttention}

    def __init__(self, config: MMGPTTextConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.decoder = Decoder(config.decoder_config(), MMGPTBlock)
        self.attentions = nn.ModuleList(MMGPTAttention(config, layer) for layer in range(config.num_hidden_layers))
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask=None,
        position_ids: Tensor | None = None,
        past_key_values=None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        use_cache: bool | None = None,
        block_sequence_ids: Int[Tensor, "B S"] | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """`position_ids`: (B, T), the same on all axes; or (4, B, T): the place in a line, for the mask, then time, row, column."""
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("pass either input_ids or inputs_embeds")
        x_BTD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        position_ids = line_positions(x_BTD, past_key_values) if position_ids is None else position_ids
        if position_ids.ndim == 2:
            position_ids = position_ids.expand(4, *position_ids.shape)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x_BTD,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids[0],
            block_sequence_ids=block_sequence_ids,
        )
        handed = Handed(self.attentions, mask, past_key_values, kwargs)
        position_BT3 = rearrange(position_ids[1:], "a b t -> b t a")
        h_BTD = self.decoder(x_BTD, position_BT3, handed, NoCache() if past_key_values is None else handed)
        return BaseModelOutputWithPast(last_hidden_state=h_BTD, past_key_values=past_key_values)


def line_positions(x_BTD: Tensor, past_key_values) -> Int[Tensor, "1 T"]:
    past = 0 if past_key_values is None else past_key_values.get_seq_length()
    return (torch.arange(x_BTD.shape[1], device=x_BTD.device) + past)[None]


class MMGPTVisionModel(MMGPTPreTrainedModel):
    """The encoder: pixels in [-1, 1] -> one vector a patch."""

    config: MMGPTVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: MMGPTVisionConfig):
        super().__init__(config)
        c = config
        self.encoder = square_encoder(c.hidden_size, c.patch_size, c.image_size, c.patch_hidden, c.conv_stem, c.tower)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: Float[Tensor, "N 3 h w"], output_hidden_states: bool | None = None, **_) -> BaseModelOutputWithPooling:
        prepared = join([self.encoder.cut(pixels) for pixels in pixel_values.to(self.dtype)])
        vectors = rearrange(self.encoder(prepared), "(n t) d -> n t d", n=len(pixel_values))
        asked = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return BaseModelOutputWithPooling(last_hidden_state=vectors, pooler_output=vectors, hidden_states=(vectors,) if asked else None)
