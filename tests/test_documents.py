"""The task of streams, its recipe, and `mmgpt data inspect`: what is inspected is what is trained on."""

import json

import pytest
import torch
from streams import lines, parquet, png, tar, three_sources, words
from tiny import tiny_gpt

from mmgpt.cli import main
from mmgpt.data.mixture import Mixture
from mmgpt.data.samples import Form
from mmgpt.errors import DataError, TrainingError
from mmgpt.train.loop import Task, train
from mmgpt.train.recipes import RECIPES
from mmgpt.train.stream import StreamTask, writer

GPT = tiny_gpt().train()


def task(sources, rows: int = 2, **feeding) -> StreamTask:
    gpt = GPT
    mixture = Mixture(sources, writer(gpt).write, gpt.spans, 128, rows, begins=1, waiting=4, form=Form(draws=0.5))
    return StreamTask(gpt, mixture, {"image": 0.5}, **feeding)


def ids(batch) -> list:
    return [batch.stream.ids_BT.tolist(), batch.names]


def test_a_task_goes_on_from_its_state(tmp_path):
    """Batches behind a state are the batches that would have followed; also for two ranks that go on from one."""
    sources = three_sources(tmp_path)
    whole = task(sources)
    assert isinstance(whole, Task) and whole.data_state() == {}
    batches = [whole.batch(step) for step in range(4)]
    early = task(sources)
    assert ids(early.batch(0)) == ids(batches[0]) and ids(early.batch(1)) == ids(batches[1])
    state = json.loads(json.dumps(early.data_state()))
    again = task(sources)
    again.load_data_state(state)
    assert ids(again.batch(2)) == ids(batches[2]) and again.data_state() != state
    ranks = [task(sources), task(sources)]
    for rank, one in enumerate(ranks):
        one.rank, one.world = rank, 2
        one.load_data_state(state)
    parts = [one.batch(2) for one in ranks]
    assert torch.equal(torch.cat([part.stream.ids_BT for part in parts]), batches[2].stream.ids_BT)
    again.load_data_state([one.data_state() for one in ranks])
    assert ids(again.batch(3)) == ids(batches[3])


def test_batches_are_asked_for_in_order(tmp_path):
    one = task(three_sources(tmp_path), rows=3)
    one.batch(5)
    with pytest.raises(TrainingError, match="batch 5 was asked for, 6 is next"):
        one.batch(5)
    one.close()
    one.world = 2
    with pytest.raises(TrainingError, match="3 rows for 2 ranks"):
        one.batch(5)


def test_losses_are_weighted_by_head_and_divided_by_the_counts_of_the_whole(tmp_path):
    one = task(three_sources(tmp_path))
    batch = one.batch(0)
    with torch.no_grad():
        loss, figures = one.losses(batch)
        half, _ = one.losses(batch, {head: 2 * count for head, count in one.counts(batch).items()})
    assert set(figures) == {"text", "image"} and float(loss) == pytest.approx(figures["text"] + 0.5 * figures["image"], rel=1e-6)
    assert float(half) == pytest.approx(float(loss) / 2, rel=1e-6)


def test_the_recipe_trains_samples_and_exports(tmp_path, tiny_folder):
    (tmp_path / "a.png").write_bytes(png(1, 16))
    lines(tmp_path / "a.jsonl", [{"image": "a.png", "text": f"a cat {n}"} for n in range(4)] + [b"{"])
    parquet(tmp_path / "b.parquet", [{"text": words(n)} for n in range(9)])
    data = f"{tmp_path}/a.jsonl,{tmp_path}/b.parquet"
    settings = {
        "rows": "2",
        "row_length": "96",
        "waiting": "4",
        "steps": "2",
        "max_bad": "0.5",
        "save_every": "0",
        "sample_every": "2",
        "workers": "1",
    }
    job = RECIPES["documents"]({"data": data, "weights": "2,1", "init": str(tiny_folder), "out": str(tmp_path / "run"), **settings})
    assert job.task.mixture.shares == pytest.approx([2 / 3, 1 / 3]) and job.settings.workers == 0 and job.task.feeding["workers"] == 1
    trainer = train(job.task, job.settings, job.out)
    assert trainer.step == 2 and (tmp_path / "run" / "final" / "model.safetensors").is_file()
    bad = [json.loads(line) for line in (tmp_path / "run" / "bad.jsonl").read_text().splitlines()]
    assert {(one["shard"], one["index"], one["reason"][:8]) for one in bad} == {("a.jsonl", 5, "not JSON")} and {one["lane"] for one in bad} <= {0, 1}
    assert "a.jsonl, sample 1" in (tmp_path / "run" / "samples" / "0000002.txt").read_text()
    with pytest.raises(DataError, match="2 sources with weights"):
        RECIPES["documents"]({"data": data, "weights": "2", "init": str(tiny_folder)})


def test_inspect_counts_shows_and_names(tmp_path, tiny_folder, capsys):
    members = [
        ("0.png", png(1, 16)),
        ("0.txt", b"a red apple"),
        ("1.png", png(1)[:60]),
        ("1.txt", b"broken"),
        ("2.png", png(2, 16)),
        ("2.txt", b"a cat"),
    ]
    tar(tmp_path / "a.tar", members)
    out = str(tmp_path / "sheet.png")
    assert main(["data", "inspect", str(tmp_path / "a.tar"), "--checkpoint", str(tiny_folder), "-o", out]) == 0
    shown = capsys.readouterr().out
    assert "3 samples in 1 blocks; 3 were read, 1 are bad" in shown and "a.tar, sample 0: [Image] 'caption:' {'a red apple'}" in shown
    assert "bad: a.tar, sample 1: the picture" in shown and "2 x Image" in shown and (tmp_path / "sheet.png").is_file()
    assert main(["data", "inspect", str(tmp_path / "no"), "--checkpoint", str(tiny_folder)]) == 2
