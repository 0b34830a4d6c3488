"""Every example runs, and does what it says."""

import importlib.util
from pathlib import Path

import pytest

from mmgpt.data.pictures import open_picture

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_captioning(tiny_folder, capsys):
    found = example("captioning").main(["--checkpoint", str(tiny_folder)])
    assert len(found) == len(list((EXAMPLES / "pictures").glob("*.png"))) == len(capsys.readouterr().out.splitlines())


def test_image_generation_writes_a_contact_sheet(tiny_folder, tmp_path):
    prompts = ["a red apple", "a cat", "a house"]
    out = example("image_generation").main([*prompts, "-o", str(tmp_path / "sheet.png"), "--checkpoint", str(tiny_folder)])
    assert open_picture(out).width == 3 * 136


def test_speech_goes_out_and_comes_in(any_folder, tmp_path, capsys):
    from tiny import picture

    model, picture_file, sound = ["--checkpoint", str(any_folder)], tmp_path / "cat.png", tmp_path / "cat.wav"
    picture(1).save(picture_file)
    example("speak").main(["a cat", "-o", str(sound), *model])
    assert "seconds more" in capsys.readouterr().out and sound.is_file()
    example("transcribe").main([str(sound), "--draw", str(tmp_path / "heard.png"), *model])
    assert open_picture(tmp_path / "heard.png").size == (16, 16) and str(sound) in capsys.readouterr().out
    example("speak").main(["--picture", str(picture_file), "-o", str(tmp_path / "named.wav"), *model])
    assert (tmp_path / "named.wav").is_file()


def test_clips_go_out_and_come_in(any_folder, tmp_path, capsys):
    film = tmp_path / "cat.gif"
    example("animate").main(["a cat", "-o", str(film), "--checkpoint", str(any_folder)])
    example("describe").main([str(film), "--checkpoint", str(any_folder)])
    out = capsys.readouterr().out
    assert "2 of 3 frames" in out and "seen in it:" in out and "its first frame alone" in out and film.is_file()


def test_train_tiny_makes_every_loss_fall(tmp_path, capsys):
    falls = example("train_tiny").main(20, str(tmp_path / "run"))
    for name, (first, last) in falls.items():
        assert last < 0.95 * first, name
    assert "names right" in capsys.readouterr().out and (tmp_path / "run" / "drawn.png").is_file()


def test_add_a_modality(capsys):
    example("add_a_modality").main(2)
    out = capsys.readouterr().out
    assert "melody " in out and "played as (" in out


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short_and_say_how_to_run_them(path):
    text = path.read_text()
    assert f"python examples/{path.name}" in text.split('"""')[1]
    assert len(text.splitlines()) < 100
