"""Exams of speech and clips on figures that are known beforehand, and the files of both."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from tiny import picture, tone

from mmgpt.data.clips import moving
from mmgpt.data.footage import Clip, load_clips
from mmgpt.data.speech import Speech, load_speech, masked, of, varied
from mmgpt.errors import DataError, InputError
from mmgpt.evaluate.clips import close_up, describe, evaluate_clips, motion_in, still
from mmgpt.evaluate.hearing import Recogniser, edits
from mmgpt.evaluate.speech import evaluate_codec, evaluate_speech, nearest
from mmgpt.types import Audio, Video

DATA = Path(__file__).parent / "data"


class Said:
    """A result with a value, as the engine gives it."""

    def __init__(self, value):
        self.value = value


def engine(answer):
    """An engine that answers each request by a function of it."""

    class Engine:
        def __init__(self, gpt):
            pass

        def run(self, requests):
            return [Said(answer(request)) for request in requests]

    return Engine


class Parrot:
    """A codec and a model that keep everything; it says what it is told, as a sound of so many samples."""

    heads = {"text": None, "audio": None, "video": None}
    ports: dict = {}
    rate = 16_000

    def encode(self, value):
        return np.zeros((len(torch.atleast_2d(value.samples)[0]) // 640, 2), np.int64)

    def decode(self, codes):
        return Audio(torch.zeros(len(codes) * 640), 16_000)


class Ear(Recogniser):
    """Hears words in whatever is long enough, and nothing in the rest."""

    def __init__(self):
        pass

    def transcribe(self, sounds):
        return ["the fire is out" if sound.samples.numel() > 1600 else "" for sound in sounds]


# --- files ----------------------------------------------------------------------------------------------------------------------------


def test_speech_is_read():
    rows = load_speech(DATA / "speech6.parquet")
    assert len(rows) == 6 and {row.voice for row in rows} == {"heart", "kal16", "rms", "slt", "awb"}
    assert {row.text for row in of(rows, "train", "heart")} == {"red apple", "the fire is out"} and len(of(rows, "test", source="name")) == 1
    sound = rows[0].sound
    assert sound.rate == 16_000 and 0.3 < sound.samples.shape[-1] / 16_000 < 3 and 0.05 < float(sound.samples.abs().max()) <= 1


def test_a_folder_of_speech_is_read_in_order(tmp_path):
    table = parquet.read_table(DATA / "speech6.parquet")
    parquet.write_table(table.slice(0, 2), tmp_path / "b.parquet")
    parquet.write_table(table.slice(2), tmp_path / "a.parquet")
    names = [row.text for row in load_speech(DATA / "speech6.parquet")]
    assert [row.text for row in load_speech(tmp_path)] == [*names[2:], *names[:2]]


def test_clips_are_read():
    clips = load_clips(DATA / "clips3.parquet")
    assert len(clips) == 3 and all(len(clip.video.frames) >= 4 and clip.text.startswith(("a ", "an ")) for clip in clips)


@pytest.mark.parametrize("load", [load_speech, load_clips])
def test_files_that_hold_nothing_of_it_are_refused(load, tmp_path):
    with pytest.raises(DataError, match="tools/build_"):
        load(tmp_path / "none.parquet")
    with pytest.raises(DataError, match="cannot be read"):
        load(DATA / "emoji40.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "broken.parquet")


def test_a_varied_sound_is_as_long_as_it_may_be():
    sound = Audio(torch.sin(torch.arange(16_000) / 10), 16_000)
    lengths = []
    for seed in range(20):
        made = varied(sound, torch.Generator().manual_seed(seed), 0.12)
        again = varied(sound, torch.Generator().manual_seed(seed), 0.12)
        lengths.append(len(made.samples))
        assert torch.equal(made.samples, again.samples) and made.samples.abs().max() <= 1
    assert 14_080 <= min(lengths) < 15_500 and 16_500 < max(lengths) <= 17_920


def test_masks_are_bands_and_stretches():
    values = torch.arange(20 * 12).float().view(20, 12)  # four bins of three values
    shares = []
    for seed in range(20):
        made = masked(values, 4, torch.Generator().manual_seed(seed))
        changed = made != values
        shares.append(float(changed.float().mean()))
        rows, bins = changed.all(1), changed.view(20, 4, 3).all(2).all(0)
        assert torch.equal(changed, rows[:, None] | bins.repeat_interleave(3)[None]) and set(made[changed].tolist()) <= {float(values.mean())}
    assert max(shares) < 0.5 and 0 < sum(shares) and torch.equal(values, torch.arange(240).float().view(20, 12))


# --- exams ----------------------------------------------------------------------------------------------------------------------------


def test_distance_and_the_nearest_name():
    assert edits("kitten", "sitting") == 3 and edits("", "abc") == 3 and edits("same", "same") == 0
    assert nearest("rd aple", ["red apple", "rocket", "cat"]) == "red apple"


def rows_of_speech() -> list[Speech]:
    read = load_speech(DATA / "speech6.parquet")
    fire = next(row for row in read if row.text == "the fire is out")
    return [*read, replace(fire, split="test")]


def test_the_recogniser_writes_no_more_than_can_be_said():
    """One that understands nothing may repeat itself without end."""

    class Model:
        def transcribe(self, samples_N, max_new_tokens, **settings):
            return [type("S", (), {"text": " click" * max_new_tokens})], None

    heard = Recogniser(Model()).transcribe([tone(seconds) for seconds in (0.2, 3.0, 40.0)])
    assert [len(words.split()) for words in heard] == [8, 8 + 8 * 3, 8 + 8 * 30]


def test_speech_that_is_understood_scores_so(monkeypatch):
    """Every sentence is heard right and every name but for a letter; what is said is heard as one sentence whatever it was."""
    rows = rows_of_speech()
    known = {len(row.sound.samples.reshape(-1)): row.text for row in rows}

    def answer(request):
        if request.to == "audio":
            return Audio(torch.zeros(16_000), 16_000)
        words = known[len(request.parts[0].samples.reshape(-1))]
        return words if " is " in words else words[:-1]

    monkeypatch.setattr("mmgpt.evaluate.speech.Engine", engine(answer))
    monkeypatch.setattr("mmgpt.evaluate.speech.dnsmos", lambda sounds: [3.0] * len(sounds))
    model = Parrot()
    model.ports = {"audio": type("P", (), {"codec": Parrot(), "asks": "transcribe:"})}
    result = evaluate_speech(model, rows, Ear(), "heart", 10, 10)
    assert result["sentences"] == {"clips": 1, "word_error": 0.0} and result["names"]["picked"] == 1.0
    assert result["speech"]["word_error"] == 0.0 and result["speech"]["dnsmos"] == 3.0 and result["speech"]["seconds"] == 1.0
    assert set(evaluate_speech(model, rows, None, "heart")) == {"sentences", "names"}


def test_a_codec_that_loses_the_words_scores_so(monkeypatch):
    class Mute(Parrot):
        def decode(self, codes):
            return Audio(torch.zeros(100), 16_000)

    monkeypatch.setattr("mmgpt.evaluate.speech.dnsmos", lambda sounds: [2.0] * len(sounds))
    kept, lost = (evaluate_codec(codec, rows_of_speech(), Ear(), "heart") for codec in (Parrot(), Mute()))
    assert kept["word_error_before"] == kept["word_error_after"] == lost["word_error_before"] == 0.0 and lost["word_error_after"] == 1.0
    assert 40 < kept["codes_a_second"] <= 50
    with pytest.raises(DataError, match="0 unseen sentences of the voice 'nobody'"):
        evaluate_codec(Parrot(), rows_of_speech(), Ear(), "nobody")


def thing() -> Image.Image:
    paper = Image.new("RGB", (64, 64), "white")
    paper.paste(picture(1, 40), (12, 12))
    return paper


def clips_of(motions) -> list[Clip]:
    import io

    found = []
    for motion in motions:
        video = moving(thing(), motion, 6)
        content = io.BytesIO()
        video.frames[0].save(content, "WEBP", save_all=True, append_images=list(video.frames[1:]), duration=333, lossless=True)
        words = {"left": "a cat moving left", "grow": "a cat growing"}[motion]
        found.append(Clip(content.getvalue(), words, ("cat",), motion, "twemoji", "test_combination"))
    return found


def test_clips_that_are_named_and_drawn_right_score_so(monkeypatch):
    """Half of the motions are named right, one frame alone names none, and every clip is drawn as asked."""
    clips = clips_of(["left", "grow"])

    def answer(request):
        if request.to == "video":
            return moving(thing(), "left" if "left" in request.parts[0] else "grow", 6)
        frames = request.parts[0].frames
        return "a cat" if np.array_equal(np.asarray(frames[0]), np.asarray(frames[-1])) else "a cat moving left"

    monkeypatch.setattr("mmgpt.evaluate.clips.Engine", engine(answer))
    model = Parrot()
    model.ports = {"video": type("P", (), {"asks": "describe:"})}
    result = evaluate_clips(model, clips, [], None)
    assert result["watching"] == {"clips": 2, "motion": 0.5, "one_frame": 0.0, "words": 0.5}
    assert result["animating"] == {"clips": 2, "best_of": 1, "motion": 1.0}
    assert describe(model, [clips[0].video]) == ["a cat moving left"]
    with pytest.raises(DataError, match="0 of 1 clips"):
        evaluate_clips(Parrot(), [replace(clips[0], split="train")], [], None)


def test_a_model_without_the_modality_is_refused():
    model = type("M", (), {"heads": {"text": None}})()
    with pytest.raises(InputError, match="text and audio"):
        evaluate_speech(model, [], None, "heart")
    with pytest.raises(InputError, match="text and video"):
        evaluate_clips(model, [], [], None)


def test_motions_in_words():
    said = {"a red apple moving left slowly": "left", "a cat growing": "grow", "an ant, then a rocket": "then", "a cat": "", "": ""}
    assert {words: motion_in(words) for words in said} == said
    assert motion_in("a cat growing and shrinking") == ""


def test_one_frame_shows_no_motion():
    video = moving(thing(), "right", 6)
    alone = still(video)
    assert len(alone.frames) == 6 and len({frame.tobytes() for frame in alone.frames}) == 1 and alone.fps == video.fps


def test_a_close_up_is_the_thing_alone():
    """However small it is shown, it fills the picture; and there is one of nothing, too."""
    small = moving(thing(), "left", 6, side=48)
    near = np.asarray(close_up(small)).min(2) < 250
    assert near.shape == (64, 64) and near.any(0).mean() > 0.85 and near.any(1).mean() > 0.85
    assert close_up(Video((Image.new("RGB", (48, 48), "white"),), 1.0)).size == (64, 64)
