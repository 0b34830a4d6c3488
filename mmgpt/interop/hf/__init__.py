"""Importing this makes mmgpt's models known to transformers: `AutoModel…`, pipelines, PEFT, TRL.

from mmgpt.interop.hf import MMGPTProcessor, from_native
gpt = mmgpt.load("emoji")
model, processor = from_native(gpt), MMGPTProcessor.from_native(gpt)
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.auto import modeling_auto

from mmgpt.interop.hf.config import MMGPTConfig, MMGPTTextConfig, MMGPTVisionConfig
from mmgpt.interop.hf.model import MMGPTForConditionalGeneration, MMGPTForSequenceClassification, MMGPTModel
from mmgpt.interop.hf.native import from_native, to_native
from mmgpt.interop.hf.parts import MMGPTTextModel, MMGPTVisionModel
from mmgpt.interop.hf.processor import MMGPTImageProcessor, MMGPTProcessor, words_of

__all__ = ["MMGPTConfig", "MMGPTForConditionalGeneration", "MMGPTForSequenceClassification", "MMGPTModel"]
__all__ += ["MMGPTProcessor", "from_native", "to_native", "words_of"]

for config, model in ((MMGPTConfig, MMGPTModel), (MMGPTTextConfig, MMGPTTextModel), (MMGPTVisionConfig, MMGPTVisionModel)):
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, model)
for auto in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto.register(MMGPTConfig, MMGPTForConditionalGeneration)
AutoModelForSequenceClassification.register(MMGPTConfig, MMGPTForSequenceClassification)
AutoProcessor.register(MMGPTConfig, MMGPTProcessor)
AutoImageProcessor.register(MMGPTConfig, fast_image_processor_class=MMGPTImageProcessor)
AutoTokenizer.register(MMGPTConfig, fast_tokenizer_class=PreTrainedTokenizerFast)
# pipelines and test suites look by name, in tables that `register` does not touch
modeling_auto.MODEL_MAPPING_NAMES["mmgpt"] = "MMGPTModel"
modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["mmgpt"] = "MMGPTForSequenceClassification"
for table in ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM"):
    getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES")["mmgpt"] = "MMGPTForConditionalGeneration"
