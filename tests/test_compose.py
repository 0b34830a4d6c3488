"""Pretrained parts, of random weights: each gives transformers' own vectors and codes, and together they learn what they are allowed to."""

import pytest
import torch
from PIL import Image
from test_interop import released
from tiny import gap, picture, tiny_gpt

import mmgpt
from mmgpt.encoders.codes import Table
from mmgpt.errors import CheckpointError, InputError
from mmgpt.interop.compose import FROZEN, LORA, TRAINED, Policy, compose, grow
from mmgpt.interop.parts import FeatureTower, ImageTower, SoundCodes, WhisperTower
from mmgpt.pack import pack
from mmgpt.train.loop import Settings, optimizers
from mmgpt.types import Audio, Part, join

SMALL = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}


def tower_folder(folder, kind: str):
    import transformers

    name = {"siglip_vision_model": "Siglip", "clip_vision_model": "CLIP", "dinov2": "Bit"}[kind]
    config = transformers.CONFIG_MAPPING[kind](**SMALL)
    model = {"siglip_vision_model": "SiglipVisionModel", "clip_vision_model": "CLIPVisionModel", "dinov2": "Dinov2Model"}[kind]
    torch.manual_seed(0)
    theirs = getattr(transformers, model)(config).eval()
    theirs.save_pretrained(folder)
    sizes = {"height": 16, "width": 16}
    size = sizes if name == "Siglip" else {"shortest_edge": 16}
    processor = getattr(transformers, f"{name}ImageProcessor")(size=size, crop_size=sizes)
    processor.save_pretrained(folder)
    return theirs, processor


@pytest.mark.parametrize("kind", ["siglip_vision_model", "clip_vision_model", "dinov2"])
def test_image_towers(kind, tmp_path):
    """The vectors of the patches, of two pictures at once, as the tower itself gives them for each."""
    theirs, processor = tower_folder(tmp_path, kind)
    tower = ImageTower.load(tmp_path).fit(8)
    tower.projector = torch.nn.Identity()
    images = [picture(1, 16), picture(2, 20)]
    prepared = join([tower.prepare(image) for image in images])
    with torch.no_grad():
        wanted = theirs(processor(images=images, return_tensors="pt")["pixel_values"]).last_hidden_state
        assert gap(tower(prepared), wanted[:, -16:].flatten(0, 1)) < 1e-5 and prepared.grids == ((1, 4, 4),) * 2
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="is a bert, no image tower"):
        ImageTower.load(tmp_path)


def test_whisper_tower(tmp_path):
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    config = WhisperConfig(d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32, decoder_layers=1, decoder_attention_heads=2)
    torch.manual_seed(0)
    theirs, extractor = WhisperModel(config).eval(), WhisperFeatureExtractor()
    theirs.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    tower = WhisperTower.load(tmp_path).fit(8)
    tower.projector = torch.nn.Identity()
    sounds = [torch.randn(5000) / 5, torch.randn(700) / 5]
    prepared = [tower.prepare(Audio(sound, 16_000)) for sound in sounds]
    assert [len(p) for p in prepared] == [16, 3]
    with torch.no_grad():
        features = extractor([s.numpy() for s in sounds], sampling_rate=16_000, return_tensors="pt")["input_features"]
        wanted = theirs.encoder(features[:1]).last_hidden_state[0, :16]
        found = tower(join(prepared))
    # what lies behind the clip is silence there as here; only the last frames see where the two silences meet
    assert gap(found[:14], wanted[:14]) < 1e-3 and found.shape == (19, 16)


def test_sound_codecs(tmp_path):
    import transformers

    small = {"codebook_size": 16, "num_filters": 4, "upsampling_ratios": [4, 2], "hidden_size": 16}
    mimi = {"num_residual_layers": 1, "vector_quantization_hidden_dimension": 8, "codebook_dim": 8, "num_quantizers": 4, "num_semantic_quantizers": 1}
    mimi |= {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 16,
        "upsample_groups": 16,
    }
    dac = {"encoder_hidden_size": 8, "downsampling_ratios": [2, 4], "decoder_hidden_size": 16, "codebook_size": 16, "codebook_dim": 4}
    sizes = {"mimi": small | mimi, "encodec": small | {"codebook_dim": 16, "num_lstm_layers": 1}, "dac": dac | {"n_codebooks": 3}}
    sound = Audio(torch.randn(480) / 4, 24_000)
    for kind, values in sizes.items():
        torch.manual_seed(0)
        theirs = getattr(transformers, {"mimi": "MimiModel", "encodec": "EncodecModel", "dac": "DacModel"}[kind])(
            transformers.CONFIG_MAPPING[kind](**values, sampling_rate=24_000)
        ).eval()
        theirs.save_pretrained(tmp_path / kind)
        codec = SoundCodes.load(tmp_path / kind)
        with torch.no_grad():
            wanted = theirs.encode(sound.samples[None, None]).audio_codes
            codes = codec.encode(sound)
            assert codes.tolist() == wanted.reshape(codes.shape).tolist() and codes.ndim == 2 and codec.num_codes == 16, kind
            made = theirs.decode(wanted, [None]) if kind == "encodec" else theirs.decode(audio_codes=wanted)
            assert gap(codec.decode(codes).samples, made.audio_values.reshape(-1)) < 1e-4 and codec.decode(codes).rate == 24_000, kind


class Shades(torch.nn.Module):
    """A tower that sees how bright each quarter is."""

    def forward(self, pixels):
        return torch.nn.functional.adaptive_avg_pool2d(pixels, 2).repeat(1, 4, 1, 1)


def captioner(tmp_path, spread=0.1, **policy):
    released(tmp_path / "text", "llama", {"tie_word_embeddings": True, "initializer_range": spread})
    codec = tiny_gpt().ports["image"].codec
    tower = FeatureTower(Shades(), 16, 2, 12)
    return compose(tmp_path / "text", tower, codec, image_grid=(1, 2, 4), policy=policy)


def test_a_composition_reads_and_draws(tmp_path):
    """Words keep their ids and their vectors; new ids are no likelier than words; a picture goes in and one comes out."""
    old = None
    gpt = captioner(tmp_path, decoder=FROZEN)
    old = mmgpt.load(tmp_path / "text")
    stream = pack([gpt.write([Part("a red apple")])], gpt.spans)
    with torch.no_grad():
        assert gap(gpt(stream), old(stream)) == 0
    assert torch.equal(gpt.table.weight[:320], old.table.weight) and gpt.table.num_embeddings == 320 + 2 + 16
    new, rows = gpt.table.weight[320:].detach(), old.table.weight.detach()
    assert gap(new.mean(0), rows.mean(0)) < 0.02 and 0 < float(new.std(0).mean()) < 0.2 * float(rows.std(0).mean())
    assert gpt.ports["text"].writes.ids.stop == 320 and gpt.spans["image"].start == 322
    assert isinstance(gpt.generate([picture(), "a"], to="text"), str) and gpt.generate(["a"], to="image", guidance=1.0).size == (16, 16)
    assert mmgpt.load(tmp_path / "text").generate(["a red"]) == gpt.generate(["a red"])


def test_new_rows_start_near_the_mean_of_the_old():
    old, new = Table(50, 8), Table(90, 8)
    torch.nn.init.normal_(old.weight, 3.0)
    grow(new, old)
    assert torch.equal(new.weight[:50], old.weight) and gap(new.weight[50:].mean(0), old.weight.mean(0)) < 0.1


def test_policies_say_what_is_trained(tmp_path):
    pytest.importorskip("peft", reason="LoRA is PEFT's")
    gpt = captioner(tmp_path, 0.5, decoder=LORA, table=FROZEN, projector=Policy(rate=3.0))
    trained = {name for name, p in gpt.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name or name.startswith("encoders.image.projector") for name in trained)
    assert any("blocks.2.attention.qkv.lora_A" in name for name in trained) and any(name.startswith("encoders") for name in trained)
    groups = optimizers(gpt, {name: p for name, p in gpt.named_parameters() if p.requires_grad}, Settings())[0].param_groups
    assert {group["factor"] for group in groups} == {1.0, 3.0}
    before = {name: p.detach().clone() for name, p in gpt.named_parameters()}
    examples = [(Image.new("RGB", (16, 16), color), word) for color, word in [("red", "red"), ("green", "green apple"), ("white", "a")]]
    stream = pack([gpt.write([Part(image), Part(word, learn=True)]) for image, word in examples], gpt.spans)
    optimizer = torch.optim.AdamW([p for p in gpt.parameters() if p.requires_grad], lr=2e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss = gpt.losses(stream)["text"].mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5
    assert all(torch.equal(p, before[name]) == (name not in trained) for name, p in gpt.named_parameters())


def test_what_cannot_be_composed(tmp_path):
    with pytest.raises(InputError, match="0 parts"):
        compose(tiny_gpt())
    with pytest.raises(InputError, match="policy for 'wings'"):
        compose(tiny_gpt(), image_out=tiny_gpt().ports["image"].codec, policy={"wings": TRAINED})
    with pytest.raises(InputError, match="how='sometimes'"):
        Policy("sometimes")
