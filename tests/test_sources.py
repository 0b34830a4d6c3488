"""Every kind of file gives the same samples; what is broken is one bad sample with a name, and the next one is read."""

import io
import json
import tarfile
import wave

import numpy as np
import pytest
import torch
from PIL import Image
from streams import lines, pairs, parquet, png, tar, words

from mmgpt.data import parquet as parquet_module
from mmgpt.data.inspect import samples_in
from mmgpt.data.row import Row
from mmgpt.data.samples import Form, sample_of
from mmgpt.data.sound import open_sound
from mmgpt.data.sources import open_source
from mmgpt.errors import DataError, InputError
from mmgpt.types import Audio, Part


def read(source, form: Form | None = None) -> tuple[list, list[str]]:
    """(samples as plain values, what is said of the bad ones)."""
    bad: list[str] = []
    form = form or Form()
    found = [sample for _, _, sample in samples_in(source, form, bad=lambda place, error: bad.append(f"{place}: {error}"))]
    return [[(plain(part.value), part.learn) for part in sample] for sample in found], bad


def plain(value):
    return value.tobytes() if isinstance(value, Image.Image) else value


def wav(samples: np.ndarray, rate: int = 8000, size: int = 2) -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(size)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return content.getvalue()


# --- kinds ----------------------------------------------------------------------------------------------------------------------------


def test_all_kinds_of_files_hold_the_same_pairs(tmp_path):
    rows = [{"image": png(n), "text": words(n)} for n in range(5)]
    folder = tmp_path / "folder"
    folder.mkdir()
    for n, row in enumerate(rows):
        (folder / f"{n}.png").write_bytes(row["image"])
        (folder / f"{n}.txt").write_text(row["text"])
    named = [{"image": f"folder/{n}.png", "text": row["text"]} for n, row in enumerate(rows)]
    sources = {
        "folder": folder,
        "lines": lines(tmp_path / "a.jsonl", named),
        "parquet": parquet(tmp_path / "a.parquet", [row | {"image": {"bytes": row["image"], "path": None}} for row in rows], 2),
        "bare": parquet(tmp_path / "b.parquet", rows),
        "tar": tar(tmp_path / "a.tar", pairs(5)),
        "metadata": lines(folder / "metadata.jsonl", [{"file_name": f"{n}.png", "text": row["text"]} for n, row in enumerate(rows)]).parent,
    }
    expected = [[(Image.open(io.BytesIO(row["image"])).tobytes(), False), ("caption:", False), (row["text"], True)] for row in rows]
    found = {}
    for name, path in sources.items():
        if name == "folder":
            (folder / "metadata.jsonl").rename(tmp_path / "aside")
        source = open_source(str(path))
        found[name] = read(source)
        assert source.size == 5, name
        if name == "folder":
            (tmp_path / "aside").rename(folder / "metadata.jsonl")
    assert all(one == (expected, []) for one in found.values()), found.keys()


def test_many_files_are_one_source(tmp_path):
    """By folder, by pattern and by address; samples are named by their file and their index in it."""
    for n in range(3):
        parquet(tmp_path / f"{n}.parquet", [{"text": words(10 * n + m)} for m in range(3)], 2)
    expected = [[(words(10 * n + m), True)] for n in range(3) for m in range(3)]
    by_address = parquet_module.ParquetSource("x", [f"file://{tmp_path}/{n}.parquet" for n in range(3)])
    for source in (open_source(str(tmp_path)), open_source(f"{tmp_path}/*.parquet"), by_address):
        assert read(source)[0] == expected and source.num_blocks == 6 and source.size == 9
        assert source.where(5, 0) == ("2.parquet", 2)


def test_a_data_set_of_the_hub_is_its_parquet_files(tmp_path, monkeypatch):
    """`datasets` finds the files (here of a local data set: tests have no network); they are read by row group."""
    datasets = pytest.importorskip("datasets")
    path = str(parquet(tmp_path / "train.parquet", [{"text": words(n)} for n in range(5)], 2))
    real = datasets.load_dataset_builder
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: real("parquet", data_files={"train": path}, cache_dir=str(tmp_path / "cache")))
    assert read(open_source("hub:some/name"))[0] == [[(words(n), True)] for n in range(5)]
    with pytest.raises(DataError, match="0 files in 'test' .splits: train."):
        open_source("hub:some/name:test")


@pytest.mark.parametrize(
    "word, message", [("no", "names 0 files"), ("a.txt", "kinds .txt"), ("a.parquet", "as Parquet"), ("b.parquet", "columns number")]
)
def test_sources_that_cannot_be_opened(tmp_path, word, message):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.parquet").write_text("a")
    parquet(tmp_path / "b.parquet", [{"number": 3}])
    lines(tmp_path / "c.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path / word))


# --- what a row may hold --------------------------------------------------------------------------------------------------------------


def learned(columns: dict, form: Form | None = None, *key) -> list:
    files = {"a.png": png(1), "a.wav": wav(np.zeros((80, 1), "<i2"))}
    return [(type(part.value).__name__, part.learn) for part in sample_of(Row(columns, files.__getitem__), form or Form(), *key)]


def test_pages_and_chats():
    page = {
        "parts": [{"text": "a"}, {"image": "a.png"}, {"audio": "a.wav"}, {"text": "b", "learn": False}, {"image": {"path": "a.png"}, "learn": True}]
    }
    assert learned(page) == [("str", True), ("Image", False), ("Audio", False), ("str", False), ("Image", True)]
    assert learned({"parts": json.dumps(page["parts"])}) == learned(page)
    said = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "a cat"}]
    chat = {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "draw"}, {"role": "assistant", "content": said}]}
    assert learned(chat) == [("str", False), ("str", False), ("Image", True), ("str", True)]


def test_pairs_are_captioned_or_drawn_by_chance():
    row = {"image": "a.png", "label": "a cat"}
    assert learned(row) == [("Image", False), ("str", False), ("str", True)]
    assert learned(row, Form(draws=1.0)) == [("str", False), ("Image", True)]
    drawn = [len(learned(row, Form(draws=0.25), "key", n)) == 2 for n in range(200)]
    assert 30 <= sum(drawn) <= 70 and drawn == [len(learned(row, Form(draws=0.25), "key", n)) == 2 for n in range(200)]
    dropped = [sample_of(Row(row, lambda _: png(1)), Form(draws=1.0, drop=0.5), n)[0].value for n in range(50)]
    assert set(dropped) == {"", "a cat"} and 10 <= dropped.count("") <= 40


def test_class_labels_of_parquet_are_words(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features({"text": datasets.ClassLabel(names=["ant", "bee"])})
    datasets.Dataset.from_dict({"text": [1, 0]}, features=features).to_parquet(tmp_path / "a.parquet")
    assert read(open_source(str(tmp_path / "a.parquet")))[0] == [[("bee", True)], [("ant", True)]]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_sound_of_every_width(size):
    values = np.array([[-1.0, 0.0], [0.5, -0.5], [0.0, 0.25]])
    if size == 1:
        stored = (values * 128 + 128).clip(0, 255).astype(np.uint8)
    else:
        whole = (values * 2 ** (8 * size - 1)).astype("<i8").view(np.uint8).reshape(3, 2, 8)[..., :size]
        stored = np.ascontiguousarray(whole)
    sound = open_sound(wav(stored, 16000, size))
    assert sound.rate == 16000 and torch.equal(sound.samples, torch.tensor(values.T.copy(), dtype=torch.float32))


@pytest.mark.parametrize(
    "change", [lambda b: b[:30], lambda b: b[:-3], lambda b: b"", lambda b: b.replace(b"WAVE", b"WAVX"), lambda b: b[:22] + b"\xff\xff" + b[24:]]
)
def test_sound_that_cannot_be_read(change):
    with pytest.raises(InputError):
        open_sound(change(wav(np.zeros((100, 1), "<i2"))))


# --- tars -----------------------------------------------------------------------------------------------------------------------------


def test_members_of_a_tar_are_found_by_kind_and_names_are_no_paths(tmp_path):
    """Pages in a .json take pictures from beside it; a name that would climb out of the folder is only a key."""
    page = {"parts": [{"text": "a"}, {"image": "1.png"}, {"image": "../../secret.png"}]}
    good = {"parts": [{"text": "a"}, {"image": "1.png"}, {"image": "2.PNG", "learn": True}]}
    (tmp_path / "secret.png").write_bytes(png(9))
    members = [("x/y.json", json.dumps(page).encode()), ("x/y.1.png", png(1)), ("../../b.json", json.dumps(good).encode())]
    found, bad = read(open_source(str(tar(tmp_path / "a.tar", [*members, ("../../b.1.png", png(1)), ("../../b.2.png", png(2))]))))
    assert [learn for _, learn in found[0]] == [True, False, True] and len(found) == 1
    assert bad == ["a.tar, sample 0: no member '../../secret.png', only json, 1.png; name what stands behind the first dot"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "secret.png"]


def test_links_devices_and_folders_in_a_tar_are_nothing(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for kind, name in ((tarfile.SYMTYPE, "a.png"), (tarfile.LNKTYPE, "b.png"), (tarfile.CHRTYPE, "c.png"), (tarfile.DIRTYPE, "d")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
        info = tarfile.TarInfo("e.txt")
        info.size = 5
        file.addfile(info, io.BytesIO(b"words"))
    assert read(open_source(str(tmp_path / "a.tar"))) == ([[("words", True)]], [])


def test_a_tar_that_is_cut_or_broken_is_one_bad_sample_and_never_a_silent_end(tmp_path):
    whole = tar(tmp_path / "a.tar", [(f"{n}.txt", words(n).encode()) for n in range(6)]).read_bytes()
    expected = [[(words(n), True)] for n in range(6)]
    ends = {}
    for cut in range(0, 6 * 1024, 128):
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        found, bad = read(open_source(str(tmp_path / "a.tar")))
        assert found == expected[: len(found)] and len(bad) <= 1
        ends[cut] = (len(found), len(bad))
        assert bad or cut % 1024 in (0, 640, 768, 896) and cut, cut  # only where a member had just ended is nothing missing that one could know of
    for at in (1024 * 3 + 150, 1024 * 3 + 5):
        (tmp_path / "a.tar").write_bytes(whole[:at] + b"\x07" + whole[at + 1 :])
        found, bad = read(open_source(str(tmp_path / "a.tar")))
        assert found == expected[:3] and len(bad) == 1 and "broken from here on" in bad[0]


def test_a_member_or_header_that_is_too_big_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("mmgpt.data.tars.MAX_MEMBER", 1000)
    path = tar(tmp_path / "a.tar", [("a.txt", b"x" * 1001), ("b.txt", b"words")])
    found, bad = read(open_source(str(path)))
    assert found == [[("words", True)]] and "1001 bytes, at most 1000" in bad[0]
    tar(path, [("a" * 2**20 + ".txt", b"words")])  # tarfile itself would read a name of any length
    found, bad = read(open_source(str(path)))
    assert found == [] and len(bad) == 1 and "broken from here on" in bad[0]


def test_a_row_group_that_cannot_be_read_is_as_many_bad_samples_as_it_has_rows(tmp_path):
    path = parquet(tmp_path / "a.parquet", [{"text": words(n)} for n in range(12)], 4)
    source = open_source(str(path))
    content = bytearray(path.read_bytes())
    import pyarrow.parquet as pq

    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    found, bad = read(source)
    assert found == [[(words(n), True)] for n in (0, 1, 2, 3, 8, 9, 10, 11)] and [b.split(":")[0] for b in bad] == [
        f"a.parquet, sample {n}" for n in range(4, 8)
    ]


def test_an_audio_part_is_sound():
    (part,) = sample_of(Row({"parts": [{"audio": wav(np.zeros((80, 2), "<i2"))}]}, dict), Form())
    assert isinstance(part, Part) and isinstance(part.value, Audio) and part.value.samples.shape == (2, 80) and not part.learn
