"""The page of estimates: its counts are those of real models, and the page is what its script prints."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from mmgpt.decoders.transformer import Decoder, decoder_preset

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scaling():
    spec = importlib.util.spec_from_file_location("scaling", ROOT / "tools" / "scaling.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["scaling"]


@pytest.mark.parametrize("depth", [4, 6, 84])
def test_weights_are_those_of_the_decoder(scaling, depth):
    config = decoder_preset(depth)
    with torch.device("meta"):
        decoder = Decoder(config)
    counted = sum(p.numel() for p in decoder.parameters() if p.ndim >= 2)
    assert scaling.weights(config) == counted + scaling.IDS * config.width
    assert counted > 0.995 * sum(p.numel() for p in decoder.parameters())  # norms are left out of the formula


def test_a_plan_fits_and_divides_the_share(scaling):
    gpu = scaling.GPU()
    for depth in scaling.SIZES.values():
        config = decoder_preset(depth)
        for ranks in scaling.RANKS:
            found = scaling.plan(config, ranks, gpu)
            if found is None:
                continue
            rows, again = found
            held = scaling.shard(config, ranks) + scaling.gathered(config) + scaling.activations(config, rows, again)
            assert held <= 0.9 * gpu.memory
            assert scaling.POSITIONS // scaling.ROW // ranks % rows == 0


def test_the_page_is_what_the_script_prints(scaling):
    assert (ROOT / "docs" / "scaling.md").read_text() == scaling.page(scaling.GPU())
