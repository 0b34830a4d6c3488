"""Folders, JSON lines and Parquet files -> the same records; whatever is wrong with a source is one DataError that names the place."""

import json
import runpy
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmgpt.data.pictures import open_picture
from mmgpt.data.read import Record, read_records
from mmgpt.errors import DataError

HERE = Path(__file__).parent
EMOJI = HERE / "data" / "emoji40.parquet"


def put_pictures(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (number, 0, 0)).save(folder / name)
    return folder


def put_rows(path: Path, *rows: dict | str) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def refused(source, **options) -> str:
    with pytest.raises(DataError) as error:
        read_records(source, **options)
    message = str(error.value)
    assert isinstance(error.value, ValueError) and "\n" not in message and ";" in message  # "; " leads to the remedy
    return message


# --- folders --------------------------------------------------------------------------------------------------------------------------


def test_folder_texts_come_from_captions_then_sub_folders_then_names(tmp_path):
    put_pictures(tmp_path, "red_apple.png", "b.jpg", "wild_cats/1.png", "wild_cats/2.webp", ".hidden/3.png", ".4.png")
    (tmp_path / "b.txt").write_text("\ufeffa bee\n", encoding="utf-8")
    (tmp_path / "wild_cats" / "2.txt").write_text("a lynx", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("no picture")
    found = [(record.picture.relative_to(tmp_path).as_posix(), record.text) for record in read_records(tmp_path)]
    assert found == [("b.jpg", "a bee"), ("red_apple.png", "red apple"), ("wild_cats/1.png", "wild cats"), ("wild_cats/2.webp", "a lynx")]


def test_folder_with_metadata(tmp_path):
    put_pictures(tmp_path, "a.png", "deep/b.png", "unlisted.png")
    put_rows(tmp_path / "metadata.jsonl", {"file_name": "deep/b.png", "text": "a bee", "year": 3}, "", {"file_name": "a.png", "text": "an ant"})
    assert read_records(tmp_path) == [Record(tmp_path / "deep/b.png", "a bee", {"year": 3}), Record(tmp_path / "a.png", "an ant", {})]


def test_captions_that_cannot_be_used(tmp_path):
    put_pictures(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    assert "a.txt" in refused(tmp_path) and "byte 3 is not UTF-8" in refused(tmp_path)
    (tmp_path / "a.txt").write_text(" \n")
    assert "a.txt': the text is empty" in refused(tmp_path)


# --- JSON lines -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["text", "caption", "label"])
def test_jsonl_text_columns(tmp_path, column):
    put_pictures(tmp_path, "a.png")
    path = put_rows(tmp_path / "rows.jsonl", {"image": "a.png", column: "an ant", "tags": ["x"]})
    assert read_records(path) == [Record(tmp_path / "a.png", "an ant", {"tags": ["x"]})]


def test_text_names_another_column_and_limit_counts(tmp_path):
    put_pictures(tmp_path, "a.png")
    path = put_rows(tmp_path / "rows.jsonl", {"image": "a.png", "text": "an ant", "de": "Ameise"}, "broken")
    assert read_records(str(path), text="de", limit=1) == [Record(tmp_path / "a.png", "Ameise", {"text": "an ant"})]


DEEP = "[" * 100_000
BAD_LINES = [
    ('{"image": "a.png", "text": "cut', "line 2 is not JSON"),
    (DEEP, "line 2 is not JSON"),
    ("[1, 2]", "line 2 holds a list"),
    ('{"image": "a.png"}', "no column text or caption or label, only image"),
    ('{"text": "t"}', "no column image, only text"),
    ("{}", "no column image, only none"),
    ('{"image": "no.png", "text": "t"}', "no.png' does not exist"),
    ('{"image": "a\\u0000.png", "text": "t"}', "does not exist"),
    (json.dumps({"image": "x" * 5000, "text": "t"}), "does not exist"),
    ('{"image": 3, "text": "t"}', "'image' is a int"),
    ('{"image": "a.png", "text": 3}', "column 'text' holds a int"),
    ('{"image": "a.png", "text": null}', "column 'text' holds a NoneType"),
    ('{"image": "a.png", "text": "  "}', "text is empty"),
    ('{"image": "a.png", "text": "ab\\ud800"}', "character 2 is half a surrogate pair"),
]


@pytest.mark.parametrize("line, reason", BAD_LINES, ids=[reason for _, reason in BAD_LINES])
def test_bad_line_is_named_by_its_number(tmp_path, line, reason):
    put_pictures(tmp_path, "a.png")
    message = refused(put_rows(tmp_path / "rows.jsonl", {"image": "a.png", "text": "good"}, line))
    assert reason in message and "rows.jsonl' line 2" in message and len(message) < 1000


def test_line_that_is_not_utf8(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf\n{"image": "caf\xe9"}')
    assert "line 1 is not JSON" in refused(tmp_path / "rows.jsonl") or "line 2 is not JSON" in refused(tmp_path / "rows.jsonl")


# --- Parquet --------------------------------------------------------------------------------------------------------------------------


def test_fixture():
    records = read_records(EMOJI)
    assert len(records) == 40 and EMOJI.stat().st_size < 200_000
    assert all(open_picture(record.picture).size == (64, 64) for record in records)
    assert {tuple(record.fields) for record in records} == {("tags", "group", "style", "skin", "hexcode", "split")}
    assert {record.fields["split"] for record in records} == {"train", "test"}
    assert len({record.fields["group"] for record in records}) == 10 and len({record.fields["style"] for record in records}) == 5
    names = [record.text for record in records if not record.fields["skin"]]
    assert len({name for name in names if names.count(name) >= 3}) >= 5 and len(names) < 40


def test_fixture_splits_agree_with_the_list_of_test_concepts():
    held_out = set((HERE.parent / "tools" / "emoji_test_concepts.txt").read_text(encoding="utf-8").splitlines())
    for record in read_records(EMOJI):
        concept = record.text.split(":")[0] if record.fields["skin"] else record.text
        assert (concept in held_out) == (record.fields["split"] == "test"), record.text


def test_example_pictures_are_of_the_test_split():
    held_out = set((HERE.parent / "tools" / "emoji_test_concepts.txt").read_text(encoding="utf-8").splitlines())
    paths = sorted((HERE.parent / "examples" / "pictures").glob("*.png"))
    examples = runpy.run_path(str(HERE.parent / "tools" / "build_emoji.py"))["EXAMPLES"]
    assert [path.stem for path in paths] == sorted(f"{name.replace(' ', '-')}-{style}" for name, style in examples.items())
    assert set(examples) <= held_out and len(paths) == 8 and sum(path.stat().st_size for path in paths) < 60_000
    attribution = (HERE.parent / "examples" / "pictures" / "README.md").read_text(encoding="utf-8")
    assert all(open_picture(path).size == (64, 64) and path.name in attribution for path in paths)


def test_datasets_reads_the_same_fixture(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = datasets.load_dataset("parquet", data_files=str(EMOJI), split="train", cache_dir=str(tmp_path))
    assert rows.features["image"] == datasets.Image()
    rows = rows.cast_column("image", datasets.Image(decode=False))
    assert [(row["image"]["bytes"], row["label"]) for row in rows] == [(record.picture, record.text) for record in read_records(EMOJI)]


def write(path: Path, columns: dict, metadata: dict | None = None) -> Path:
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


def test_parquet_limit_and_other_text_column():
    assert [record.text for record in read_records(EMOJI, limit=3)] == [record.text for record in read_records(EMOJI)][:3]
    by_style = read_records(EMOJI, text="style", limit=1)[0]
    assert by_style.text == "emojione" and by_style.fields["label"] == "banana"


def test_parquet_images_as_bytes_and_as_paths(tmp_path):
    put_pictures(tmp_path, "a.png")
    content = (tmp_path / "a.png").read_bytes()
    assert read_records(write(tmp_path / "b.parquet", {"image": [content], "text": ["t"]})) == [Record(content, "t", {})]
    paths = write(tmp_path / "p.parquet", {"image": [{"bytes": None, "path": "a.png"}], "text": ["t"]})
    assert read_records(paths) == [Record(tmp_path / "a.png", "t", {})]


def test_class_labels_become_their_names(tmp_path):
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path = write(tmp_path / "c.parquet", {"image": [b"x", b"y"], "label": [1, 0]}, metadata)
    assert [record.text for record in read_records(path)] == ["dog", "cat"]
    assert "row 1 column 'label' holds a int" in refused(write(tmp_path / "d.parquet", {"image": [b"x"], "label": [1]}))
    for wrong in (2, -1):
        path = write(tmp_path / "e.parquet", {"image": [b"x"], "label": [wrong]}, metadata)
        assert "row 1" in refused(path)


def test_bad_parquet(tmp_path):
    assert "no column image, only text" in refused(write(tmp_path / "a.parquet", {"text": ["t"]}))
    assert "no column text or caption or label, only image" in refused(write(tmp_path / "a.parquet", {"image": [b"x"]}))
    assert "no column mood, only" in refused(EMOJI, text="mood")
    for picture in (None, {"bytes": None, "path": None}):
        column = pa.array([picture], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        assert "row 1: 'image' holds neither bytes nor a path" in refused(write(tmp_path / "a.parquet", {"image": column, "text": ["t"]}))
    content = EMOJI.read_bytes()
    for broken in (b"", b"PAR1", content[:-9], content[len(content) // 2 :], b"x" * len(content)):
        (tmp_path / "broken.parquet").write_bytes(broken)
        assert "cannot be read as Parquet" in refused(tmp_path / "broken.parquet")


def test_changed_parquet_is_read_or_refused(tmp_path):
    content = EMOJI.read_bytes()
    for at in range(0, len(content), len(content) // 150):
        (tmp_path / "changed.parquet").write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        try:
            read_records(tmp_path / "changed.parquet")
        except DataError as error:
            assert "\n" not in str(error)


# --- any source -----------------------------------------------------------------------------------------------------------------------


def test_missing_empty_and_unknown_sources(tmp_path):
    assert "does not exist" in refused(tmp_path / "nowhere")
    assert "0 records, at least 1" in refused(tmp_path)
    assert "0 records, at least 1" in refused(put_rows(tmp_path / "empty.jsonl", "", " "))
    no_rows = {"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())}
    assert "0 records, at least 1" in refused(write(tmp_path / "empty.parquet", no_rows))
    assert "suffix '.csv'" in refused(put_rows(tmp_path / "rows.csv", "image,text"))
    assert "cannot be read: File name too long" in refused("x" * 5000)
    assert "does not exist" in refused("a\0b")
    for limit in (0, -1):
        assert f"limit is {limit}, at least 1" in refused(EMOJI, limit=limit)
