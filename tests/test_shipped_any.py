"""The shipped model of all modalities: small, and every arrow of it runs."""

from pathlib import Path

import pytest

import mmgpt
from mmgpt.data.footage import load_clips
from mmgpt.data.speech import load_speech
from mmgpt.hub import SHIPPED
from mmgpt.native import spelling_of

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def gpt():
    return mmgpt.load("any")


def test_it_is_small_and_says_what_it_was_made_of(gpt):
    assert sum(path.stat().st_size for path in (SHIPPED / "any").iterdir()) <= 40_000_000
    card = (SHIPPED / "any" / "README.md").read_text("utf-8")
    assert all(name in card for name in ("Whisper", "hibari", "still learning", "Measured", "Limits"))
    assert spelling_of(gpt).words["apple"] == ("ˈæ", "p", "ᵊ", "l")


def test_it_hears_and_watches(gpt):
    clip = next(row for row in load_speech(DATA / "speech6.parquet") if row.voice == "heart" and row.source == "name")
    (heard,) = mmgpt.Engine(gpt).run([mmgpt.Request([clip.sound, "transcribe:"], "text")])
    assert clip.text == "red apple" and heard.value.startswith("red")  # it knows some thousand words, not all of them well
    film = next(clip for clip in load_clips(DATA / "clips3.parquet") if clip.motion == "left")
    (seen,) = mmgpt.Engine(gpt).run([mmgpt.Request([film.video, "describe:"], "text")])
    assert " moving " in f" {seen.value} "  # what moves, and where to, it names right in half of the clips


def test_it_speaks_and_animates(gpt):
    asked = [mmgpt.Request(["a red apple"], "audio"), mmgpt.Request(["a banana moving left"], "video")]
    sound, film = mmgpt.Engine(gpt).run(asked)
    layout = gpt.ports["audio"].writes
    said = sound.codes[sound.codes >= layout.num_codes] - layout.num_codes
    assert said.tolist() == [*spelling_of(gpt).codes("a red apple"), *[0] * layout.ahead]
    assert 0.4 < sound.value.samples.shape[-1] / sound.value.rate < 3 and len(film.value.frames) == 6
