"""A conversation: what was said stays read, what does not fit is forgotten, a mistake is one line, and pictures are saved."""

import numpy as np
import pytest
from PIL import Image
from tiny import picture, tiny_gpt

from mmgpt.chat import Conversation, blocks, said, talk
from mmgpt.cli import main
from mmgpt.data.pictures import open_picture
from mmgpt.errors import InputError
from mmgpt.generate.engine import run
from mmgpt.generate.request import Request
from mmgpt.types import Part

GPT = tiny_gpt()


def test_a_turn_is_a_request_with_all_turns_before():
    chat, parts = Conversation(GPT, turns=5, seed=7), []
    for turn, (words, to) in enumerate([([picture(1), "what is it?"], "text"), (["draw it"], "image"), (["and now?"], "text")]):
        parts += [Part(word) for word in words]
        grid = (1, 1, 5) if to == "text" else None
        wanted = run(GPT, [Request(parts, to, seed=7 + turn, grid=grid)])[0]
        found = chat.say(*words, to=to, grid=grid)
        assert found == wanted.value if to == "text" else found.tobytes() == wanted.value.tobytes()
        parts += wanted.parts
    assert len(chat.past) == 3
    chat.forget()
    assert chat.say("a", grid=(1, 1, 3), seed=1) == run(GPT, [Request(["a"], seed=1, grid=(1, 1, 3))])[0].value


def test_what_does_not_fit_is_forgotten_and_no_more():
    gpt = tiny_gpt(max_length=100)
    chat = Conversation(gpt, turns=9)
    for _ in range(6):
        chat.say("some words that are rather long", grid=(1, 1, 6))
    request = chat.request([Part("some words that are rather long")], "text", {"grid": (1, 1, 6)})
    assert 1 < len(request.parts) < 2 * 6 + 1
    assert chat.engine.fits(request) and not chat.engine.fits(Request([*chat.past[-len(request.parts) // 2 - 1], *request.parts], grid=(1, 1, 6)))
    with pytest.raises(InputError, match="this model holds 100"):
        chat.say("much too many words " * 20)
    assert Conversation(GPT).turns == 0 and len(chat.past) == 6


def test_a_line_is_words_and_the_pictures_that_it_names(tmp_path):
    name = tmp_path / "a cat.png"
    picture(1).save(name)
    assert said(GPT, "don't look, it's  spaced") == ["don't look, it's  spaced"]
    found = said(GPT, f'what is "{name}" on it')
    assert found[0] == "what is" and isinstance(found[1], Image.Image) and found[2] == "on it"
    assert said(GPT, f"'{name}'")[1] == "caption:" and said(GPT, "cat.png") == ["cat.png"]


def test_a_conversation_in_a_terminal(tmp_path):
    name, shown = tmp_path / "cat.png", []
    picture(1).save(name)
    (tmp_path / "chat-1.png").write_bytes(b"somebody else's")
    lines = ["/help", f"{name} what is it?", "/draw a cat", "", "/draw", "/paint it", "/new", "x" * 2**18, "/quit", "never read"]
    talk(GPT, iter(lines), tmp_path, shown.append)
    text = "".join(shown)
    assert "/draw WORDS" in text and str(tmp_path / "chat-2.png") in text and "/paint it: say /draw" in text and "262144 characters" in text
    assert open_picture(tmp_path / "chat-2.png").size == (16, 16) and (tmp_path / "chat-1.png").read_bytes() == b"somebody else's"
    assert blocks(picture(1), 4).count("▀") == 8 and blocks(picture(1), 4).count("\n") == 2


def test_the_command(tmp_path, tiny_folder, monkeypatch, capsys):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/draw a cat\n"))
    assert main(["chat", str(tiny_folder), "-o", str(tmp_path)]) == 0
    assert np.asarray(open_picture(tmp_path / "chat-1.png")).shape == (16, 16, 3) and "chat-1.png" in capsys.readouterr().out
    assert main(["chat", str(tiny_folder), "-o", str(tmp_path / "nowhere")]) == 2
