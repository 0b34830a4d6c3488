"""transformers' own ProcessorTesterMixin on the adapter's processor. Run by `make test-hf`, inside a copy of transformers' tests."""

import unittest

from mmgpt.encoders.text import TextCodec
from mmgpt.interop.hf import MMGPTConfig, MMGPTProcessor
from mmgpt.interop.hf.processor import CHAT, MMGPTImageProcessor, tokenizer_of

from ...test_processing_common import ProcessorTesterMixin
from .test_modeling_mmgpt import NATIVE

WORDS = TextCodec.train(["a red apple", "a green apple", "caption: a small cat"] * 3, 300)


class MMGPTProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = MMGPTProcessor

    @classmethod
    def _setup_tokenizer(cls):
        from dataclasses import replace

        return tokenizer_of(WORDS, MMGPTConfig.of(replace(NATIVE, num_text=WORDS.num_codes)))

    @classmethod
    def _setup_image_processor(cls):
        return MMGPTImageProcessor(size={"height": NATIVE.picture, "width": NATIVE.picture})

    @staticmethod
    def prepare_processor_dict():
        return {"num_image_tokens": 4, "chat_template": CHAT}


if __name__ == "__main__":
    unittest.main()
