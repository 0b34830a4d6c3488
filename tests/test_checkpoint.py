"""Checkpoint folders: saved = loaded, every damage is noticed before anything is used, and a write that fails leaves what was there."""

import errno
import json
import os
import warnings
from itertools import count
from pathlib import Path
from random import Random

import pytest
import torch
from tiny import gap, picture, tiny_gpt

import mmgpt
from mmgpt import checkpoint, native
from mmgpt.checkpoint import FORMAT, MANIFEST, read_folder, write_folder
from mmgpt.errors import CheckpointError, InputError
from mmgpt.native import save
from mmgpt.train.codec import load_codec, save_codec

TENSORS = {"a.safetensors": {"x": torch.arange(6.0).view(2, 3), "n": torch.tensor(7)}, "b.safetensors": {"y": torch.ones(2, dtype=torch.bfloat16)}}
TEXTS = {"config.json": '{"é": 1}', "README.md": ""}


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_folder(tmp_path / "one", TENSORS, TEXTS)


def refused(folder, *words: str) -> str:
    with pytest.raises(CheckpointError) as error:
        read_folder(folder)
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message and ": " in message, message
    return message


def same(folder, tensors=TENSORS, texts=TEXTS) -> bool:
    found, read = read_folder(folder)
    equal = all(
        torch.equal(found[file][name], value) and found[file][name].dtype == value.dtype for file in tensors for name, value in tensors[file].items()
    )
    return found.keys() == tensors.keys() and read == texts and equal


def manifest_of(folder, **changes) -> dict:
    manifest = json.loads((folder / MANIFEST).read_text()) | changes
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return manifest


# --- saved = loaded -------------------------------------------------------------------------------------------------------------------


def test_saved_is_loaded(folder):
    assert same(folder) and {path.name for path in folder.iterdir()} == {*TENSORS, *TEXTS, MANIFEST}
    write_folder(folder, {}, {"other.json": "2"})
    assert same(folder, {}, {"other.json": "2"}), "a folder is replaced as a whole"
    assert [path.name for path in folder.parent.iterdir()] == ["one"]


@torch.no_grad()
def test_a_loaded_model_is_the_saved_one(tmp_path):
    """Bit for bit: weights, settings, tokenizer, what it draws; in half precision, the rounded weights."""
    gpt = tiny_gpt(3)
    loaded = native.load(native.save(gpt, tmp_path / "full", card="# a card"))
    assert loaded.config == gpt.config and not loaded.training and (tmp_path / "full" / "README.md").read_text() == "# a card"
    assert loaded.ports["text"].codec.text() == gpt.ports["text"].codec.text()
    assert all(torch.equal(a, b) for a, b in zip(gpt.state_dict().values(), loaded.state_dict().values(), strict=True))
    assert gpt.draw(["a cat"])[0].tobytes() == loaded.draw(["a cat"])[0].tobytes()
    assert gpt.caption([picture()], grid=(1, 1, 4)) == loaded.caption([picture()], grid=(1, 1, 4))
    half = native.load(native.save(gpt, tmp_path / "half", {"table.weight": gpt.table.weight * 2}, dtype=torch.float16))
    assert gap(half.table.weight, (gpt.table.weight * 2).half()) == 0 and half.table.weight.dtype == torch.float32
    assert sum(path.stat().st_size for path in (tmp_path / "half").iterdir()) < 0.7 * sum(
        path.stat().st_size for path in (tmp_path / "full").iterdir()
    )


def test_a_loaded_codec_is_the_saved_one(tmp_path):
    codec = tiny_gpt().codecs["image"].codec
    save_codec(tmp_path / "codec", codec)
    loaded, pixels = load_codec(tmp_path / "codec"), torch.rand(1, 3, 16, 16) * 2 - 1
    assert loaded.config == codec.config and torch.equal(loaded.encode(pixels), codec.encode(pixels))


# --- damage ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*TENSORS, "config.json"])
def test_missing_truncated_oversized(folder, name):
    data = (folder / name).read_bytes()
    for wrong in (data[:-1], b"", data + b"\0", data * 1000):
        (folder / name).write_bytes(wrong)
        refused(folder, name, f"{len(wrong)} bytes", f"says {len(data)}")
    (folder / name).unlink()
    refused(folder, name, "is missing")
    (folder / name).mkdir()
    refused(folder, name, "is missing")


def test_an_oversized_file_is_never_read(folder, monkeypatch):
    with open(folder / "b.safetensors", "r+b") as file:
        file.truncate(2**40)  # a terabyte of nothing
    mmap = checkpoint.mmap.mmap
    monkeypatch.setattr(checkpoint.mmap, "mmap", lambda _, size: pytest.fail("memory was taken") if size == 2**40 else mmap(-1, size))
    refused(folder, "1099511627776 bytes")


def test_any_bit_that_changes_is_noticed(folder):
    """One bit at 50 random places of the files, the manifest among them: never a wrong value, always a CheckpointError."""
    random = Random(0)
    files = sorted(path for path in folder.iterdir() if path.stat().st_size)
    for _ in range(50):
        path = random.choice(files)
        data = path.read_bytes()
        changed = bytearray(data)
        changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
        path.write_bytes(changed)
        try:
            if path.name == MANIFEST and same(folder):
                continue  # a blank that became another blank, say: nothing that counts was changed
        except (CheckpointError, KeyError):
            pass
        refused(folder)
        path.write_bytes(data)
    assert same(folder)


def test_a_file_beside_the_manifest_is_not_read(folder):
    (folder / "evil.safetensors").write_bytes(b"not in the manifest")
    assert same(folder)


@pytest.mark.parametrize("name", ["../one/README.md", "/etc/hostname", "sub/x", "..", ".", "", "a\0b", "gone.json"])
def test_a_manifest_cannot_name_other_files(folder, name):
    files = manifest_of(folder)["files"]
    manifest_of(folder, files=files | {name: files["README.md"]})
    refused(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        "{}",
        '{"format": 1}',
        '{"format": "1", "files": {}}',
        '{"format": true, "files": {}}',
        '{"format": 0, "files": {}}',
        '{"format": 1, "files": {}, "files": {}}',
        '{"format": 1, "files": {"a": {"sha256": 7, "bytes": 0}}}',
        '{"format": 1, "files": {"a": {"sha256": "", "bytes": -1}}}',
        '{"format": 1, "files": []}',
        '{"format": 1, "files": {"a": 7}}',
        '{"format": 1, "files": {"a": ["sha256", "bytes"]}}',
        '{"format": 1, "files": {"a": {"sha256": ""}}}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_a_damaged_manifest(folder, text):
    (folder / MANIFEST).write_text(text, errors="surrogateescape")
    refused(folder, "damaged")


def test_a_newer_format_says_so(folder):
    manifest_of(folder, format=FORMAT + 1)
    refused(folder, f"format {FORMAT + 1}", f"up to {FORMAT}", "upgrade")


def test_no_checkpoint_at_all(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        refused(path, "has no manifest.json")
    (tmp_path / MANIFEST).mkdir()
    refused(tmp_path, "has no manifest.json")


def test_a_folder_with_other_things_is_not_replaced(folder):
    (folder / "precious.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds precious.txt, 1 in all.*nothing was touched"):
        write_folder(folder, TENSORS, TEXTS)
    (folder / MANIFEST).write_text('{"name": "a web page"}')  # of another program
    with pytest.raises(CheckpointError, match="damaged"):
        write_folder(folder, TENSORS, TEXTS)
    assert (folder / "precious.txt").read_text() == "mine"


def test_where_and_in_what_type_a_model_is_loaded():
    with pytest.raises(InputError, match="device='gpu'"):
        mmgpt.load("emoji", device="gpu")
    with pytest.raises(InputError, match=f"{torch.cuda.device_count()} CUDA devices"):
        mmgpt.load("emoji", device="cuda:99")
    for dtype in ("float17", "int8"):
        with pytest.raises(InputError, match=f"dtype='{dtype}'"):
            mmgpt.load("emoji", dtype=dtype)


def test_a_model_of_half_precision_reads_and_writes(tmp_path):
    gpt = mmgpt.load(save(tiny_gpt(), tmp_path / "it"), dtype="bfloat16")
    assert gpt.table.weight.dtype == torch.bfloat16 and gpt.codecs["image"].codec.state_dict().keys()
    assert all(weight.dtype == torch.float32 for weight in gpt.codecs.parameters())
    assert isinstance(gpt.caption([picture(1)], grid=(1, 1, 2))[0], str) and gpt.draw(["a cat"])[0].size == (16, 16)


def test_a_run_is_no_model(tmp_path):
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(CheckpointError, match="its model is not finished"):
        mmgpt.load(tmp_path)
    (tmp_path / "final").mkdir()
    with pytest.raises(CheckpointError, match="final"):
        mmgpt.load(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint 'tests/nowhere'"):  # there is a folder tests: no hub is asked
        mmgpt.load("tests/nowhere")


def test_what_is_hashed_but_no_safetensors(tmp_path):
    write_folder(tmp_path / "one", {}, {"x.safetensors": "not tensors"})
    refused(tmp_path / "one", "x.safetensors has 11 bytes and says")


# --- a folder that is in order but no model ---------------------------------------------------------------------------------------------


def test_a_folder_of_another_model(tmp_path):
    gpt = tiny_gpt()
    path = native.save(gpt, tmp_path / "tiny")
    tensors, texts = read_folder(path)
    good, config = tensors["model.safetensors"], json.loads(texts["config.json"])
    name = "decoder.norm.weight"
    cases = [
        ({"model.safetensors": good | {name: torch.ones(65)}}, r"decoder.norm.weight has shape \(65,\), its config asks for \(64,\)"),
        ({"model.safetensors": {k: v for k, v in good.items() if k != name}}, "decoder.norm.weight is missing"),
        ({"model.safetensors": good | {"extra": torch.ones(1)}}, "extra is not of this model"),
        ({"config.json": "{"}, "config.json is no JSON object"),
        ({"config.json": "[1]"}, "config.json is no JSON object"),
        ({"config.json": json.dumps(config | {"kind": "llama"})}, "kind 'llama'"),
        ({"config.json": json.dumps(config | {"taste": 1})}, "taste"),
        ({"config.json": json.dumps(config | {"decoder": {"smell": 1}})}, "smell"),
        ({"config.json": json.dumps(config | {"decoder": 7})}, "does not fit"),
        ({"config.json": json.dumps(config | {"num_text": 12})}, "num_text=12"),
        ({"tokenizer.json": "{}"}, "tokenizer.json cannot be read"),
    ]
    for changes, message in cases:
        write_folder(
            path, tensors | changes if "model.safetensors" in changes else tensors, texts | {k: v for k, v in changes.items() if isinstance(v, str)}
        )
        with pytest.raises((CheckpointError, InputError), match=message):
            native.load(path)
    write_folder(path, tensors, {"config.json": texts["config.json"]})
    with pytest.raises(CheckpointError, match="no tokenizer.json"):
        native.load(path)


def test_a_folder_of_another_codec(tmp_path):
    codec = tiny_gpt().codecs["image"].codec
    save_codec(tmp_path / "codec", codec)
    tensors, texts = read_folder(tmp_path / "codec")
    for changed, message in [
        ({"codec.json": "{"}, "no JSON object"),
        ({"codec.json": '{"smell": 1}'}, "smell"),
        ({"codec.json": texts["codec.json"].replace("16", "32")}, "its config asks for"),
    ]:
        write_folder(tmp_path / "other", tensors, changed)
        with pytest.raises(CheckpointError, match=message):
            load_codec(tmp_path / "other")
    write_folder(tmp_path / "other", {}, texts)
    with pytest.raises(CheckpointError, match="missing"):
        load_codec(tmp_path / "other")


# --- writes that fail -----------------------------------------------------------------------------------------------------------------

NEW = ({"a.safetensors": {"x": torch.zeros(3)}}, {"config.json": "[]"})
CALLS = [(os, "fsync"), (os, "write"), (os, "replace"), (os, "open"), (Path, "mkdir")]


def at(number: int, function, act):
    """`function`, but its call number `number` is `act` instead."""
    calls = count()

    def wrapped(*args, **kwargs):
        return act() if next(calls) == number else function(*args, **kwargs)

    return wrapped


def full():
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("owner", "name", "act"),
    [*[(*call, full) for call in CALLS], *[(*call, interrupted) for call in CALLS[:3]]],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_a_write_that_fails_changes_nothing(folder, monkeypatch, owner, name, act):
    """At every single call that can fail: the old folder is whole, nothing lies about, and the message says what to do."""
    function, failures = getattr(owner, name, open), 0
    for number in range(20):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, at(number, function, act), raising=False)
            try:
                write_folder(folder, *NEW)
                break
            except (CheckpointError, KeyboardInterrupt) as error:
                assert act is interrupted or "No space left on device" in str(error) and "nothing was changed" in str(error)
                failures += 1
        assert same(folder) and [path.name for path in folder.parent.iterdir()] == ["one"], number
    assert failures >= (1 if name == "mkdir" else 2) and same(folder, *NEW)


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        write_folder(tmp_path / "file" / "below", *NEW)


@pytest.mark.parametrize(("owner", "name"), CALLS[:3], ids=lambda x: x if isinstance(x, str) else "")
def test_killed_at_any_moment(tmp_path, monkeypatch, owner, name):
    """As by `kill -9`: a whole folder is always there, the old or the new, at worst under the name `one.old-...`."""
    seen = set()
    for number in range(12):
        folder = write_folder(tmp_path / str(number) / "one", TENSORS, TEXTS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside torch's threads: the child only writes files
            child = os.fork()
        if child == 0:
            setattr(owner, name, at(number, getattr(owner, name, open), lambda: os._exit(9)))
            write_folder(folder, *NEW)
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        found = folder if folder.exists() else next(folder.parent.glob("one.old-*"))
        assert same(found, *(NEW if read_folder(found)[1]["config.json"] == "[]" else (TENSORS, TEXTS))), number
        seen.add(killed)
        if not killed:
            break
    assert seen == {True, False}


# --- weights in 8 bits ----------------------------------------------------------------------------------------------------------------


def test_parts_in_8_bits_come_back_almost_as_they_were(tmp_path):
    """Half a step of its row at most is lost, a quarter of the bytes of float32 is left; what is no matrix, or of no such part, stays."""
    gpt = tiny_gpt()
    with torch.no_grad():
        gpt.decoder.blocks[0].mlp.down.weight[1] = 0  # a row of zeros
        gpt.decoder.blocks[0].mlp.down.weight[2] *= 1000
    folders = [save(gpt, tmp_path / name, dtype=torch.float16, eight=eight) for name, eight in (("half", ()), ("eight", ("decoder",)))]
    half, eight = (mmgpt.load(folder).state_dict() for folder in folders)
    assert half.keys() == eight.keys()
    for name, tensor in gpt.state_dict().items():
        if name.startswith("decoder.") and tensor.ndim > 1:
            most = tensor.flatten(1).abs().amax(1, keepdim=True) / 127 * 0.501
            assert ((eight[name] - tensor).flatten(1).abs() <= most).all(), name
        else:
            assert torch.equal(eight[name], half[name]), name
    sizes = [sum(file.stat().st_size for file in folder.iterdir()) for folder in folders]
    matrices = sum(t.numel() for name, t in gpt.state_dict().items() if name.startswith("decoder.") and t.ndim > 1)
    assert sizes[0] - sizes[1] > 0.8 * matrices


@pytest.mark.parametrize(
    "change, words", [("rows", "its steps are"), ("lost", "not all of them"), ("kind", "float32, its steps"), ("bare", "steps are None")]
)
def test_steps_without_their_rows_are_refused(change, words, tmp_path):
    folder = save(tiny_gpt(), tmp_path / "one", eight=("decoder",))
    tensors, texts = read_folder(folder)
    found = tensors["model.safetensors"]
    name = next(name for name in found if name.endswith(".step"))
    if change == "rows":
        found[name] = found[name][1:]
    elif change == "lost":
        found["other.step"] = found[name]
    elif change == "bare":
        del found[name]
    else:
        found[name.removesuffix(".step")] = found[name.removesuffix(".step")].float()
    with pytest.raises(CheckpointError, match=words):
        mmgpt.load(write_folder(tmp_path / "two", tensors, texts))


def test_steps_are_as_fine_as_their_rows(tmp_path):
    """However small the weights of a row are, and whatever type the others are stored in."""
    gpt = tiny_gpt()
    weight = gpt.decoder.blocks[0].mlp.down.weight
    with torch.no_grad():
        weight[1] *= 1e-9
    again = mmgpt.load(save(gpt, tmp_path / "one", dtype=torch.bfloat16, eight=("decoder",))).decoder.blocks[0].mlp.down.weight
    assert ((again - weight).abs() <= weight.abs().amax(1, keepdim=True) / 127 * 0.501).all()
    with pytest.raises(CheckpointError, match="tensors belong to 'decodr'"):
        save(gpt, tmp_path / "two", eight=("decodr",))
    assert not (tmp_path / "two").exists()
