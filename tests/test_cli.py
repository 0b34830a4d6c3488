"""Commands in, exit codes and lines out: 0 and results on stdout, or 2 and one line on stderr."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny import any_gpt

import mmgpt
from mmgpt.cli import main, parser
from mmgpt.data.sheet import contact_sheet
from mmgpt.demo import MORE, demo, slug
from mmgpt.errors import InputError
from mmgpt.info import layouts

ROOT = Path(__file__).parents[1]


@pytest.fixture
def picture_file(tmp_path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (20, 30), "red").save(path)
    return path


def refused(capsys, *words) -> str:
    """The one line that a mistake gives."""
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.startswith("mmgpt: error: ") and err.count("\n") == 1 and err.endswith("\n"), (code, out, err)
    return err


def test_caption_names_each_file(tiny_folder, picture_file, capsys):
    assert main(["caption", str(picture_file), str(picture_file), "--checkpoint", str(tiny_folder)]) == 0
    out, err = capsys.readouterr()
    assert [line.startswith(f"{picture_file}: ") for line in out.splitlines()] == [True, True] and err == ""


def test_caption_as_json(tiny_folder, picture_file, capsys):
    assert main(["caption", str(picture_file), "--json", "--prompt", "group:", "--checkpoint", str(tiny_folder)]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["file"] == str(picture_file) and isinstance(found["caption"], str)


def test_draw_writes_what_it_prints_and_the_seed_decides(tiny_folder, tmp_path, capsys):
    def drawn(name: str, *more: str) -> list[bytes]:
        assert main(["draw", "a", "red", "apple", "-o", str(tmp_path / name), "--checkpoint", str(tiny_folder), *more]) == 0
        return [Path(line).read_bytes() for line in capsys.readouterr().out.splitlines()]

    (one,) = drawn("one.png", "--seed", "4")
    three, four, five = drawn("more.png", "--seed", "3", "-n", "3", "--guidance", "3")
    assert one == four and len({three, four, five}) == 3
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["more-1.png", "more-2.png", "more-3.png", "one.png"]


def test_sound_and_video_come_and_go(any_folder, tmp_path, capsys):
    """Words are spoken and animated into files, which are transcribed and described."""
    model, sound, film = ["--checkpoint", str(any_folder)], tmp_path / "cat.wav", tmp_path / "cat.gif"
    assert main(["speak", "a", "cat", "-o", str(sound), "--seed", "1", *model]) == 0
    assert main(["animate", "a cat", "-o", str(film), "-n", "2", *model]) == 0
    made = capsys.readouterr().out.splitlines()
    assert made == [str(sound), str(tmp_path / "cat-1.gif"), str(tmp_path / "cat-2.gif")] and all(Path(line).is_file() for line in made)
    assert main(["transcribe", str(sound), "--json", *model]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["file"] == str(sound) and isinstance(found["text"], str)
    assert main(["describe", *made[1:], *model]) == 0
    assert [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()] == made[1:]


def test_mistakes_with_sound_and_video_are_one_line(any_folder, tiny_folder, picture_file, tmp_path, capsys):
    model = ["--checkpoint", any_folder]
    assert ".wav, .flac, .mp3, .ogg" in refused(capsys, "speak", "hello", "-o", tmp_path / "a.png", *model)
    assert "0 words to speak: say what to say" in refused(capsys, "speak", " ", "-o", tmp_path / "a.wav", *model)
    assert "formats" in refused(capsys, "transcribe", picture_file, *model)
    assert "this model writes text, image" in refused(capsys, "animate", "a cat", "-o", tmp_path / "a.gif", "--checkpoint", tiny_folder)


def test_demo_draws_a_sheet(tiny_folder, picture_file, tmp_path, capsys):
    assert main(["demo", str(picture_file), "-o", str(tmp_path / "demo"), "--checkpoint", str(tiny_folder)]) == 0
    assert "red.png" in capsys.readouterr().out
    assert len(list((tmp_path / "demo").glob("?-*.png"))) == 8 and (tmp_path / "demo" / "drawings.png").is_file()


def test_demo_speaks_and_animates_where_a_model_can(picture_file, tmp_path, capsys):
    demo(any_gpt(), tmp_path, [picture_file], ["red"])
    out = capsys.readouterr().out
    sounds, clips = sorted(tmp_path.glob("*.wav")), sorted(tmp_path.glob("*.gif"))
    assert [path.stem for path in sounds] == sorted(map(slug, MORE["audio"])) and [path.stem for path in clips] == sorted(map(slug, MORE["video"]))
    assert all(str(path) in out for path in [*sounds, *clips]) and out.count("  ->  ") == 6
    assert mmgpt.open_sound(sounds[0]).rate == 16_000 and mmgpt.open_video(clips[0]).frames[0].size == (16, 16)


def test_films_without_their_package_are_refused_before_any_work(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mmgpt.cli_io.find_spec", lambda name: None)
    assert "pip install av" in refused(capsys, "animate", "a cat", "-o", tmp_path / "cat.mp4", "--checkpoint", tmp_path / "nowhere")


def test_a_codec_is_not_measured_without_its_judge(tmp_path, capsys):
    (tmp_path / "codec.json").write_text("{}")
    assert "is a codec" in refused(capsys, "eval", "speech", tmp_path, "--data", "nowhere", "--no-judge")


def test_info(tiny_folder, capsys):
    assert main(["info", str(tiny_folder)]) == 0
    out = capsys.readouterr().out
    assert "model.safetensors" in out and "# tiny" in out and "2 x 4 codes in 10 positions" in out


def test_what_is_written_is_told_with_all_its_sides():
    gpt = any_gpt()
    for name, sides in (("video", "3 x 2 x 4"), ("audio", "10 x 1 x 2"), ("image", "2 x 4")):
        assert f"Layout, {sides} codes in" in layouts(gpt.ports[name])["written"]


def test_train_lists_recipes_and_their_settings(capsys):
    assert main(["train", "list"]) == 0
    out = capsys.readouterr().out
    from mmgpt.train.recipes import RECIPES

    assert all(f"\nmmgpt train {name}" in out for name in RECIPES) and "learning_rate=" in out and "codec=runs/" in out


def test_train_shows_losses_and_writes_a_checkpoint(emoji40, tmp_path, capsys):
    words = "width=16 blocks=1 levels=4,4 batch_size=2 steps=3 minutes=0 save_every=0 log_every=1".split()
    assert main(["train", "emoji-codec", f"data={emoji40}", f"out={tmp_path / 'run'}", *words]) == 0
    out, err = capsys.readouterr()
    assert "after 3 steps" in out and "step 3 | image " in err and "s left" in err
    assert (tmp_path / "run" / "final" / "manifest.json").is_file()


def test_mistakes_are_one_line(tiny_folder, picture_file, tmp_path, emoji40, capsys):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n rubbish")
    model = ["--checkpoint", tiny_folder]
    assert "COMMAND" in refused(capsys)
    assert "invalid choice" in refused(capsys, "paint")
    assert "--colour" in refused(capsys, "caption", picture_file, "--colour", "red")
    assert "does not exist" in refused(capsys, "caption", tmp_path / "none.png", *model)
    assert "broken" in refused(capsys, "caption", tmp_path / "broken.png", *model)
    assert "broken" in refused(capsys, "caption", picture_file, tmp_path / "broken.png", *model)
    assert "folder" in refused(capsys, "caption", tmp_path, *model)
    assert "no checkpoint 'nobody'" in refused(capsys, "caption", picture_file, "--checkpoint", "nobody")
    assert "neither manifest.json" in refused(capsys, "info", tmp_path)
    assert ".bmp" in refused(capsys, "draw", "a cat", "-o", tmp_path / "cat.bmp", *model)
    assert "no folder" in refused(capsys, "draw", "a cat", "-o", tmp_path / "none" / "cat.png", *model)
    assert "guidance=-1" in refused(capsys, "draw", "a cat", "-o", tmp_path / "cat.png", "--guidance", "-1", *model)
    assert "guidance=nan" in refused(capsys, "draw", "a cat", "-o", tmp_path / "cat.png", "--guidance", "nan", *model)
    assert "--seed" in refused(capsys, "draw", "a cat", "-o", tmp_path / "cat.png", "--seed", "-1", *model)
    assert "--count" in refused(capsys, "draw", "a cat", "-o", tmp_path / "cat.png", "-n", "0", *model)
    assert "characters" in refused(capsys, "draw", "x" * 200_000, "-o", tmp_path / "cat.png", *model)
    assert "no recipe 'me'" in refused(capsys, "train", "me")
    assert "key=value" in refused(capsys, "train", "emoji", "minutes")
    assert "unknown setting 'hours'" in refused(capsys, "train", "emoji", "hours=3")
    assert "no file" in refused(capsys, "eval", "caption", tiny_folder, "--data", tmp_path / "none.parquet")
    assert "emojione" in refused(capsys, "eval", "caption", tiny_folder, "--data", emoji40, "--leave-out", "twemoji")
    assert "--json" in refused(capsys, "eval", "caption", tiny_folder, "--data", emoji40, "--json", tmp_path / "none" / "out.json")
    assert "--guidance" in refused(capsys, "eval", "draw", tiny_folder, "--data", emoji40, "--guidance", "much")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.png", "red.png"]


def test_a_file_that_cannot_be_written_is_one_line(tiny_folder, tmp_path, capsys):
    (tmp_path / "demo").write_text("a file where the folder should be")
    assert "demo" in refused(capsys, "demo", "-o", tmp_path / "demo", "--checkpoint", tiny_folder)


def test_eval_caption_prints_and_writes_figures(tiny_folder, emoji40, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert main(["eval", "caption", str(tiny_folder), "--data", str(emoji40), "--leave-out", "emojione", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["what"] == "caption" and figures["leave_out"] == "emojione" and 0 <= figures["groups_of_test_concepts"]["exact"] <= 1
    assert "nearest_neighbour" in capsys.readouterr().out


def test_every_command_has_help_with_an_example(capsys):
    for words in (["caption"], ["draw"], ["demo"], ["info"], ["train"], ["eval", "caption"], ["eval", "draw"], ["eval", "codec"]):
        with pytest.raises(SystemExit) as stop:
            parser().parse_args([*words, "--help"])
        assert stop.value.code == 0 and "example:\n  mmgpt " in capsys.readouterr().out


def test_help_needs_no_torch_and_the_module_runs():
    code = "import sys, mmgpt.cli; mmgpt.cli.parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    shown = subprocess.run([sys.executable, "-m", "mmgpt", "draw"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 2 and shown.stderr.count("\n") == 1 and "Traceback" not in shown.stderr


def test_contact_sheet_holds_every_picture_and_refuses_what_does_not_match():
    images = [Image.new("RGB", size, "red") for size in ((10, 10), (40, 10), (1, 300))]
    sheet = contact_sheet(images, ["a", "a very long text " * 20, "\N{CAT FACE}"], columns=2, side=64)
    assert sheet.size == (2 * 72, 2 * (76 + 28)) and sheet.getpixel((36, 36)) == (255, 0, 0)
    with pytest.raises(InputError, match="3 pictures, 1 texts"):
        contact_sheet(images, ["a"])
