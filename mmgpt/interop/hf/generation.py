"""`generate` of the adapter: words, and codes step by step, by transformers' loop; whole guided pictures by the native engine."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GenerationMixin, LogitsProcessorList
from transformers.masking_utils import create_masks_for_generate

from mmgpt.errors import InputError
from mmgpt.generate.sampling import GREEDY, Sampling
from mmgpt.interop.hf.places import Grammar, blocks, offsets, placed

SAMPLED = ("temperature", "top_k", "top_p", "min_p")
PASSED_OVER = ("max_new_tokens", "max_length", "use_cache", "pad_token_id", "eos_token_id", "bos_token_id", "tokenizer", "cache_implementation")


class MMGPTGenerationMixin(GenerationMixin):
    """What of generation is the model's own: places of pictures, the grammar of what may come next, `generation_mode="image"`."""

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, is_first_iteration=False, **kwargs):
        inputs = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, attention_mask=attention_mask, is_first_iteration=is_first_iteration, **kwargs
        )
        line_BT, ids_BT = inputs.get("position_ids"), inputs.get("input_ids")
        count = (inputs["inputs_embeds"] if ids_BT is None else ids_BT).shape[1]
        if line_BT is not None and line_BT.ndim == 2:
            known_BT = nn.functional.pad(input_ids, (max(0, count - input_ids.shape[1]), 0))  # places of vectors without ids are those of words
            inputs["position_ids"] = placed(line_BT, offsets(known_BT, self.config)[..., -count:])
        mask = inputs.get("attention_mask")
        if inputs.get("pixel_values") is not None and isinstance(mask, Tensor) and mask.ndim == 4:
            inputs["attention_mask"] = self.mask_with_pictures(inputs, input_ids, attention_mask)
        return inputs

    def mask_with_pictures(self, inputs: dict, input_ids: Int[Tensor, "B S"], attention_mask) -> Tensor:
        """The mask that a static cache needs beforehand, with pictures read as a whole."""
        batch, count = inputs["position_ids"].shape[1:]
        return create_masks_for_generate(
            config=self.config,
            inputs_embeds=torch.empty(batch, count, 0, dtype=self.dtype, device=input_ids.device),
            attention_mask=attention_mask,
            past_key_values=inputs["past_key_values"],
            position_ids=inputs["position_ids"][0],
            block_sequence_ids=blocks(input_ids == self.config.image_token_id),
        )

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **kwargs):
        """Beams and several answers: each gets all pictures of its prompt, in their order."""
        pixels = kwargs.pop("pixel_values", None)
        if pixels is not None:
            rows, columns = self.config.read_grid
            counts = (self.model.placeholders(input_ids, kwargs.get("inputs_embeds")).sum(1) // (rows * columns)).tolist()
            if sum(counts) != len(pixels):
                raise InputError(f"Image features and image tokens do not match: {len(pixels)} pictures, places for {sum(counts)}")
            pixels = torch.cat([group for group in pixels.split(counts) for _ in range(expand_size)])
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, kwargs if pixels is None else kwargs | {"pixel_values": pixels}

    def _get_logits_processor(self, *args, **kwargs) -> LogitsProcessorList:
        return LogitsProcessorList([Grammar(self.config), *super()._get_logits_processor(*args, **kwargs)])

    @torch.no_grad()
    def generate(self, inputs=None, generation_mode: str = "text", guidance_scale: float | None = None, **kwargs):
        """`generation_mode` "text": transformers' own `generate`. "image": ids of codes (B, N), drawn by the engine with guidance."""
        if generation_mode == "text":
            return super().generate(inputs, guidance_scale=guidance_scale, **kwargs)
        if generation_mode != "image":
            raise InputError(f"generation_mode={generation_mode!r}: this model writes {' and '.join(self.output_modalities)}")
        given = inputs if inputs is not None else kwargs.pop("input_ids", None)
        if given is None:
            raise InputError('generation_mode="image" without input_ids: pass what the processor makes of the words')
        return self.draw(given, guidance_scale, **kwargs)

    def draw(
        self, input_ids: Int[Tensor, "B T"], guidance_scale: float | None = None, pixel_values=None, attention_mask=None,
        num_return_sequences: int | None = None, generation_config=None, **kwargs,
    ) -> Int[Tensor, "M N"]:  # fmt: skip
        """One picture a prompt and answer, M = B × num_return_sequences, as ids of codes.

        `do_sample` False: the likeliest codes; True, or where temperature, top_k, top_p or min_p is given: drawn so; None: as the checkpoint says.
        A `generation_config` that is passed says what is not said here. What would change nothing is passed over, all else refused.
        """
        from mmgpt.generate.engine import Request, run
        from mmgpt.interop.hf.native import parts, view

        said = {} if generation_config is None else generation_config.to_diff_dict()
        settings = {"sampling": self.how_to_draw(said, kwargs), "guidance": said.get("guidance_scale") if guidance_scale is None else guidance_scale}
        answers = num_return_sequences or said.get("num_return_sequences") or 1
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompts = parts(self, [ids[kept > 0].tolist() for ids, kept in zip(input_ids, mask, strict=True)], pixel_values)
        requests = [Request(prompt, "image", seed=int(torch.randint(2**62, ())), **settings) for prompt in prompts for _ in range(answers)]
        codes = [torch.from_numpy(result.codes).flatten() for result in run(view(self), requests)]
        return torch.stack(codes).to(input_ids.device) + self.config.first_code_id

    def how_to_draw(self, said: dict, kwargs: dict) -> Sampling | None:
        """The sampling that a call asks for, or what was `said` of it before; None: the checkpoint's own."""
        rows, columns = self.config.written_grid
        names = (*SAMPLED, "do_sample")
        asked = {name: said[name] for name in names if name in said} | {
            name: value for name in names if (value := kwargs.pop(name, None)) is not None
        }
        for name, value in kwargs.items():
            if value is None or value is False or (name == "num_beams" and value == 1):
                continue
            if name not in PASSED_OVER or (name in ("max_new_tokens", "max_length") and value < rows * columns):
                raise InputError(
                    f"{name}={value!r}: a picture is drawn whole, {rows * columns} codes, without beams; "
                    f"known are guidance_scale, num_return_sequences, do_sample, {', '.join(SAMPLED)}"
                )
        sampled = asked.pop("do_sample", True if asked else None)
        return None if sampled is None else Sampling(**asked) if sampled else GREEDY

    def decode_image_tokens(self, image_tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B 3 h w"]:
        """Ids of codes -> pixels in [-1, 1]; ids of anything else in a row are left out."""
        first, (rows, columns) = self.config.first_code_id, self.config.written_grid
        chosen = [ids[(ids >= first) & (ids < self.config.image_token_id)] - first for ids in image_tokens]
        for ids in chosen:
            if len(ids) != rows * columns:
                raise InputError(f"{len(ids)} codes in a row, a picture has {rows}x{columns}: pass the {rows * columns} of one picture")
        return self.model.codec.codec.decode(torch.stack(chosen).view(-1, rows, columns))
