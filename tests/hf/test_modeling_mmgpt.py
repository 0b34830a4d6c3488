"""transformers' own ModelTesterMixin on the adapter's model. Run by `make test-hf`, inside a copy of transformers' tests."""

import unittest

from mmgpt.decoders.image_codec import ImageCodecConfig
from mmgpt.decoders.transformer import DecoderConfig
from mmgpt.interop.hf import MMGPTConfig, MMGPTForConditionalGeneration, MMGPTForSequenceClassification, MMGPTModel
from mmgpt.native import NativeConfig

from ...generation.test_utils import GenerationTesterMixin
from ...test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor, random_attention_mask

DECODER = DecoderConfig(width=32, depth=2, num_heads=4, num_kv_heads=2, head_width=8, mlp_width=48)
NATIVE = NativeConfig(DECODER, ImageCodecConfig((8, 4), (4, 4), 16, 1), num_text=60, picture=16, patch=8, max_length=512)
SPARE = 40  # ids behind the last one: two tests shrink the vocabulary, and the placeholder must stay in it


class MMGPTModelTester:
    batch_size, seq_length, key_length, num_image_tokens = 3, 14, 14, 4
    num_hidden_layers, num_attention_heads, hidden_size = DECODER.depth, DECODER.num_heads, DECODER.width
    is_training = True

    def __init__(self, parent):
        self.parent = parent

    def get_config(self) -> MMGPTConfig:
        config = MMGPTConfig.of(NATIVE)
        config.text_config.vocab_size += SPARE
        return config

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        input_ids = ids_tensor([self.batch_size, self.seq_length], NATIVE.num_text)
        input_ids[:, 1], input_ids[:, 2:6], input_ids[:, 6] = config.begin_image_id, config.image_token_id, config.end_image_id
        attention_mask = random_attention_mask([self.batch_size, self.seq_length]).fill_(1)
        pixels = floats_tensor([self.batch_size, 3, NATIVE.picture, NATIVE.picture])
        return config, {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixels}


class MMGPTModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (MMGPTModel, MMGPTForConditionalGeneration, MMGPTForSequenceClassification)
    _is_composite = True
    test_can_init_all_missing_weights_before_2023 = True  # our files tell no year
    test_all_params_have_gradient = False  # the codec of what is drawn is frozen, and takes no part in a forward pass

    def setUp(self):
        self.model_tester = MMGPTModelTester(self)

    def _image_features_get_expected_num_hidden_states(self, model_tester=None):
        return 1  # one step from patches to vectors

    @unittest.skip("the encoder of pictures is patches and convolutions: it has no attention")
    def test_get_image_features_attentions(self):
        pass


if __name__ == "__main__":
    unittest.main()
