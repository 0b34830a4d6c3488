"""Pretrained parts, of random weights: each gives transformers' own vectors and codes, and together they learn what they are allowed to."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from test_interop import released
from tiny import gap, learned, picture, tiny_gpt

import mmgpt
from mmgpt.errors import CheckpointError, InputError
from mmgpt.interop.compose import FROZEN, LORA, TRAINED, Composed, Policy, adapt, check_part, check_policy, compose, grown, merge
from mmgpt.interop.parts import FeatureTower, ImageTower, WhisperTower
from mmgpt.interop.sounds import SoundCodes
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


def test_towers_whose_pictures_are_not_as_their_config_says(tmp_path):
    """Patches that do not divide the side (SigLIP so400m); pictures of another size than it was trained with (DINOv2); transparent ones."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model, SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    small = SMALL | {"image_size": 20, "patch_size": 6}
    siglip = SiglipVisionModel(SiglipVisionConfig(**small)), SiglipImageProcessor(size={"height": 20, "width": 20})
    crop = {"height": 16, "width": 16}
    dino = Dinov2Model(Dinov2Config(**SMALL | {"image_size": 32})), BitImageProcessor(size={"shortest_edge": 16}, crop_size=crop)
    for name, (theirs, processor), count in (("siglip", siglip, 9), ("dino", dino, 16)):
        theirs.eval().save_pretrained(tmp_path / name)
        with pytest.raises(CheckpointError, match="preprocessor_config.json"):
            ImageTower.load(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        tower = ImageTower.load(tmp_path / name).fit(8)
        tower.projector = torch.nn.Identity()
        clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
        with torch.no_grad():
            white = processor(images=[picture(1, 16), Image.new("RGB", (16, 16), "white")], return_tensors="pt")["pixel_values"]
            wanted = theirs(white).last_hidden_state[:, -count:].flatten(0, 1)
            assert gap(tower(join([tower.prepare(picture(1, 16)), tower.prepare(clear)])), wanted) < 1e-5, name


def test_a_tower_keeps_its_projector():
    tower = FeatureTower(Shades(), 16, 2, 12).fit(8)
    trained = tower.projector
    assert tower.fit(8).projector is trained
    with pytest.raises(InputError, match="a projector to 8 for a decoder of width 16"):
        tower.fit(16)


def test_whisper_tower(tmp_path):
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    config = WhisperConfig(d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32, decoder_layers=1, decoder_attention_heads=2)
    torch.manual_seed(0)
    theirs, extractor = WhisperModel(config).eval(), WhisperFeatureExtractor()
    theirs.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    tower = WhisperTower.load(tmp_path).fit(8)
    tower.projector = torch.nn.Identity()
    sounds = [torch.randn(5000) / 5, 0.9 * torch.sin(torch.arange(5000) / 9)]  # the extractor's silence follows the loudness of a clip
    prepared = [tower.prepare(Audio(sound, 16_000)) for sound in sounds]
    assert [len(p) for p in prepared] == [16, 16]
    with torch.no_grad():
        features = extractor([s.numpy() for s in sounds], sampling_rate=16_000, return_tensors="pt")["input_features"]
        wanted = theirs.encoder(features).last_hidden_state
        found = tower(join(prepared))
    # what lies behind the clip is silence there as here; only the last frames see where the two silences meet
    assert gap(found[:14], wanted[0, :14]) < 1e-3 and gap(found[16:30], wanted[1, :14]) < 1e-5 and found.shape == (32, 16)


SMALL_CODEC = {"codebook_size": 16, "num_filters": 4, "upsampling_ratios": [4, 2], "hidden_size": 16}
MIMI = {"num_residual_layers": 1, "vector_quantization_hidden_dimension": 8, "codebook_dim": 8, "num_quantizers": 4, "num_semantic_quantizers": 1}
MIMI |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 16, "upsample_groups": 16}
DAC = {"encoder_hidden_size": 8, "downsampling_ratios": [2, 4], "decoder_hidden_size": 16, "codebook_size": 16, "codebook_dim": 4, "n_codebooks": 3}
SOUND = {"mimi": SMALL_CODEC | MIMI, "encodec": SMALL_CODEC | {"codebook_dim": 16, "num_lstm_layers": 1}, "dac": DAC}


def test_sound_codecs(tmp_path):
    import transformers

    sound = Audio(torch.randn(480) / 4, 24_000)
    for kind, values in SOUND.items():
        torch.manual_seed(0)
        theirs = getattr(transformers, {"mimi": "MimiModel", "encodec": "EncodecModel", "dac": "DacModel"}[kind])(
            transformers.CONFIG_MAPPING[kind](**values, sampling_rate=24_000)
        ).eval()
        theirs.save_pretrained(tmp_path / kind)
        codec = SoundCodes.load(tmp_path / kind)
        with torch.no_grad():
            wanted = theirs.encode(sound.samples[None, None]).audio_codes
            codes = codec.encode(sound)
            assert codes.T.tolist() == wanted.reshape(codes.T.shape).tolist() and codes.ndim == 2 and codec.num_codes == 16, kind
            made = theirs.decode(wanted, [None]) if kind == "encodec" else theirs.decode(audio_codes=wanted)
            assert gap(codec.decode(codes).samples, made.audio_values.reshape(-1)) < 1e-4 and codec.decode(codes).rate == 24_000, kind


def test_fewer_codes_of_a_frame(tmp_path):
    """`quantizers` is the number of codes a frame, whatever the codec calls it; what it cannot do is refused when it is loaded."""
    import transformers

    sound, names = Audio(torch.randn(480) / 4, 24_000), {"mimi": "MimiModel", "encodec": "EncodecModel", "dac": "DacModel"}
    for kind, values in SOUND.items():
        values = values | ({"target_bandwidths": [12.0, 36.0]} if kind == "encodec" else {})  # 3,000 frames a second of 4 bits
        getattr(transformers, names[kind])(transformers.CONFIG_MAPPING[kind](**values, sampling_rate=24_000)).save_pretrained(tmp_path / kind)
        few = 1 if kind == "encodec" else 2
        assert SoundCodes.load(tmp_path / kind, few).encode(sound).shape[1] == few
        with pytest.raises(InputError, match="quantizers=40"):
            SoundCodes.load(tmp_path / kind, 40)
    with pytest.raises(InputError, match="quantizers=2: this EnCodec writes 1, 3 codes a frame"):
        SoundCodes.load(tmp_path / "encodec", 2)
    with pytest.raises(CheckpointError, match="a codec of 2 channels"):
        SoundCodes(transformers.EncodecModel(transformers.EncodecConfig(**SOUND["encodec"], audio_channels=2)))


@pytest.mark.parametrize("kind", ["mimi", "encodec", "dac"])
def test_a_composition_speaks(tmp_path, kind):
    """Codes of a released sound codec, frame by frame, are written and read; the folder of it all speaks alike."""
    import transformers

    torch.manual_seed(0)
    name = {"mimi": "MimiModel", "encodec": "EncodecModel", "dac": "DacModel"}[kind]
    getattr(transformers, name)(transformers.CONFIG_MAPPING[kind](**SOUND[kind], sampling_rate=24_000)).eval().save_pretrained(tmp_path / "codec")
    released(tmp_path / "text", "llama", {"tie_word_embeddings": True})
    codec = SoundCodes.load(tmp_path / "codec")
    gpt = compose(tmp_path / "text", audio_out=codec, seconds=0.004, policy={"decoder": FROZEN})
    frames, _, quantizers = gpt.ports["audio"].grid
    sound = Audio(torch.randn(480) / 4, 24_000)
    (written,) = gpt.write([Part(sound, learn=True)])[-1:]
    assert len(written) == 2 + codec.encode(sound).size and codec.encode(sound).shape[1] == quantizers
    made = gpt.generate(["a red"], to="audio", seed=1)
    assert made.rate == 24_000 and made.samples.numel() and frames >= 1
    again = mmgpt.load(mmgpt.save(gpt, tmp_path / "both"))
    assert gap(again.generate(["a red"], to="audio", seed=1).samples, made.samples) < 1e-4


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
    old = torch.randn(50, 8) + 3
    new = grown(old, 90)
    assert torch.equal(new[:50], old) and gap(new[50:].mean(0), old.mean(0)) < 0.1 and grown(old.bfloat16(), 51).dtype == torch.bfloat16


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
    assert learned(gpt, stream, "text", 2e-2, 100) < 0.5
    assert all(torch.equal(p, before[name]) == (name not in trained) for name, p in gpt.named_parameters())


def test_what_cannot_be_composed(tmp_path):
    with pytest.raises(InputError, match="0 parts"):
        compose(tiny_gpt())
    with pytest.raises(InputError, match="policy for 'wings'"):
        compose(tiny_gpt(), image_out=tiny_gpt().ports["image"].codec, policy={"wings": TRAINED})
    with pytest.raises(InputError, match="how='sometimes'"):
        Policy("sometimes")
    with pytest.raises(InputError, match="image_out for a decoder with 2 ports, text, image: it has one for image already"):
        compose(tiny_gpt(), image_out=tiny_gpt().ports["image"].codec)
    released(tmp_path / "text", "llama", {})
    with pytest.raises(InputError, match="image_in of type Conv2d has no prepare"):
        compose(tmp_path / "text", image_in=torch.nn.Conv2d(3, 3, 1))
    with pytest.raises(InputError, match="image_out of type str has no decode: pass a codec"):
        check_part("image_out", "folder")
    for wrong, match in (("frozen", "policy='frozen': pass a part and its Policy"), ({"decoder": "frozen"}, "policy decoder='frozen': use FROZEN")):
        with pytest.raises(InputError, match=match):
            check_policy(wrong)


def test_what_is_refused_changes_nothing(tmp_path):
    """A decoder with LoRA goes on learning when somebody tries to compose with it again."""
    released(tmp_path / "text", "llama", {})
    decoder, codec = mmgpt.load(tmp_path / "text"), tiny_gpt().ports["image"].codec
    gpt = compose(decoder, image_out=codec, image_grid=(1, 2, 4))
    learns = {name for name, p in gpt.named_parameters() if p.requires_grad}
    assert any("lora_A" in name for name in learns)
    with pytest.raises(InputError, match="layers have LoRA already"):
        compose(decoder, image_out=codec)
    assert {name for name, p in gpt.named_parameters() if p.requires_grad} == learns


def test_a_codec_stays_exact_in_a_rounded_folder(tmp_path):
    released(tmp_path / "text", "llama", {})
    codec = tiny_gpt().ports["image"].codec
    gpt = compose(tmp_path / "text", image_out=codec, image_grid=(1, 2, 4), policy={"decoder": FROZEN})
    again = mmgpt.load(mmgpt.save(gpt, tmp_path / "half", dtype="bfloat16"))
    assert again.table.weight.dtype == torch.bfloat16
    assert all(torch.equal(one, two) for one, two in zip(again.codecs.parameters(), gpt.codecs.parameters(), strict=True))
    assert again.draw(["a red"])[0].size == (16, 16)


# --- saved = loaded ----------------------------------------------------------------------------------------------------------------------


def shown(gpt) -> list[torch.Tensor]:
    """Scores of words after a picture, a sound and words, of both heads."""
    sample = [Part("a red"), Part(picture(4, 16)), Part("apple", learn=True)]
    sample += [Part(Audio(torch.linspace(-1, 1, 900), 16_000))] if "audio" in gpt.ports else []
    stream = pack([gpt.write(sample)], gpt.spans)
    with torch.no_grad():
        return [head.logits(gpt(stream)[0]) for head in gpt.heads.values()]


def whisper_folder(folder):
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    config = WhisperConfig(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, decoder_layers=1, decoder_attention_heads=2)
    WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return folder


def whole(tmp_path):
    """A text model that adapts, a frozen tower, a codec; and, composed with that in a second step, a tower of sound."""
    pytest.importorskip("peft", reason="LoRA is PEFT's")
    released(tmp_path / "text", "llama", {"initializer_range": 0.1})
    tower_folder(tmp_path / "eyes", "siglip_vision_model")
    gpt = compose(tmp_path / "text", tmp_path / "eyes", tiny_gpt().ports["image"].codec, image_grid=(1, 2, 4), policy={"table": Policy(rate=0.5)})
    gpt = compose(gpt, audio_in=whisper_folder(tmp_path / "ears"), policy={"decoder": FROZEN})
    for name, parameter in gpt.named_parameters():
        if "lora_B" in name:  # they start with nothing to add
            torch.nn.init.normal_(parameter, std=0.1)
    return gpt


def test_a_composition_is_saved_and_loaded(tmp_path):
    """From its folder alone: equal scores, settings and drawings, adapters beside the weights; nothing of the parts' folders is needed."""
    gpt = whole(tmp_path)
    mmgpt.save(gpt, tmp_path / "saved")
    for name in ("text", "eyes", "ears"):
        (tmp_path / name).rename(tmp_path / f"{name}, moved")
    again = mmgpt.load(tmp_path / "saved")
    assert again.config == gpt.config and isinstance(again.config.decoder, Composed) and again.rates == gpt.rates
    assert [name for name, p in again.named_parameters() if p.requires_grad] == [name for name, p in gpt.named_parameters() if p.requires_grad]
    assert any("lora_A" in name for name in again.state_dict()) and again.config.decoder.policy["table"].rate == 0.5
    assert all(gap(a, b) == 0 for a, b in zip(shown(gpt), shown(again), strict=True))
    assert gpt.draw(["a red"], seed=3)[0].tobytes() == again.draw(["a red"], seed=3)[0].tobytes()
    half = mmgpt.load(mmgpt.save(again, tmp_path / "half", torch.bfloat16))
    assert half.table.weight.dtype == torch.bfloat16 and half.decoder.norm.weight.dtype == torch.bfloat16
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()
    from mmgpt.info import info

    lines = info(tmp_path / "saved", again)
    assert all(word in lines for word in ("siglip_vision_model", "whisper", "picture codec", "model.safetensors", "frozen"))


def test_merged_adapters_are_the_same_model(tmp_path):
    """The same scores from plain layers, in memory and from the folder; a second adapter needs the first to be merged."""
    gpt = whole(tmp_path)
    before = shown(gpt)
    with pytest.raises(InputError, match="12 layers have LoRA already"):
        adapt(gpt.decoder, 4)
    merged = merge(gpt)
    assert merged is gpt and not any("lora" in name or "base_layer" in name for name in gpt.state_dict())
    assert all(gap(a, b) < 1e-5 for a, b in zip(before, shown(gpt), strict=True))
    again = mmgpt.load(mmgpt.save(gpt, tmp_path / "saved"))
    assert again.config == gpt.config and all(gap(a, b) == 0 for a, b in zip(shown(gpt), shown(again), strict=True))


def test_a_part_of_ones_own_is_given_again(tmp_path):
    """Its weights are in the folder, its code is not."""
    gpt = captioner(tmp_path, decoder=FROZEN)
    mmgpt.save(gpt, tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"its image_in was a FeatureTower .* pass mmgpt.load\(.*parts=\{'image_in': it\}\)"):
        mmgpt.load(tmp_path / "saved")
    again = mmgpt.load(tmp_path / "saved", parts={"image_in": FeatureTower(Shades(), 16, 2, 12)})
    assert all(gap(a, b) == 0 for a, b in zip(shown(gpt), shown(again), strict=True))
    with pytest.raises(InputError, match="no part 'audio_in'"):
        mmgpt.load(tmp_path / "saved", parts={"image_in": FeatureTower(Shades(), 16, 2, 12), "audio_in": Shades()})
    with pytest.raises(InputError, match="a released model: only a composed one"):
        mmgpt.load(tmp_path / "text", parts={"image_in": Shades()})


def test_any_model_is_saved(tmp_path):
    """Ours in our format, a released one in transformers', one that was built by hand not at all."""
    own = tiny_gpt()
    assert gap(shown(mmgpt.load(mmgpt.save(own, tmp_path / "own")))[0], shown(own)[0]) == 0
    released(tmp_path / "text", "llama", {})
    gpt = mmgpt.load(tmp_path / "text")
    assert gap(mmgpt.load(mmgpt.save(gpt, tmp_path / "again")).table.weight, gpt.table.weight) == 0 and (tmp_path / "again" / "config.json").is_file()
    composed = compose(tiny_gpt(), audio_in=whisper_folder(tmp_path / "ears"), policy={"decoder": TRAINED})
    assert all(gap(a, b) == 0 for a, b in zip(shown(composed), shown(mmgpt.load(mmgpt.save(composed, tmp_path / "both"))), strict=True))
    own.config = None
    for gpt in (own, compose(own, audio_in=tmp_path / "ears", policy={"decoder": FROZEN})):
        with pytest.raises(CheckpointError, match="built by hand"):
            mmgpt.save(gpt, tmp_path / "hand")


@pytest.mark.parametrize("kind", ["chameleon", "emu3", "janus"])
def test_a_released_codec_draws_for_another_model(kind, tmp_path):
    """The codec of one model with the decoder of another, saved and loaded."""
    import test_released

    getattr(test_released, kind)(tmp_path / kind)
    released(tmp_path / "text", "llama", {})
    codec = mmgpt.load(tmp_path / kind).ports["image"].codec
    gpt = compose(tmp_path / "text", image_out=codec, image_grid=(1, 4, 4), policy={"decoder": FROZEN})
    again = mmgpt.load(mmgpt.save(gpt, tmp_path / "saved"))
    assert again.ports["image"].codec.encode(picture(3)).tolist() == codec.encode(picture(3)).tolist()
    assert all(gap(a, b) == 0 for a, b in zip(shown(gpt), shown(again), strict=True))
    if kind != "chameleon":
        assert gpt.draw(["a red"], seed=3)[0].tobytes() == again.draw(["a red"], seed=3)[0].tobytes()


def test_a_head_and_a_table_of_the_decoders_own_stay(tmp_path):
    """Janus draws as before when it is given ears, and so does what was saved of it."""
    import test_released

    test_released.janus(tmp_path / "janus")
    gpt = mmgpt.load(tmp_path / "janus")
    heard = compose(gpt, audio_in=whisper_folder(tmp_path / "ears"), policy={"decoder": FROZEN})
    again = mmgpt.load(mmgpt.save(heard, tmp_path / "saved"))
    assert len({model.draw(["a red"], seed=3)[0].tobytes() for model in (gpt, heard, again)}) == 1
    assert not any(heard.ports["audio"].reads.begin in span for span in heard.spans.values())  # Janus' codes lie behind the table
    assert all(gap(a, b) == 0 for a, b in zip(shown(heard), shown(again), strict=True))


def test_the_commands_take_a_composition(tmp_path, emoji40, capsys, monkeypatch):
    """What it is and what it names is printed, without the artist that it says it has not seen; what it lacks is said in one line."""
    from mmgpt.cli import main

    released(tmp_path / "text", "llama", {"max_position_embeddings": 64})
    tower_folder(tmp_path / "eyes", "clip_vision_model")
    gpt = compose(tmp_path / "text", tmp_path / "eyes", policy={"decoder": FROZEN})
    gpt.config = replace(gpt.config, left_out="emojione")
    folder = str(mmgpt.save(gpt, tmp_path / "saved"))
    monkeypatch.setattr("mmgpt.evaluate.judge.Judge.load", lambda: None)
    assert main(["info", folder]) == 0 and "clip_vision_model" in capsys.readouterr().out
    assert main(["eval", "caption", folder, "--data", str(emoji40), "--leave-out", "emojione"]) == 0
    assert "emojione" in capsys.readouterr().out
    for what in ("draw", "codec"):
        assert main(["eval", what, folder, "--data", str(emoji40)]) == 2
        assert "saved has no codec of pictures: this measures mmgpt's own image codec" in capsys.readouterr().err
    assert main(["eval", "caption", str(tmp_path / "text"), "--data", str(emoji40), "--leave-out", "emojione"]) == 2
    assert "trained without nobody" in capsys.readouterr().err


def change(folder, **changes):
    """The settings changed, and the manifest with them."""
    import json

    from mmgpt.checkpoint import read_folder, write_folder

    tensors, texts = read_folder(folder)
    write_folder(folder, tensors, texts | {"config.json": json.dumps(json.loads(texts["config.json"]) | changes)})


def test_a_damaged_composition_is_refused(tmp_path):
    gpt = captioner(tmp_path, decoder=FROZEN)
    tower = {"image_in": FeatureTower(Shades(), 16, 2, 12)}
    faults = {
        "kind 'new': known are native, composed": {"kind": "new"},
        "image_in of kind 'magic': known are": {"parts": {"image_in": {"kind": "magic"}}},
        "no image processor of this": {"parts": {"image_in": {"kind": "image tower", "config": SMALL | {"model_type": "clip_vision_model"},
                                                             "processor": {"image_processor_type": "AutoConfig"}}}},
        "image tower of model_type 'bert': known are": {"parts": {"image_in": {"kind": "image tower", "config": {"model_type": "bert"}}}},
        "model_type 'evil': known are": {"decoder": {"kind": "released", "values": {"model_type": "evil"}}},
        "config.json does not fit": {"policy": {"decoder": {"when": 1}}},
        "tensor .* is missing|not of this model|has shape": {"parts": {"image_in": {"kind": "given", "type": "FeatureTower"}}},
    }  # fmt: skip
    for message, changes in faults.items():
        mmgpt.save(gpt, tmp_path / "saved")
        change(tmp_path / "saved", **changes)
        with pytest.raises(CheckpointError, match=message):
            mmgpt.load(tmp_path / "saved", parts=tower)
