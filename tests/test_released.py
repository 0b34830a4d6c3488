"""Released picture models: transformers' vectors, codes and pictures from our parts; and what transformers cannot do: learning to draw."""

from functools import partial

import numpy as np
import pytest
import torch
from test_interop import SIZES, lively, logits_by_step, tokenizer_json
from tiny import gap, learned, picture

import mmgpt
from mmgpt.errors import CheckpointError, GuidanceError, InputError
from mmgpt.generate.engine import Request, run
from mmgpt.interop.emu3 import NEGATIVE
from mmgpt.interop.pictures import shown
from mmgpt.interop.released import export
from mmgpt.pack import pack
from mmgpt.types import Part

GREEDY = mmgpt.Sampling(temperature=0.0)
SIZES = SIZES | {"num_hidden_layers": 2, "num_key_value_heads": 2}


def chameleon(folder, **changes):
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    text = tokenizer_json("<racm3:break>", "<eoss>", *(f"IMGIMG{'ABCDEFGHIJ'[i // 10]}{'ABCDEFGHIJ'[i % 10]}Z" for i in ORDER))
    vq = {"embed_dim": 8, "num_embeddings": 16, "latent_channels": 8, "resolution": 16, "base_channels": 32, "channel_multiplier": [1, 1, 2]}
    config = ChameleonConfig(**SIZES | changes, vq_config={**vq, "num_res_blocks": 1}, vocabulary_map=vocabulary(text))
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    return saved(folder, ChameleonForConditionalGeneration(config), text, "Chameleon", size)


def emu3(folder, **changes):
    from transformers import Emu3Config, Emu3ForConditionalGeneration

    names = ("<|image start|>", "<|image token|>", "<|extra_200|>", "<|extra_201|>", "<|image end|>")
    text = tokenizer_json(*names, *(f"<|visual token {i:06d}|>" for i in range(16)))
    vq = {"codebook_size": 16, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "hidden_size": 32, "attn_resolutions": [1]}
    config = Emu3Config(
        text_config=SIZES | changes, vq_config=vq | {"temporal_downsample_factor": 2}, vocabulary_map=vocabulary(text) | {"<image>": 319}
    )
    return saved(folder, Emu3ForConditionalGeneration(config), text, "Emu3", {"min_pixels": 16, "max_pixels": 64, "spatial_factor": 2})


def janus(folder, **changes):
    from transformers import JanusConfig, JanusForConditionalGeneration

    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 4,
        "image_size": 16,
        "projection_dim": 32,
        "depth": 2,
    }
    vq = {"embed_dim": 8, "num_embeddings": 24, "latent_channels": 8, "num_patches": 4, "base_channels": 32, "channel_multiplier": [1, 1, 1]}
    vq |= {"num_res_blocks": 1, "projection_dim": 32, "num_hidden_layers": 2, "image_token_embed_dim": 32}
    text = tokenizer_json("<begin_of_image>", "<end_of_image>", "<image_placeholder>")
    config = JanusConfig(
        text_config={"model_type": "llama", **SIZES, **changes},
        vision_config={**vision, "depth": 2, "num_image_tokens": 16},
        vq_config=vq,
        image_token_id=5,
    )
    theirs = JanusForConditionalGeneration(config)
    theirs.generation_config.generation_kwargs = {"boi_token_id": vocabulary(text)["<begin_of_image>"]}
    theirs.generation_config.update(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return saved(folder, theirs, text, "Janus", {"size": {"height": 16, "width": 16}})


ORDER = np.random.default_rng(0).permutation(16).tolist()  # the codes' names in the order of their ids


def vocabulary(text: str) -> dict[str, int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text).get_vocab()


def saved(folder, theirs, text: str, family: str, pictures: dict):
    import json

    lively(theirs).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(text)
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": f"{family}ImageProcessor", **pictures}))
    return theirs


KINDS = {
    "chameleon": (chameleon, {}),
    "chameleon, swin norm, tied": (chameleon, {"swin_norm": True, "tie_word_embeddings": True, "num_key_value_heads": 4}),
    "emu3": (emu3, {}),
    "janus": (janus, {}),
}


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("released")
    make, changes = KINDS[request.param]
    theirs = make(folder, **changes)
    return request.param.split(",")[0], theirs, mmgpt.load(folder), folder


def decoder_of(theirs):
    return getattr(theirs.model, "text_model", None) or getattr(theirs.model, "language_model", None) or theirs.model


@torch.no_grad()
def test_vectors_and_scores_are_those_of_transformers(both):
    """Words, a picture and words again: every vector of the decoder, and the scores of all text ids."""
    name, theirs, gpt, _ = both
    stream = pack([gpt.write([Part("a red"), Part(picture(side=16)), Part("apple")])], gpt.spans)
    h_TD = gpt(stream)[0]
    embedded = gpt.embed(stream)
    if name == "janus":  # the picture's vectors come from the tower
        pixels = gpt.encoders["image"].prepare(picture(side=16)).values_NF.reshape(1, 3, 16, 16)
        at = stream.inputs[0].slot_N
        wanted = theirs.model.language_model.embed_tokens(stream.ids_BT.clamp_min(0))
        wanted[0, at] = theirs.model.get_image_features(pixels).pooler_output[0]
        assert gap(embedded, wanted) < 1e-5
    found = decoder_of(theirs)(inputs_embeds=embedded).last_hidden_state[0]
    assert gap(h_TD, found) < 1e-4
    scores, all_scores = gpt.heads["text"].answers(h_TD), theirs.lm_head(found)
    hole = gpt.ports["text"].writes.hole
    keep = [i for i in range(320) if hole is None or i not in hole]
    assert gap(scores[:, keep], all_scores[:, keep]) < 1e-4 and (hole is None or torch.isinf(scores[:, hole.start : hole.stop]).all())
    ids = torch.randint(6, 90, (2, 20), generator=torch.Generator().manual_seed(1))
    if name != "janus":
        assert gap(logits_by_step(gpt, ids)[..., keep], theirs(ids).logits[..., keep]) < 1e-4


@torch.no_grad()
def test_greedy_text_is_that_of_transformers(both):
    """64 ids after words, and after a picture and words (there by its vectors: their processors write other layouts)."""
    _, theirs, gpt, _ = both
    picture_and_words = [picture(side=16), "a red apple"]
    for sample in (picture_and_words[1:], picture_and_words):
        stream = pack([gpt.write([Part(value) for value in sample])], gpt.spans)
        given = {"inputs_embeds": gpt.embed(stream)} if len(sample) > 1 else {"input_ids": stream.ids_BT}
        written = theirs.generate(**given, max_new_tokens=64, do_sample=False)[0, 0 if len(sample) > 1 else stream.ids_BT.shape[1] :]
        assert run(gpt, [Request(sample, grid=(1, 1, 64))])[0].ids[:64] == tuple(written.tolist()) and len(written) > 8


@torch.no_grad()
def test_codes_and_reconstructions_are_those_of_transformers(both):
    name, theirs, gpt, _ = both
    image, codec = picture(3, 16), gpt.ports["image"].codec
    pixels = codec.processor(images=image, return_tensors="pt")["pixel_values"]
    sizes = {"image_sizes": torch.tensor([pixels.shape[-2:]])} if name == "emu3" else {}
    wanted = theirs.model.vqmodel.encode(pixels, **sizes).image_tokens
    wanted = wanted[0] if name == "emu3" else wanted
    codes = codec.encode(image)
    assert codes.reshape(-1).tolist() == wanted.reshape(-1).tolist() and len(set(codes.reshape(-1).tolist())) > 1
    if name == "janus":  # its processor leaves the size alone
        assert gap(np.asarray(shown(pixels[0], codec.processor), int), np.asarray(image, int)) <= 1
    if name == "chameleon":
        with pytest.raises(InputError, match="no decoder of codes to pixels"):
            codec.decode(codes[None])
        return
    made = codec.to_pixels(codec.model, torch.from_numpy(codes[None]))
    assert gap(made, theirs.model.vqmodel.decode(torch.from_numpy(codes[None] if name == "emu3" else codes.reshape(1, -1)))) < 1e-4
    assert codec.decode(codes[None]).size == (pixels.shape[-1], pixels.shape[-2])


@torch.no_grad()
def test_ids_are_those_of_the_family(both):
    """What stands in the stream for a picture that is written, id by id."""
    name, theirs, gpt, _ = both
    codes, port = np.arange(4).reshape(2, 2) + 5, gpt.ports["image"]
    known = {token: gpt.ports["text"].codec.tokenizer.token_to_id(token) for token in gpt.ports["text"].codec.tokenizer.get_vocab()}
    if name == "chameleon":
        side = port.grid[1]
        codes = np.arange(side * side).reshape(side, side) % 16
        wanted = theirs.model.vocabulary_mapping.img2bpe_mapping_tensor[torch.from_numpy(codes.reshape(-1))].tolist()
        wanted = [known["<racm3:break>"], *wanted, known["<eoss>"]]
    elif name == "emu3":
        row = [known[f"<|visual token {c:06d}|>"] for c in range(5, 9)]
        line = known["<|extra_200|>"]
        size = [known[c] for c in "2*2"]
        wanted = [known["<|image start|>"], *size, known["<|image token|>"], *row[:2], line, *row[2:], line]
        wanted += [known["<|extra_201|>"], known["<|image end|>"]]
    else:
        codes = np.arange(16).reshape(4, 4) + 5
        wanted = [known["<begin_of_image>"], *range(325, 341)]
    assert port.writes.write(codes).ids_N.tolist() == wanted
    assert np.array_equal(port.writes.codes(np.asarray(wanted)[port.writes.script((1, *codes.shape)).open_N], (1, *codes.shape))[0], codes)


@torch.no_grad()
def test_a_janus_picture_is_that_of_transformers(tmp_path):
    """Three prompts of different lengths, guidance 5, code for code."""
    torch.manual_seed(0)
    theirs = janus(tmp_path)
    gpt = mmgpt.load(tmp_path)
    prompts = ["a red apple", "a green", "an apple and a red apple"]
    rows = [[1, *gpt.ports["text"].codec.encode(p).tolist(), gpt.ports["image"].writes.begin] for p in prompts]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    theirs._prepare_static_cache = partial(theirs._prepare_static_cache, prefill_chunk_size=None)  # which transformers 5.17's Janus forgets
    wanted = theirs.generate(ids, attention_mask=mask, generation_mode="image", do_sample=False, guidance_scale=5)
    found = run(gpt, [Request([prompt], "image", GREEDY) for prompt in prompts])
    assert [result.codes.reshape(-1).tolist() for result in found] == wanted.tolist() and found[0].value.size == (16, 16)
    alone = run(gpt, [Request([prompts[1]], "image", GREEDY)])[0]
    assert np.array_equal(alone.codes, found[1].codes)
    with pytest.raises(GuidanceError, match="no words"):
        run(gpt, [Request([picture(side=16)], "image", GREEDY, guidance=5.0)])
    with pytest.raises(InputError, match=r"1x3 codes cannot be written by this layout: it writes \(\(1, \d, \d\),\)"):
        run(gpt, [Request(["a red apple"], "image", GREEDY, grid=(1, 1, 3))])


@torch.no_grad()
def test_an_emu3_picture_is_that_of_transformers_driven_by_hand(tmp_path):
    """Guidance 3 against the negative prompt; rows of codes end where the size says."""
    torch.manual_seed(0)
    theirs = emu3(tmp_path, max_position_embeddings=512)
    gpt = mmgpt.load(tmp_path)
    text, layout = gpt.ports["text"].codec, gpt.ports["image"].writes
    head = [layout.begin, *layout.header((1, 2, 3)), layout.start]
    rows = [torch.tensor([[1, *text.encode(words).tolist(), *head]]) for words in ("a red apple", NEGATIVE)]
    written, first = [], layout.ids.start
    while len(written) < 2 * 4:
        if len(written) % 4 == 3:
            id = layout.row_end
        else:
            c, u = (theirs(torch.cat([row, torch.tensor([written], dtype=torch.long)], 1)).logits[0, -1, first : first + 16] for row in rows)
            id = first + int((u + 3 * (c - u)).argmax())
        written.append(id)
    found = run(gpt, [Request(["a red apple"], "image", GREEDY, grid=(1, 2, 3))])[0]
    assert list(found.ids) == [*head, *written, layout.end_codes, layout.end] and found.value.size == (6, 4)
    assert found.codes.shape == (1, 2, 3) and len(set(found.codes.reshape(-1).tolist())) > 1


@pytest.mark.parametrize("make", [chameleon, emu3, janus])
def test_drawing_is_learned(make, tmp_path):
    """Ten pictures by heart: transformers' Chameleon has an infinite loss on them, Janus' generation head gets none."""
    torch.manual_seed(0)
    make(tmp_path)
    gpt = mmgpt.load(tmp_path).train()
    names = ["red", "green", "apple", "a", "and", "e", "p", "l", "n", "d"]
    side = gpt.ports["image"].grid[1:] if make is not emu3 else (2, 3)
    codes = np.random.default_rng(0).integers(0, 16, (10, *side))
    stream = pack([gpt.write([Part(f"draw {n}"), Part(picture(), learn=True, codes=c)]) for n, c in zip(names, codes, strict=True)], gpt.spans)
    assert [t.head for t in stream.targets] == ["image"] and len(stream.targets[0].id_N) == codes.size
    assert learned(gpt, stream, "image", 1e-2, 60) < 0.05
    wanted = [Request([f"draw {n}"], "image", GREEDY, guidance=1.0, grid=(1, *side)) for n in names]
    if make is chameleon:  # it cannot show what it draws
        with pytest.raises(InputError, match="no decoder"):
            run(gpt, wanted)
        gpt.ports["image"].codec.decode = lambda codes: picture()
    assert np.array_equal(np.stack([result.codes[0] for result in run(gpt, wanted)]), codes)


def test_pictures_are_prepared_as_the_checkpoint_says(both, tmp_path):
    """Wherever it says so: transformers 5 writes one file for words and pictures. A codec stays exact where the rest is rounded."""
    import json
    import shutil

    name, _, gpt, folder = both
    shutil.copytree(folder, tmp_path / "it")
    alone = tmp_path / "it" / "preprocessor_config.json"
    (tmp_path / "it" / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(alone.read_text())}))
    alone.unlink()
    image, codec = picture(3, side=16), gpt.ports["image"].codec
    for dtype in (None, torch.bfloat16):
        again = mmgpt.load(tmp_path / "it", dtype=dtype).ports["image"].codec
        assert np.array_equal(again.encode(image), codec.encode(image))
    (tmp_path / "it" / "processor_config.json").write_text('{"image_processor": {"size": "wide"}}')
    if name != "emu3":  # its pictures are of any size
        with pytest.raises(CheckpointError, match="processor_config.json does not fit a"):
            mmgpt.load(tmp_path / "it")
    (tmp_path / "it" / "processor_config.json").unlink()
    with pytest.raises(CheckpointError, match="does not say how its pictures are prepared"):
        mmgpt.load(tmp_path / "it")


def test_what_is_loaded_is_written_back(both, tmp_path):
    """Name for name and byte for byte, as transformers reads it."""
    _, theirs, gpt, _ = both
    again = type(theirs).from_pretrained(export(gpt, tmp_path / "ours"))
    wanted = theirs.state_dict()
    assert again.state_dict().keys() == wanted.keys() and all(torch.equal(value, wanted[name]) for name, value in again.state_dict().items())


def test_what_is_loaded_can_be_looked_at(both):
    from mmgpt.info import info

    name, _, gpt, folder = both
    lines = info(folder, gpt)
    assert all(
        word in lines for word in ("model.safetensors", "CodesLayout", f"{len(gpt.ports['image'].writes.script(gpt.ports['image'].grid))} positions")
    )
    assert ("VectorsLayout: vectors" in lines) == (name == "janus")


def test_a_tokenizer_without_a_control_token_is_refused(both):
    import json

    name, _, _, folder = both
    before = (folder / "tokenizer.json").read_text()
    control = {"chameleon": "<eoss>", "emu3": "<|image end|>", "janus": "<end_of_image>"}[name]
    try:
        (folder / "tokenizer.json").write_text(before.replace(json.dumps(control)[1:-1], "<gone>"))
        with pytest.raises(CheckpointError, match="lacks the control token"):
            mmgpt.load(folder)
    finally:
        (folder / "tokenizer.json").write_text(before)


def test_words_that_spell_a_control_token_stay_words(both):
    name, _, gpt, _ = both
    layout = gpt.ports["image"].writes
    spelled = gpt.ports["text"].codec.tokenizer.id_to_token(layout.begin)
    codes = gpt.ports["text"].codec.encode(f"a {spelled} b")
    assert layout.begin not in codes.tolist() and gpt.ports["text"].codec.decode(codes) == f"a {spelled} b"


# --- layouts and parts of models that are not loaded whole --------------------------------------------------------------------------------


def test_lumina_writes_its_sizes_on_chameleons_vocabulary(tmp_path):
    from mmgpt.interop.chameleon import lumina

    torch.manual_seed(0)
    chameleon(tmp_path)
    gpt = mmgpt.load(tmp_path)
    tokenizer = gpt.ports["text"].codec.tokenizer
    tokenizer.add_special_tokens([f"<reserved{number:05d}>" for number in range(8799, 8804)])
    known, port = tokenizer.token_to_id, lumina(gpt).ports["image"]
    row, end = known("<reserved08799>"), known("<eoss>")
    ids = port.writes.write(np.zeros((2, 4), int)).ids_N.tolist()
    code = ids[3]
    assert ids == [known("<racm3:break>"), known("<reserved08801>"), known("<reserved08802>"), *[*[code] * 4, row] * 2, end]
    with pytest.raises(InputError, match="3x4 codes .* multiples of 2"):
        port.writes.script((1, 3, 4))
    port.codec.decode = lambda codes: picture()
    result = run(gpt, [Request(["a red apple"], "image", GREEDY, grid=(1, 2, 4))])[0]
    assert len(result.ids) == 14 and result.codes.shape == (1, 2, 4)


def test_emu35_is_emu3_with_normed_queries_and_one_end(tmp_path):
    """Random weights: every id obeys the layout, and the vectors are those of transformers' Qwen3, whose blocks are the same."""
    from transformers import Qwen3Config, Qwen3Model

    from mmgpt.encoders.text import TextCodec
    from mmgpt.interop import emu35
    from mmgpt.layout import TextLayout
    from mmgpt.model import GPT, Port
    from mmgpt.script import Automaton

    text = TextCodec.from_text(tokenizer_json("<|image start|>", "<|image token|>", "<|extra_200|>", "<|image end|>"))
    layout, known = emu35.layout(text, 300, 16), text.tokenizer.token_to_id
    config = emu35.decoder(32, 2, 4, 2, 48)
    torch.manual_seed(0)
    ports = {"text": Port(str, codec=text, writes=TextLayout(range_of(0, 300), 2, end_given=False), grid=(1, 1, 9))}
    ports["image"] = Port(type(picture()), codec=Codes(), writes=layout, guidance=emu35.GUIDANCE, sampling=emu35.SAMPLING)
    gpt = GPT(config, ports, 316, 1, tied=False).eval()
    result = run(gpt, [Request(["a red apple"], "image", grid=(1, 2, 2), seed=3)])[0]
    size = [known(c) for c in "2*2"]
    assert list(result.ids[:5]) == [known("<|image start|>"), *size, known("<|image token|>")]
    assert result.ids[7] == known("<|extra_200|>") and result.ids[-1] == known("<|image end|>") and len(result.ids) == 5 + 6
    walk = Automaton([layout.script((1, 2, 2))])
    for id in result.ids:
        walk.push(id)
    assert walk.next() is None
    sizes = {"vocab_size": 316, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    rope = {"rope_type": "default", "rope_theta": 1e6}
    theirs = lively(Qwen3Model(Qwen3Config(**sizes, intermediate_size=48, rope_parameters=rope, initializer_range=0.2)))
    from mmgpt.interop.text import keys

    weights = theirs.state_dict()
    ours = {name: torch.cat([weights[key] for key, _ in parts]) for name, parts in keys(config, 316, True, "").items()}
    gpt.load_state_dict(ours, strict=False)
    stream = pack([gpt.write([Part("a red apple"), Part(picture(), codes=np.arange(4).reshape(2, 2))])], gpt.spans)
    with torch.no_grad():
        assert gap(gpt(stream), theirs(stream.ids_BT).last_hidden_state) < 1e-5


def range_of(start: int, stop: int):
    from mmgpt.script import Span

    return Span(start, stop)


class Codes:
    """A codec that shows nothing."""

    num_codes = 16

    def encode(self, value):
        return np.zeros((2, 2), int)

    def decode(self, codes):
        return picture()


def test_gemma4_ports_give_transformers_vectors(tmp_path):
    """Pictures of two shapes in one call, and a sound, through weights from a folder."""
    pytest.importorskip("transformers.models.gemma4_unified", reason="this transformers does not know it")
    from transformers.models.gemma4_unified import configuration_gemma4_unified as configs
    from transformers.models.gemma4_unified.modeling_gemma4_unified import Gemma4UnifiedModel

    from mmgpt.interop import gemma4
    from mmgpt.types import Audio, join

    torch.manual_seed(0)
    text = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}
    vision = {"patch_size": 2, "pooling_kernel_size": 2, "mm_embed_dim": 24, "mm_posemb_size": 70, "output_proj_dims": 24}
    config = configs.Gemma4UnifiedConfig(text_config=text | {"num_key_value_heads": 1}, vision_config=vision, audio_config={})
    theirs = lively(Gemma4UnifiedModel(config))
    torch.nn.init.normal_(theirs.embed_vision.pos_embedding)
    theirs.save_pretrained(tmp_path)
    rename_all(tmp_path / "model.safetensors", "model.")
    (tmp_path / "preprocessor_config.json").write_text('{"patch_size": 2, "pooling_kernel_size": 2, "max_soft_tokens": 70}')
    pictures, sound = gemma4.ports(tmp_path)
    images = [picture(1, 20), picture(2, 20).resize((30, 12))]
    prepared = [pictures.prepare(image) for image in images]
    assert prepared[0].grid != prepared[1].grid
    found = pictures.processor(images=images, return_tensors="pt")
    with torch.no_grad():
        wanted = theirs.get_image_features(found["pixel_values"], found["image_position_ids"]).pooler_output
        assert gap(pictures(join(prepared)), torch.cat(wanted)) < 1e-5
        heard = sound.prepare(Audio(torch.randn(1500) / 10, 16_000))
        assert gap(sound(heard), theirs.embed_audio(heard.values_NF)) == 0 and len(heard) == 3
    with pytest.raises(CheckpointError, match="model_type"):
        (tmp_path / "config.json").write_text('{"model_type": "gemma3"}')
        gemma4.ports(tmp_path)


def rename_all(file, prefix: str):
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    save_file({name if name.startswith(prefix) else prefix + name: value for name, value in tensors.items()}, file)
