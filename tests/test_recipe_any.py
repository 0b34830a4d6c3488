"""The recipe of all modalities from end to end: files of pictures, speech and clips -> a folder that reads and writes them all."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import any_gpt, tiny_gpt, tone

import mmgpt
from mmgpt.cli import main
from mmgpt.data.emoji import load_emoji
from mmgpt.decoders.audio_codec import AudioCodec, AudioCodecConfig
from mmgpt.native import save
from mmgpt.train import any as modalities
from mmgpt.train.ears import Ears, save_ears
from mmgpt.train.recipes_any import AnyOptions, clip_part
from mmgpt.train.sound import save_codec

DATA = Path(__file__).parent / "data"


@pytest.fixture
def words(tmp_path, monkeypatch) -> list[str]:
    """A command of two steps, without `out=`."""
    monkeypatch.setattr(modalities, "CODES", tmp_path / "codes")
    torch.manual_seed(0)
    save_codec(tmp_path / "codec", AudioCodec(AudioCodecConfig(levels=(4, 4), quantizers=1, width=16, blocks=1)))
    save_ears(tmp_path / "ears", Ears(64, 1, 2.0, "mel"))
    base = tiny_gpt(max_length=1024)
    base.config = replace(base.config, left_out="emojione")
    save(base, tmp_path / "init", card="# init\n")
    given = {"init": tmp_path / "init", "data": DATA / "emoji40.parquet", "speech": DATA / "speech6.parquet", "clips": DATA / "clips3.parquet"}
    given |= {
        "codec": tmp_path / "codec",
        "ears": tmp_path / "ears",
        "words": "true",
        "letters": "true",
        "video": "sprites",
        "side": 32,
        "changes": 8,
    }
    given |= {
        "frozen": "encoders.image",
        "seconds": 2,
        "strength": 1.0,
        "hide": 1.0,
        "swap": 0.5,
        "steps": 2,
        "warmup": 1,
        "sample_every": 0,
        "log_every": 1,
    }
    counts = {"captions": 1, "draws": 1, "transcribes": 2, "speaks": 2, "sketches": 1, "repeats": 1, "describes": 2, "animates": 1}
    return ["train", "any", *(f"{name}={value}" for name, value in (given | counts).items())]


def test_one_command_makes_a_model_of_all_modalities(words, tmp_path):
    assert main([*words, f"out={tmp_path / 'run'}"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {"text", "image", "audio", "video"} <= set(lines[-1])
    gpt, before = mmgpt.load(tmp_path / "run" / "final"), mmgpt.load(tmp_path / "init")
    assert gpt.config.audio.letters and gpt.config.video.codec == "sprites" and gpt.config.video.changes == 8

    stored = {name: p.half().float() for name, p in before.state_dict().items()}  # final folders hold float16
    same = {name: torch.equal(p, stored[name]) for name, p in gpt.state_dict().items() if name in stored and p.shape == stored[name].shape}
    assert (
        all(same[name] for name in same if name.startswith(("encoders.image.", "codecs.image.")))
        and not same["decoder.blocks.0.attention.qkv.weight"]
    )
    sound = gpt.generate(["red apple"], to="audio", seed=1)
    clip = gpt.generate(["a banana moving left"], to="video", seed=1)
    assert len(clip.frames) == 6 and sound.samples.numel() > 0
    assert all(isinstance(gpt.generate([part, asked], to="text"), str) for part, asked in ((tone(0.5), "transcribe:"), (clip, "describe:")))


def test_speech_alone_is_trained_without_pictures(words, tmp_path):
    assert main([*words, "captions=0", "draws=0", "sketches=0", "describes=0", "animates=0", "steps=1", f"out={tmp_path / 'run'}"]) == 0
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert "audio" in line and "image" not in line and "video" not in line


def test_the_artist_who_is_left_out_moves_nothing_either(words, tmp_path):
    """Clips of two things by Twemoji, of one by Fluent, which counts for both of its styles."""
    options = replace(AnyOptions(), clips=str(DATA / "clips3.parquet"), describes=2, animates=0)
    for left_out, count in (("", 3), ("twemoji", 1), ("fluent-flat", 2), ("fxemoji", 3)):
        model = any_gpt()
        model.config = replace(model.config, left_out=left_out)
        describe, _ = clip_part(model, options, load_emoji(DATA / "emoji40.parquet"), None)
        assert len(describe.weight_N) == count, left_out


def test_ears_that_do_not_fit_are_refused(words, tmp_path, capsys):
    save_ears(tmp_path / "wide", Ears(96, 1, 2.0, "mel"))
    for other, said in (([f"ears={tmp_path / 'wide'}"], "width 96"), (["encoder=whisper"], "hear with mel: leave one of the two out")):
        capsys.readouterr()
        assert main([*words, *other, f"out={tmp_path / 'run'}"]) == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_second_half_of_a_run_is_what_it_would_have_been(words, tmp_path):
    """Words among speech, clips that were seen and sounds that were coded before: all of it is found again after a stop."""
    assert main([*words, f"out={tmp_path / 'whole'}", "save_every=1"]) == 0
    shutil.copytree(tmp_path / "whole" / "step-0000001", tmp_path / "parts" / "step-0000001")
    assert main([*words, f"out={tmp_path / 'parts'}", "resume=true"]) == 0
    whole, parts = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(value, parts[name]) for name, value in whole.items())
