"""Words, chats and pictures -> ids and pixels, written as the native layouts write them; and generated ids -> words and pictures."""

import json
from collections.abc import Sequence
from typing import no_type_check

from jaxtyping import Float, Int
from PIL.Image import Image
from tokenizers import AddedToken, Tokenizer, decoders, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import BatchFeature, MultiModalData, ProcessorMixin

from mmgpt.encoders.image import opaque
from mmgpt.encoders.text import TextCodec
from mmgpt.errors import CheckpointError, InputError
from mmgpt.interop.hf.config import MMGPTConfig
from mmgpt.interop.hf.native import picture_of
from mmgpt.model import GPT
from mmgpt.native import NativeConfig

END, BEGIN, BEGIN_IMAGE, END_IMAGE, IMAGE, PAD = "<|end|>", "<|begin|>", "<|image|>", "<|/image|>", "<image>", "<|pad|>"
CODE = "<|code_{}|>"
# every text that is given or was answered has its end; a picture has its own
CHAT = """{{- bos_token -}}
{%- macro written(content) -%}
{%- if content is string -%}{{ content + eos_token }}
{%- else -%}
{%- for part in content or [] -%}
{%- if part.type == 'image' -%}<image>{%- elif part.type == 'text' -%}{{ part.text + eos_token }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}{% generation %}{{- written(message.content) -}}{% endgeneration %}
{%- else -%}{{- written(message.content) -}}{%- endif -%}
{%- endfor -%}"""


def tokenizer_of(text: TextCodec, config: MMGPTConfig) -> PreTrainedTokenizerFast:
    """The words of a native model and, as tokens of their own, its control ids and codes: `<|code_17|>` is code 17."""
    whole = Tokenizer.from_str(text.text())
    unused = [f"<|unused_{n}|>" for n in range(config.num_text - text.num_codes)]
    codes = [CODE.format(n) for n in range(config.num_codes)]
    names = [*unused, END, BEGIN, BEGIN_IMAGE, END_IMAGE, *codes, IMAGE, PAD]
    whole.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    if whole.token_to_id(PAD) != config.pad_token_id:
        raise InputError(f"{PAD} became id {whole.token_to_id(PAD)}, the config says {config.pad_token_id}: words and config are not of one model")
    whole.decoder = decoders.Sequence([whole.decoder, decoders.Strip(" ", 1, 0)])  # the space that the first word was given
    whole.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, config.bos_token_id)])
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, bos_token=BEGIN, eos_token=END, pad_token=PAD, padding_side="left", clean_up_tokenization_spaces=False,
        model_max_length=config.text_config.max_position_embeddings, chat_template=CHAT,
    )  # fmt: skip


def words_of(tokenizer: PreTrainedTokenizerFast) -> TextCodec:
    """The native codec of the words alone."""
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    values |= {"added_tokens": [], "post_processor": None, "padding": None, "truncation": None, "decoder": values["decoder"]["decoders"][0]}
    return TextCodec.from_text(json.dumps(values))


class MMGPTImageProcessor(TorchvisionBackend):
    """Pictures -> pixels (N, 3, h, w) in [-1, 1], upright, on white where transparent, of the size that the model reads."""

    resample = PILImageResampling.BICUBIC
    size = {"height": 64, "width": 64}
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    do_resize = do_rescale = do_normalize = do_convert_rgb = True
    model_input_names = ["pixel_values"]

    def process_image(self, image, do_convert_rgb: bool | None = None, **kwargs) -> Tensor:
        if do_convert_rgb and isinstance(image, Image):
            image = opaque(image)
        return super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)


class MMGPTProcessor(ProcessorMixin):
    """A tokenizer and an image processor. `<image>` in a text becomes begin, one place a vector, end."""

    @no_type_check  # transformers reads the names of its arguments off its code, which a check of types hides
    def __init__(self, image_processor=None, tokenizer=None, chat_template: str | None = None, num_image_tokens: int = 16):
        self.num_image_tokens = num_image_tokens
        self.image_token = IMAGE
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_native(cls, gpt: GPT) -> "MMGPTProcessor":
        """Of a native model, fit for what `from_native` makes of it."""
        if not isinstance(getattr(gpt, "config", None), NativeConfig):
            raise CheckpointError("this model was not built by mmgpt.native: the adapter takes models in mmgpt's own format")
        config = MMGPTConfig.of(gpt.config)
        side, (rows, columns) = gpt.config.picture, config.read_grid
        tokenizer = tokenizer_of(gpt.ports["text"].codec, config)
        return cls(MMGPTImageProcessor(size={"height": side, "width": side}), tokenizer, CHAT, rows * columns)

    def replace_image_token(self, image_inputs: BatchFeature, image_idx: int, **kwargs) -> str:
        return BEGIN_IMAGE + IMAGE * self.num_image_tokens + END_IMAGE

    def _get_num_multimodal_tokens(self, image_sizes: Sequence | None = None, **kwargs) -> MultiModalData:
        if image_sizes is None:
            return MultiModalData()
        count = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.num_image_tokens] * count, num_image_patches=[1] * count)

    def post_process_multimodal_output(
        self, generated_outputs: Int[Tensor, "B T"] | Float[Tensor, "B 3 h w"], skip_special_tokens=True, generation_mode: str | None = None, **kwargs
    ) -> list:
        """Ids -> words; pixels, as `model.decode_image_tokens` makes them of codes, -> pictures."""
        if generation_mode == "image":
            return [picture_of(pixels) for pixels in generated_outputs]
        return super().post_process_multimodal_output(generated_outputs, skip_special_tokens, generation_mode, **kwargs)
