"""The adapter for transformers: the native model's numbers and results, through transformers' own doors."""

import pytest
import torch
import transformers
from tiny import gap, picture, tiny_gpt
from transformers import GenerationConfig

from mmgpt.encoders.image import pixels_of
from mmgpt.errors import CheckpointError, InputError
from mmgpt.generate.engine import Request, run
from mmgpt.generate.sampling import GREEDY
from mmgpt.interop.hf import MMGPTForConditionalGeneration, MMGPTProcessor, from_native, to_native, words_of
from mmgpt.interop.hf.places import blocks, offsets
from mmgpt.pack import pack
from mmgpt.types import Part

SAMPLES = (
    [Part("a red apple")],
    [Part(picture(1)), Part("caption:"), Part("a small cat", learn=True)],
    [Part("draw: a cat"), Part(picture(2), learn=True)],
    [Part(picture(3)), Part("a"), Part(picture(1)), Part("draw: a cat"), Part(picture(2), learn=True), Part(picture(4)), Part("caption:")],
)


@pytest.fixture(scope="module")
def gpt():
    return tiny_gpt()


@pytest.fixture(scope="module")
def model(gpt):
    return from_native(gpt)


@pytest.fixture(scope="module")
def processor(gpt):
    return MMGPTProcessor.from_native(gpt)


def inputs_of(gpt, model, sample):
    """(native stream, the same as transformers' inputs)."""
    stream = pack([gpt.write(sample)], {})
    ids = torch.where(stream.ids_BT == -1, model.config.image_token_id, stream.ids_BT)
    given = [part.value for part in sample if not isinstance(part.value, str) and not part.learn]
    return stream, {"input_ids": ids} | ({"pixel_values": torch.stack([pixels_of(p) for p in given])} if given else {})


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("sample", SAMPLES)
def test_logits_are_the_native_ones(gpt, model, sample, attention):
    stream, inputs = inputs_of(gpt, model, sample)
    model.set_attn_implementation(attention)
    with torch.no_grad():
        wanted = gpt(stream) @ gpt.table.weight.T
        found = model(**inputs).logits
    model.set_attn_implementation("sdpa")
    assert wanted.abs().max() > 1  # the bound means something
    assert gap(found[..., : wanted.shape[-1]], wanted) < 1e-5 * float(wanted.abs().max())
    assert float(found[..., wanted.shape[-1] :].abs().max()) < 1e-3  # ids that only transformers has


@pytest.mark.parametrize("sample", SAMPLES)
def test_places_are_those_that_the_layouts_wrote(gpt, model, sample):
    stream, inputs = inputs_of(gpt, model, sample)
    line = torch.arange(stream.ids_BT.shape[1])
    assert torch.equal((offsets(inputs["input_ids"], model.config) + line).movedim(0, -1), stream.position_BT3)
    whole = blocks(inputs["input_ids"] == model.config.image_token_id)[0]
    together = (whole[:, None] == whole) & (whole >= 0)
    assert torch.equal(together & ~torch.eye(len(line), dtype=torch.bool), together_in(stream))


def together_in(stream):
    block = stream.block_BT[0]
    return (block[:, None] == block) & ~torch.eye(len(block), dtype=torch.bool)


def test_there_and_back(gpt, model, processor):
    back = to_native(model, words_of(processor.tokenizer))
    assert back.config == gpt.config and back.ports["text"].codec.text() == gpt.ports["text"].codec.text()
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), gpt.state_dict().values(), strict=True))
    with pytest.raises(CheckpointError, match="window=2"):
        from_native(tiny_gpt(window=2))


def test_folders(gpt, model, processor, tmp_path):
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".jinja"}
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, device_map="cpu")
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is MMGPTForConditionalGeneration
    _, inputs = inputs_of(gpt, model, SAMPLES[3])
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    codes = model.config.first_code_id + torch.arange(16).view(2, 8)
    assert torch.equal(again.decode_image_tokens(codes), model.decode_image_tokens(codes))  # the quantiser is in no file: made anew
    one, two = (p(text="<image>caption:<|end|>", images=picture(), return_tensors="pt") for p in (processor, AutoProcessor.from_pretrained(tmp_path)))
    assert one.keys() == two.keys() and {key: gap(one[key], two[key]) for key in one} == dict.fromkeys(one, 0.0)


def chat(*parts):
    return [{"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]}]


def asked(processor, *chats):
    settings = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return processor.apply_chat_template(list(chats), processor_kwargs={"padding": True}, **settings)


def test_a_chat_is_written_as_the_layouts_write_it(gpt, model, processor):
    _, inputs = inputs_of(gpt, model, [Part(picture(1)), Part("caption:"), Part("a cat")])
    found = asked(processor, chat(picture(1), "caption:", "a cat"))
    assert torch.equal(found["input_ids"], inputs["input_ids"])
    assert gap(found["pixel_values"], inputs["pixel_values"]) < 1e-6


@pytest.mark.parametrize("settings", [{}, {"cache_implementation": "static"}, {"use_cache": False}, {"prompt_lookup_num_tokens": 2}])
def test_captions_are_the_native_ones(gpt, model, processor, settings):
    """Batched, with padding, one prompt with two pictures: what the engine writes for each alone."""
    prompts = [(picture(1), "caption:"), (picture(2), picture(3), "a red apple caption:")]
    if "prompt_lookup_num_tokens" in settings:
        if transformers.__version__.startswith("5.17."):
            pytest.skip("transformers 5.17 ends an assisted text at once where the prompt ends with an end, as ours do; 5.23 does not")
        prompts = prompts[1:]  # it takes one prompt
    wanted = [run(gpt, [Request(list(prompt), grid=(1, 1, 12))])[0].ids for prompt in prompts]
    inputs = asked(processor, *(chat(*prompt) for prompt in prompts))
    found = model.generate(**inputs, max_new_tokens=12, do_sample=False, **settings)[:, inputs["input_ids"].shape[1] :]
    for ids, native in zip(found.tolist(), wanted, strict=True):
        assert ids[: len(native)] == list(native)[:12]


def test_a_static_cache_gives_the_same_scores(model, processor):
    """Not only the same ids: its mask is made beforehand, and pictures are read as a whole in it too."""
    inputs = asked(processor, chat(picture(2), picture(3), "caption:"), chat(picture(1), "a red apple caption:"))
    settings = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    plain, static = (model.generate(**inputs, **settings, **more).logits for more in ({}, {"cache_implementation": "static"}))
    assert max(gap(a, b) for a, b in zip(plain, static, strict=True)) < 1e-4


def test_several_answers_each_see_their_own_pictures(gpt, model, processor):
    inputs = asked(processor, chat(picture(2), picture(3), "caption:"), chat(picture(1), "a red apple caption:"))
    alone = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert len(model.generate(**inputs, max_new_tokens=8, do_sample=False, num_beams=3, num_return_sequences=3)) == 6
    sampled = model.generate(**inputs, max_new_tokens=8, do_sample=True, top_k=1, num_return_sequences=2)
    assert torch.equal(sampled, alone.repeat_interleave(2, 0))


def test_drawings_are_the_native_ones(gpt, model, processor):
    wanted = run(gpt, [Request(["a red apple"], "image", GREEDY, 2.0), Request(["a cat"], "image", GREEDY, 2.0)])
    inputs = asked(processor, chat("a red apple"), chat("a cat"))
    drawn = model.generate(**inputs, generation_mode="image", guidance_scale=2.0, do_sample=False)
    assert torch.equal(drawn - model.config.first_code_id, torch.stack([torch.from_numpy(r.codes).flatten() for r in wanted]))
    pictures = processor.post_process_multimodal_output(model.decode_image_tokens(drawn), generation_mode="image")
    assert [p.tobytes() for p in pictures] == [r.value.tobytes() for r in wanted]
    with pytest.raises(InputError, match="generation_mode='sound'"):
        model.generate(**inputs, generation_mode="sound")


def test_settings_of_a_drawing_are_used_or_refused(gpt, model, processor):
    inputs = asked(processor, chat("a red apple"))

    def drawn(**settings):
        torch.manual_seed(0)
        return model.generate(**inputs, generation_mode="image", guidance_scale=1.0, **settings).tolist()

    assert drawn(top_k=1) == drawn(do_sample=False) != drawn(temperature=1.0) != drawn(temperature=3.0)
    assert drawn(generation_config=GenerationConfig(do_sample=False)) == drawn(do_sample=False)
    assert drawn(max_new_tokens=8, use_cache=True) == drawn()
    twice = GenerationConfig(do_sample=True, top_k=1, guidance_scale=3.0, num_return_sequences=2)
    wanted = run(gpt, [Request(["a red apple"], "image", GREEDY, 3.0)])[0].codes.flatten() + model.config.first_code_id
    assert model.generate(**inputs, generation_mode="image", generation_config=twice).tolist() == [wanted.tolist()] * 2
    for wrong in ({"guidance": 9.0}, {"max_new_tokens": 5}, {"num_beams": 3}, {"negative_prompt_ids": torch.ones(1, 2)}):
        with pytest.raises(InputError, match=f"{[*wrong][0]}=.*a picture is drawn whole, 8 codes"):
            drawn(**wrong)
    with pytest.raises(InputError, match="without input_ids"):
        model.generate(generation_mode="image")


def test_in_bfloat16(gpt, processor):
    half = from_native(gpt).to(torch.bfloat16)
    drawn = half.generate(**asked(processor, chat("a red apple")), generation_mode="image")
    assert drawn.shape == (1, 8) and half.decode_image_tokens(drawn).shape == (1, 3, 16, 16)


def test_vectors_with_padding_are_read_as_ids_are(gpt, model, processor):
    inputs = asked(processor, chat(picture(1), "caption:"), chat(picture(2), "a red apple caption:"))
    vectors = model.get_input_embeddings()(inputs["input_ids"])
    given = {name: value for name, value in inputs.items() if name != "input_ids"}
    with torch.no_grad():
        assert gap(model(inputs_embeds=vectors, **given).logits[:, -1], model(**inputs).logits[:, -1]) < 1e-4


def test_codes_come_one_by_one_too(gpt, model, processor):
    """transformers' own loop after a picture's begin: codes, then the picture's end, as the native automaton says."""
    wanted = run(gpt, [Request(["a red apple"], "image", GREEDY, 1.0)])[0].ids
    inputs = processor(text="a red apple<|end|><|image|>", return_tensors="pt")
    found = model.generate(**inputs, max_new_tokens=len(wanted) - 1, do_sample=False)
    assert found[0, inputs["input_ids"].shape[1] - 1 :].tolist() == list(wanted)


def test_a_drawn_picture_is_read_as_what_it_is(gpt, model, processor):
    """Codes and pictures among the ids become the segments that they are when a next picture is drawn."""
    prompt = [picture(3), "a", Part(picture(2), learn=True), "a cat"]
    _, inputs = inputs_of(gpt, model, [part if isinstance(part, Part) else Part(part) for part in prompt])
    drawn = model.generate(**inputs, generation_mode="image", guidance_scale=2.0, do_sample=False)
    wanted = run(gpt, [Request(prompt, "image", GREEDY, 2.0)])[0].codes
    assert (drawn[0] - model.config.first_code_id).tolist() == wanted.flatten().tolist()


def test_pipelines(model, processor):
    from transformers import pipeline

    reads = pipeline("image-text-to-text", model=model, processor=processor)
    said = reads(text=chat(picture(1), "caption:"), max_new_tokens=8, return_full_text=False)[0]["generated_text"]
    inputs = asked(processor, chat(picture(1), "caption:"))
    ids = model.generate(**inputs, max_new_tokens=8)[:, inputs["input_ids"].shape[1] :]
    assert said.strip() == processor.decode(ids[0], skip_special_tokens=True).strip()
    draws = pipeline("any-to-any", model=model, processor=processor)
    made = draws(text=chat("a red apple"), generation_mode="image", generate_kwargs={"do_sample": False, "guidance_scale": 3.0})
    assert made[0]["generated_image"].size == (16, 16)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it by an old name
def test_lora(gpt, processor, tmp_path):
    """PEFT on every linear layer of the decoder: learns, saves, loads, merges, and the merged model is a native one again."""
    from peft import LoraConfig, PeftModel, get_peft_model

    model = from_native(gpt)
    _, inputs = inputs_of(gpt, model, SAMPLES[1])
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    optimiser = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = tuned(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.05
    tuned.eval()
    tuned.save_pretrained(tmp_path)
    wanted = tuned(**inputs).logits
    loaded = PeftModel.from_pretrained(from_native(gpt), tmp_path).eval()
    assert torch.equal(loaded(**inputs).logits, wanted)
    merged = loaded.merge_and_unload()
    assert gap(merged(**inputs).logits, wanted) < 1e-3
    stream, _ = inputs_of(gpt, model, SAMPLES[1])
    native = to_native(merged, processor)
    with pytest.raises(InputError, match="merge_and_unload"):
        to_native(tuned, processor)
    assert gap(native(stream) @ native.table.weight.T, merged(**inputs).logits[..., :-2]) < 1e-3


def test_mismatches_are_one_clear_sentence(model, processor):
    with pytest.raises(ValueError, match="Image features and image tokens do not match, tokens: 0, features: 4"):
        model(input_ids=torch.tensor([[1, 2]]), pixel_values=torch.zeros(1, 3, 16, 16))
    with pytest.raises(InputError, match="3 codes in a row, a picture has 2x4"):
        model.decode_image_tokens(torch.full((1, 3), model.config.first_code_id))


@pytest.mark.filterwarnings("ignore")  # torchao's own
def test_int8(gpt, model, tmp_path):
    """torchao's int8 weights: nearly the same scores, the same after a folder; drawn pictures are whole."""
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    model.save_pretrained(tmp_path / "full")
    settings = TorchAoConfig(quantization.Int8WeightOnlyConfig(), modules_to_not_convert=["lm_head"])
    small = MMGPTForConditionalGeneration.from_pretrained(tmp_path / "full", quantization_config=settings)
    assert type(small.model.language_model.decoder.blocks[0].mlp.down.weight) is not torch.nn.Parameter
    _, inputs = inputs_of(gpt, model, SAMPLES[3])
    with torch.no_grad():
        wanted, found = model(**inputs).logits, small(**inputs).logits
    assert 0 < gap(found, wanted) < 0.1 * float(wanted.abs().max())
    small.save_pretrained(tmp_path / "small")
    again = MMGPTForConditionalGeneration.from_pretrained(tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, found)
    _, words = inputs_of(gpt, model, SAMPLES[0])
    assert small.generate(**words, generation_mode="image", guidance_scale=1.0).shape == (1, 8)
