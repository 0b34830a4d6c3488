"""Released text models: transformers' numbers from our decoder, through folders on disk; what is damaged is refused before memory is taken."""

import json
import struct
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from tiny import gap

import mmgpt
from mmgpt.errors import CheckpointError, InputError
from mmgpt.generate.engine import Request, run
from mmgpt.generate.sampling import Sampling
from mmgpt.interop import shards
from mmgpt.interop.released import export
from mmgpt.pack import pack
from mmgpt.types import Part, Stream

SIZES = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"initializer_range": 0.15, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 256}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0}
KINDS = {
    "llama": ("llama", {}),
    "llama, tied, one key head, all biases, wide heads": (
        "llama",
        {"tie_word_embeddings": True, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "head_dim": 16},
    ),
    "llama 3 positions": ("llama", {"rope_parameters": LLAMA3}),
    "llama, yarn": ("llama", {"rope_parameters": YARN, "rms_norm_eps": 1e-3}),
    "llama, linear positions": ("llama", {"rope_parameters": LINEAR}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window": ("mistral", {"sliding_window": 5}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, window in the upper layers": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3, biases, yarn, window": (
        "qwen3",
        {"attention_bias": True, "rope_parameters": YARN, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    ),
}


@lru_cache
def tokenizer_json(*controls: str) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<s>", "</s>", *controls], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["a red apple and a green apple"], trainer)
    return tokenizer.to_str()


def lively(theirs):
    """No norm or bias that does nothing."""
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if ("norm" in name or "bias" in name) and "vqmodel" not in name:  # there it would make all codes one
                parameter.uniform_(0.5, 1.5)
    return theirs.eval()


def released(folder, kind: str, changes: dict, dtype=torch.float32, **saving):
    """transformers' model of random weights, saved in `folder` with a tokenizer."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    theirs = lively(AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SIZES | changes)).to(dtype))
    theirs.save_pretrained(folder, **saving)
    (folder / "tokenizer.json").write_text(tokenizer_json())
    return theirs


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    return folder, released(folder, "llama", {})


def logits(gpt, ids_BT) -> torch.Tensor:
    """Of every position: the ids as given texts, without what opens a document."""
    port = gpt.ports["text"]
    stream = pack([[port.writes.write(ids.numpy())] for ids in ids_BT], gpt.spans)
    return gpt.heads["text"].logits(gpt(stream).flatten(0, 1)).view(*ids_BT.shape, -1)


def logits_by_step(gpt, ids_BT) -> torch.Tensor:
    """The same, one position at a time through the cache."""
    rows, length = ids_BT.shape
    cache, found = gpt.decoder.new_cache(rows, length), []
    for t in range(length):
        here = torch.full((rows, 1), t)
        stream = Stream(ids_BT[:, t : t + 1], torch.ones_like(here), here, here[..., None].expand(rows, 1, 3))
        found.append(gpt.heads["text"].logits(gpt(stream, cache)[:, 0]))
    return torch.stack(found, 1)


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_logits_are_those_of_transformers(name, tmp_path):
    """Teacher-forced, step by step, and 64 greedy ids; then written back, and read by transformers again."""
    from transformers import AutoModelForCausalLM

    kind, changes = KINDS[name]
    theirs = released(tmp_path / "theirs", kind, changes)
    gpt = mmgpt.load(tmp_path / "theirs")
    ids = torch.randint(0, 320, (2, 40), generator=torch.Generator().manual_seed(1))
    wanted = theirs(ids).logits
    for found in (logits(gpt, ids), logits_by_step(gpt, ids)):
        assert gap(found, wanted) < 1e-5
    prompt = gpt.ports["text"].codec.encode("a red apple")
    written = theirs.generate(torch.from_numpy(prompt)[None], max_new_tokens=64, do_sample=False)[0, len(prompt) :]
    assert run(gpt, [Request(["a red apple"], grid=(1, 1, 64))])[0].ids[:64] == tuple(written.tolist())
    for beams, penalty in ((3, 1.0), (4, 0.3)):
        searched = theirs.generate(torch.from_numpy(prompt)[None], max_new_tokens=24, num_beams=beams, length_penalty=penalty, do_sample=False)
        found = run(gpt, [Request(["a red apple"], grid=(1, 1, 24), beams=beams, length_penalty=penalty)])[0]
        assert found.ids[:24] == tuple(searched[0, len(prompt) :].tolist())
    again = AutoModelForCausalLM.from_pretrained(export(gpt, tmp_path / "ours"))
    assert torch.equal(again(ids).logits, wanted) and again.config.to_dict() | {"_name_or_path": ""} == theirs.config.to_dict() | {
        "_name_or_path": ""
    }


def test_shards_and_types(tmp_path, monkeypatch):
    """Many shards of bfloat16 arrive as they are, or as asked; what is written in many shards is read by transformers."""
    from transformers import AutoModelForCausalLM

    theirs = released(tmp_path / "theirs", "qwen3", {"head_dim": 16}, torch.bfloat16, max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 3
    gpt, wide = mmgpt.load(tmp_path / "theirs"), mmgpt.load(tmp_path / "theirs", dtype=torch.float32)
    assert gpt.table.weight.dtype == torch.bfloat16 and wide.table.weight.dtype == torch.float32
    assert torch.equal(gpt.decoder.blocks[2].mlp.down.weight, theirs.model.layers[2].mlp.down_proj.weight)
    monkeypatch.setattr("mmgpt.interop.released.SHARD", 20_000)
    again = AutoModelForCausalLM.from_pretrained(export(wide, tmp_path / "ours", torch.bfloat16))
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 3
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), theirs.state_dict().values(), strict=True))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not list what is mapped")
def test_tensors_lie_where_the_file_has_them(tmp_path):
    """One tensor of theirs, or neighbours, is memory of the file; what lies askew, apart or in another type is read. No file ever changes."""
    from safetensors.torch import load_file, save_file

    theirs, file = released(tmp_path, "llama", {"attention_bias": True}), tmp_path / "model.safetensors"
    wanted, before = theirs.state_dict(), file.read_bytes()
    gpt = mmgpt.load(tmp_path)
    with open("/proc/self/maps") as listed:
        maps = [[int(end, 16) for end in line.split()[0].split("-")] for line in listed if line.rstrip().endswith(str(file))]
    lies = {name: any(start <= p.data_ptr() < stop for start, stop in maps) for name, p in gpt.named_parameters()}
    assert all(there != (".qkv." in name) for name, there in lies.items()) and len(lies) > 20
    assert torch.equal(gpt.decoder.blocks[1].mlp.gate_up.weight[48:], wanted["model.layers.1.mlp.up_proj.weight"])
    stream = pack([gpt.write([Part("a red", learn=True)])], gpt.spans)
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=0.1, fused=True)
    gpt.losses(stream)["text"].mean().backward()
    optimizer.step()
    assert not any(torch.equal(p, q) for p, q in zip(gpt.parameters(), mmgpt.load(tmp_path).parameters(), strict=True))
    assert file.read_bytes() == before
    save_file(gpt.state_dict(), tmp_path.with_suffix(".kept"))
    assert all(torch.equal(value, gpt.state_dict()[name]) for name, value in load_file(tmp_path.with_suffix(".kept")).items())
    learned = [p.detach().clone() for p in gpt.parameters()]
    export(gpt, tmp_path)  # over the files that it lies in
    found = mmgpt.load(tmp_path)
    assert all(torch.equal(p, q) and torch.equal(p, r) for p, q, r in zip(learned, gpt.parameters(), found.parameters(), strict=True))
    for shift in range(1, 4):
        change_header(tmp_path, lambda header: None, shift)
        askew = mmgpt.load(tmp_path)
        assert all(torch.equal(p, q) for p, q in zip(learned, askew.parameters(), strict=True))
        assert any(p.untyped_storage().nbytes() < len(before) for p in askew.parameters())
    wide = mmgpt.load(tmp_path, dtype=torch.float64)
    assert all(torch.equal(p, q.float()) for p, q in zip(learned, wide.parameters(), strict=True))


def test_a_document_begins_and_ends_as_the_checkpoint_says(tmp_path):
    """What opens it comes from the tokenizer's files, what ends it from generation_config.json; a given text has no end, a learned one has."""
    released(tmp_path, "llama", {})
    said = {"eos_token_id": [5, 7], "do_sample": True, "temperature": 0.5, "top_p": 0.9}
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))
    gpt = mmgpt.load(tmp_path)
    codes = gpt.ports["text"].codec.encode("a red").tolist()
    given, learned = ([w.ids_N.tolist() for w in gpt.write([Part("a red", learn=learn)])] for learn in (False, True))
    assert given == [[1], codes] and learned == [[1], [*codes, 5]]
    assert gpt.ports["text"].writes.ends == (5, 7) and gpt.ports["text"].sampling == mmgpt.Sampling(0.5, top_p=0.9)
    assert gpt.ports["text"].writes.codes(torch.tensor([9, 5, 9, 7]).numpy(), (1, 1, 4)).tolist() == [9, 9]


# --- what is refused ---------------------------------------------------------------------------------------------------------------------


def change_config(folder, **changes):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (values | changes).items() if v is not None}))


def change_header(folder, change, askew: int = 0):
    """The header changed, and as many bytes longer than a multiple of 8."""
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * ((askew - len(text)) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def rename(header, old, new):
    header[new] = header.pop(old)


NORM, EMPTY = "model.norm.weight", {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
FAULTS = {
    "unknown": (lambda f: change_config(f, model_type="qwen33"), "model_type 'qwen33': known are .*; the closest is qwen3"),
    "no type": (lambda f: change_config(f, model_type=None), "model_type None: known are"),
    "remote code": (lambda f: change_config(f, auto_map={"AutoModel": "evil.Evil"}), r"asks for code of its own \(AutoModel\)"),
    "other sizes": (lambda f: change_config(f, intermediate_size=64), r"mlp.gate_proj.weight has shape \(48, 32\), config.json asks for \(64, 32\)"),
    "nonsense": (lambda f: change_config(f, hidden_size="wide"), "config.json does not fit a llama"),
    "other activation": (lambda f: change_config(f, hidden_act="gelu"), "hidden_act='gelu' is not supported"),
    "longrope": (lambda f: change_config(f, rope_parameters={"rope_type": "dynamic", "rope_theta": 1.0, "factor": 2.0}), "follow the length"),
    "part of a head turns": (
        lambda f: change_config(f, rope_parameters={"rope_type": "default", "rope_theta": 1.0, "partial_rotary_factor": 0.5}),
        "partial_rotary_factor=0.5 is not supported",
    ),
    "odd width": (lambda f: change_config(f, hidden_size=33), "config.json does not fit a llama .*33.*4"),
    "quantised": (lambda f: change_config(f, quantization_config={"quant_method": "fp8"}), "its weights are quantised"),
    "whole numbers": (
        lambda f: change_header(f, lambda h: h[NORM].update(dtype="I32")),
        f"tensor {NORM} is of torch.int32: quantised weights are not read",
    ),
    "no head": (lambda f: change_config(f, architectures=["LlamaModel"], num_hidden_layers=4), "it was saved as a LlamaModel"),
    "the adapter's": (lambda f: change_config(f, model_type="mmgpt"), "to_native makes it ours"),
    "an adapter": (lambda f: (f / "config.json").rename(f / "adapter_config.json"), "it holds an adapter alone"),
    "fewer ids": (lambda f: change_config(f, vocab_size=200), "tokenizer.json has id 2.., config.json 200 ids"),
    "end outside": (lambda f: (f / "generation_config.json").write_text('{"eos_token_id": 999}'), r"eos_token_id \[999\] with 320 ids"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "no config": (lambda f: (f / "config.json").unlink(), "no manifest.json|neither manifest.json"),
    "missing tensor": (lambda f: change_header(f, lambda h: rename(h, NORM, "lost.rotary_emb.inv_freq")), f"tensor {NORM} is missing"),
    "extra tensor": (lambda f: change_header(f, lambda h: h.update(more=EMPTY)), "tensor more is not of a llama"),
    "two in one place": (lambda f: change_header(f, lambda h: h.update(more=h[NORM])), "lies at byte .*, the one before it ends at"),
    "cut short": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]), "cut short or changed"),
    "no header": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "says that .* of them are its header"),
    "broken header": (lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"{{{{"), "its header is damaged"),
    "lying header": (lambda f: change_header(f, lambda h: h[NORM].update(shape=[33])), r"F32 \[33\] in 128 bytes"),
    "pickle": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "the pickle pytorch_model.bin, which can run code"),
    "lost shard": (lambda f: (f / shards.INDEX).write_text('{"weight_map": {"a": "b.safetensors"}}'), "b.safetensors is missing, 1 of 1 shards"),
    "outside": (lambda f: (f / shards.INDEX).write_text('{"weight_map": {"a": "../b.safetensors"}}'), "index.json is damaged"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_folder_is_refused_before_memory_is_taken(fault, tmp_path, llama, monkeypatch):
    import shutil

    shutil.copytree(llama[0], tmp_path / "it")
    FAULTS[fault][0](tmp_path / "it")
    monkeypatch.setattr("mmgpt.interop.released.fill", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(CheckpointError, match=FAULTS[fault][1]):
        mmgpt.load(tmp_path / "it")


def test_what_was_said_of_sampling_is_kept(tmp_path, llama):
    """A penalty counts where the likeliest id is taken, too; and a type by its name is a type."""
    import shutil

    shutil.copytree(llama[0], tmp_path / "it")
    (tmp_path / "it" / "generation_config.json").write_text('{"repetition_penalty": 1.5, "eos_token_id": 2, "top_k": 7}')
    gpt = mmgpt.load(tmp_path / "it")
    assert gpt.ports["text"].sampling == Sampling(temperature=0.0, repetition_penalty=1.5)
    mmgpt.save(gpt, tmp_path / "half", dtype="bfloat16")
    assert mmgpt.load(tmp_path / "half").table.weight.dtype == torch.bfloat16
    with pytest.raises(InputError, match="dtype='int8'"):
        mmgpt.save(gpt, tmp_path / "x", dtype="int8")


def test_export_is_for_released_models_and_touches_nothing_else(tmp_path, llama):
    from tiny import tiny_gpt

    with pytest.raises(CheckpointError, match="mmgpt's own"):
        export(tiny_gpt(), tmp_path / "x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="no checkpoint: nothing of it was touched"):
        export(mmgpt.load(llama[0]), tmp_path / "mine")
    (tmp_path / "mine" / "config.json").write_text("{}")  # a clone of a repository: a model and more
    with pytest.raises(CheckpointError, match="holds letter.txt, 1 in all.*nothing was touched"):
        export(mmgpt.load(llama[0]), tmp_path / "mine")
    (tmp_path / "mine" / "config.json").unlink()
    assert [p.name for p in tmp_path.iterdir()] == ["mine"] and (tmp_path / "mine" / "letter.txt").read_text() == "dear"
