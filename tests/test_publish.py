"""tools/publish.py: a trained model and its figures become a folder with a card, or nothing does."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from tiny import any_gpt, tiny_gpt

from mmgpt.native import load, save

TOOL = Path(__file__).parents[1] / "tools" / "publish.py"


def publish(monkeypatch, *words, limits: dict | None = None) -> None:
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, words)])
    tool = runpy.run_path(str(TOOL))
    tool["LIMITS"].update(limits or {})
    tool["main"]()


@pytest.mark.parametrize("kind", ["emoji", "any"])
def test_a_model_is_published_with_its_figures(kind, tmp_path, monkeypatch, capsys):
    """With the settings that were asked for, the numbers that were measured, and the weights as float16 and 8 bits keep them."""
    gpt = any_gpt(quantizers=1, words=True, verbatim=True, letters=True) if kind == "any" else tiny_gpt()
    save(gpt, tmp_path / "trained")
    (tmp_path / "speech.json").write_text(json.dumps({"what": "speech", "checkpoint": str(tmp_path), "hears": {"sentences": 7, "word_error": 0.125}}))
    words = [tmp_path / "trained", tmp_path / "out", tmp_path / "speech.json", "--trained", "an hour of {nothing}", "--left-out", "fxemoji"]
    words += ["--guidance", "1.5", "--eight", "decoder"] + (["--speaking", "0.2", "--animating", "1.25"] if kind == "any" else [])
    publish(monkeypatch, *words)
    assert " MB" in capsys.readouterr().out
    card, made = (tmp_path / "out" / "README.md").read_text(), load(tmp_path / "out")
    assert card.startswith(f"# {kind}: ") and "an hour of {nothing}" in card and "0.125" in card and str(tmp_path) not in card
    assert made.config.left_out == "fxemoji" and made.config.guidance == 1.5
    if kind == "any":
        assert made.config.audio.temperature == 0.2 and made.config.video.guidance == 1.25 and "letters of its words" in card
    old, new = gpt.state_dict(), made.state_dict()
    assert torch.equal(new["table.weight"], old["table.weight"].half().float())
    eighth = "decoder.blocks.0.attention.qkv.weight"
    assert 0 < (new[eighth] - old[eighth]).abs().max() < old[eighth].abs().max() / 100


def test_what_is_too_large_replaces_nothing(tmp_path, monkeypatch):
    save(tiny_gpt(), tmp_path / "trained")
    save(tiny_gpt(seed=1), tmp_path / "out", card="# what was there\n")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(SystemExit, match="bytes, at most 1000 are shipped"):
        publish(monkeypatch, tmp_path / "trained", tmp_path / "out", "--trained", "an hour", limits={"emoji": 1000})
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
