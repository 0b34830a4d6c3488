"""ids and pixels -> logits and generated ids, as transformers asks for them, by the native decoder, encoder and codec."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import can_return_tuple, torch_compilable_check

from mmgpt.decoders.image_codec import ImageCodec, PictureCodec
from mmgpt.errors import InputError
from mmgpt.interop.hf.config import MMGPTConfig
from mmgpt.interop.hf.generation import MMGPTGenerationMixin
from mmgpt.interop.hf.parts import MMGPTPreTrainedModel, MMGPTTextModel, MMGPTVisionModel, line_positions
from mmgpt.interop.hf.places import blocks, offsets, placed


class MMGPTModel(MMGPTPreTrainedModel):
    """Table, encoder, decoder, and the codec of what is drawn: ids and pixels -> vectors."""

    def __init__(self, config: MMGPTConfig):
        super().__init__(config)
        self.language_model = MMGPTTextModel(config.text_config)
        self.vision_tower = MMGPTVisionModel(config.vision_config)
        with torch.device("cpu"):  # its quantiser computes its constants, which nothing can on the device "meta"
            self.codec = PictureCodec(ImageCodec(config.codec_config()), config.vision_config.image_size)
        self.codec.requires_grad_(False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.embed_tokens = value

    @can_return_tuple
    def get_image_features(self, pixel_values: Float[Tensor, "N 3 h w"], **kwargs) -> BaseModelOutputWithPooling:
        """One vector a patch: `pooler_output` (N, patches, D)."""
        return self.vision_tower(pixel_values, return_dict=True, **kwargs)

    def placeholders(self, input_ids: Int[Tensor, "B T"] | None, inputs_embeds: Float[Tensor, "B T D"] | None):
        """Where places of vectors stand, by the ids, or by the vectors of a row that came without ids."""
        if input_ids is not None and input_ids.shape[1]:
            return input_ids == self.config.image_token_id
        placeholder = torch.full((), self.config.image_token_id, dtype=torch.long, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(placeholder)).all(-1)

    def get_placeholder_mask(self, input_ids, inputs_embeds: Float[Tensor, "B T D"], vectors: Float[Tensor, "N P D"]):
        """Where the pictures' vectors go; refused where there are more or fewer places than vectors."""
        at_BT = self.placeholders(input_ids, inputs_embeds)
        count = at_BT.sum()
        torch_compilable_check(
            count * vectors.shape[-1] == vectors.numel(),
            f"Image features and image tokens do not match, tokens: {count}, features: {vectors.shape[0] * vectors.shape[1]}",
        )
        return at_BT

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        pixel_values: Float[Tensor, "N 3 h w"] | None = None,
        attention_mask=None,
        position_ids: Tensor | None = None,
        past_key_values=None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """`position_ids` as in `MMGPTTextModel`; (B, T) is the place in a line, and pictures get their grids by themselves: those among the
        ids, and those of `pixel_values`. What the cache holds is not looked at: `generate` knows where a picture goes on, a loop of
        one's own passes (4, B, T)."""
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("pass either input_ids or inputs_embeds")
        x_BTD = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        block_BT, known_BT = None, input_ids
        if pixel_values is not None:
            vectors = self.get_image_features(pixel_values, return_dict=True).pooler_output.to(x_BTD)
            at_BT = self.get_placeholder_mask(input_ids, x_BTD, vectors)
            x_BTD = x_BTD.masked_scatter(at_BT[..., None], vectors)
            known_BT = torch.where(at_BT, self.config.image_token_id, 0) if input_ids is None else input_ids
            block_BT = behind_past(blocks(at_BT), past_key_values)
        if position_ids is None:
            position_ids = line_positions(x_BTD, past_key_values).expand(x_BTD.shape[:2])
        if position_ids.ndim == 2 and known_BT is not None:
            position_ids = placed(position_ids, offsets(known_BT, self.config))
        return self.language_model(
            inputs_embeds=x_BTD,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            block_sequence_ids=block_BT,
            **kwargs,
        )


def behind_past(block_BT: Int[Tensor, "B T"], past_key_values) -> Int[Tensor, "B S"]:
    """Numbers of the blocks of all positions that the cache will hold: what it holds already is read as it was."""
    past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
    return nn.functional.pad(block_BT, (past, 0), value=-1)


class MMGPTForConditionalGeneration(MMGPTPreTrainedModel, MMGPTGenerationMixin):
    """The whole model: ids and pixels -> scores of all ids; `generate` writes words or draws."""

    output_modalities = ("text", "image")
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: MMGPTConfig):
        super().__init__(config)
        self.model = MMGPTModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(self, pixel_values: Float[Tensor, "N 3 h w"], **kwargs) -> BaseModelOutputWithPooling:
        return self.model.get_image_features(pixel_values, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        pixel_values: Float[Tensor, "N 3 h w"] | None = None,
        attention_mask=None,
        position_ids: Tensor | None = None,
        past_key_values=None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        out = self.model(input_ids, pixel_values, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss, logits, out.past_key_values, out.hidden_states, out.attentions)


class MMGPTForSequenceClassification(GenericForSequenceClassification, MMGPTPreTrainedModel):
    """A score a text: what reward models are."""
