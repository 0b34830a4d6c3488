"""tools/average.py: the mean of finished models, and what it refuses."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from tiny import gap, tiny_gpt

from mmgpt import native
from mmgpt.errors import CheckpointError
from mmgpt.hub import load

TOOL = str(Path(__file__).parents[1] / "tools" / "average.py")


def average(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", [TOOL, *map(str, words)])
    runpy.run_path(TOOL, run_name="__main__")


def test_a_mean_is_a_model(tmp_path, monkeypatch):
    first, other = tiny_gpt(0), tiny_gpt(1)
    for name, gpt in (("first", first), ("other", other)):
        native.save(gpt, tmp_path / name)
    average(monkeypatch, tmp_path / "first", tmp_path / "other", tmp_path / "mean", "--shares", "0.25,0.75")
    mean = load(tmp_path / "mean")
    assert mean.config == first.config
    for name, weight in mean.named_parameters():
        assert gap(weight, 0.25 * first.get_parameter(name) + 0.75 * other.get_parameter(name)) < 1e-6, name
    average(monkeypatch, *[tmp_path / "first"] * 2, tmp_path / "same")
    assert all(torch.equal(a, b) for a, b in zip(load(tmp_path / "same").state_dict().values(), first.state_dict().values(), strict=True))


def test_only_models_of_one_shape_have_a_mean(tmp_path, monkeypatch, capsys):
    native.save(tiny_gpt(0), tmp_path / "first")
    native.save(tiny_gpt(0, depth=1), tmp_path / "flat")
    with pytest.raises(CheckpointError, match=r"flat is another model than .*first"):
        average(monkeypatch, tmp_path / "first", tmp_path / "flat", tmp_path / "mean")
    for folders, shares in ([tmp_path / "first"], []), ([tmp_path / "first"] * 2, ["--shares", "0.5,0.6"]):
        with pytest.raises(SystemExit):
            average(monkeypatch, *folders, tmp_path / "mean", *shares)
        assert "that add up to 1" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()
