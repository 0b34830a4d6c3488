"""Clips say what they show: the motion of every clip is measured from its frames. The tools that make clips and speech keep what they promise."""

import importlib.util
import random
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw, ImageFilter

from mmgpt.data.clips import FACTOR, MOTIONS, SPEEDS, TRAVEL, TURN, caption, in_order, moving, poses, with_article
from mmgpt.data.emoji import load_emoji, picture
from mmgpt.data.moving import open_video
from mmgpt.data.sound import open_sound
from mmgpt.decoders.sprite import Pose, course_of, drawn, thing_of
from mmgpt.errors import InputError
from mmgpt.evaluate.video import measured_motion, trend
from mmgpt.types import Video

DATA = Path(__file__).parent / "data"
THINGS = ("banana", "rocket", "dog face", "hammer")


@pytest.fixture(scope="module")
def pictures(emoji40) -> list[Image.Image]:
    return [picture(row) for row in load_emoji(emoji40) if row.label in THINGS]


def tool(name: str):
    spec = importlib.util.spec_from_file_location(name, DATA.parents[1] / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def build_speech():
    yield tool("build_speech")
    del sys.modules["build_speech"]


@pytest.fixture(scope="module")
def build_clips():
    yield tool("build_clips")
    del sys.modules["build_clips"]


def pixels(video: Video) -> np.ndarray:
    return np.stack([np.asarray(frame) for frame in video.frames]).astype(int)


def worn(video: Video) -> Video:
    """Blurred, with noise and stains, as a codec may leave it."""
    noise = np.random.default_rng(0)
    blurred = (np.asarray(frame.filter(ImageFilter.GaussianBlur(1.2))) + noise.normal(0, 6, (64, 64, 3)) for frame in video.frames)
    return Video(tuple(Image.fromarray(frame.clip(0, 255).astype(np.uint8)) for frame in blurred), video.fps)


# clips and their measure


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("frames", [6, 8])
def test_a_motion_is_measured(pictures, motion, speed, frames):
    for seed, thing in enumerate(pictures[::3]):
        video = moving(thing, motion, frames, speed=speed, seed=seed)
        assert (len(video.frames), video.fps, video.frames[0].size) == (frames, frames / 2, (64, 64))
        assert measured_motion(video) == measured_motion(worn(video)) == motion


def test_a_thing_then_another_is_measured(pictures):
    for seed, (first, second) in enumerate(zip(pictures, reversed(pictures), strict=True)):
        video = in_order(first, second, 6, seed=seed)
        assert measured_motion(video) == measured_motion(worn(video)) == "then"
        assert video.frames[0] == video.frames[1] != video.frames[-1] == video.frames[-2]


def test_many_things_are_not_one_after_another(pictures):
    assert len(pictures) >= 6
    stills = [moving(thing, "left", 4).frames[0] for thing in pictures[:12:2]]
    assert measured_motion(Video(tuple(stills), 3.0)) != "then"


def test_nobody_sees_a_disc_turn():
    disc = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(disc).ellipse((4, 4, 59, 59), fill="red")
    for seed in range(4):
        left, spin = (moving(disc, motion, 6, seed=seed) for motion in ("left", "spin"))
        assert measured_motion(left) == measured_motion(worn(left)) == "left"
        assert measured_motion(spin) == measured_motion(worn(spin)) == "still"


def test_what_does_not_move_is_still(pictures):
    for thing in pictures[:4]:
        still = Video((moving(thing, "left").frames[0],) * 6, 3.0)
        assert measured_motion(still) == measured_motion(worn(still)) == "still"
    assert measured_motion(Video((Image.new("RGB", (64, 64), "white"),) * 6, 3.0)) == "still"


@pytest.mark.parametrize("motion, opposite", [("left", "right"), ("up", "down"), ("grow", "shrink")])
def test_only_the_order_of_the_frames_tells(pictures, motion, opposite):
    for seed, thing in enumerate(pictures[:4]):
        there, back = (pixels(moving(thing, name, 6, speed="quickly", seed=seed)) for name in (motion, opposite))
        assert np.abs(there - back[::-1]).max() <= 2  # rounding
        assert np.abs(there - back).max() > 100


def test_a_frame_of_a_slide_may_be_of_any_slide(pictures):
    """Most places where the first frame of "left" has the thing are places where that of "right" has it too; of quick ones, some."""
    thing = thing_of(pictures[0])
    for fast, share in enumerate((0.6, 0.2)):
        first = {name: [poses(thing, name, fast, 4, 64, seed)[0].x for seed in range(100)] for name in ("left", "right")}
        assert np.mean([min(first["left"]) <= x <= max(first["right"]) for x in first["left"] + first["right"]]) > share


def test_a_clip_follows_from_its_arguments(pictures):
    a, b, c = (pixels(moving(pictures[0], "spin", seed=seed)) for seed in (1, 1, 2))
    assert (a == b).all() and (a != c).any()


@pytest.mark.parametrize("speed", SPEEDS)
def test_how_far_things_move(pictures, speed):
    fast = SPEEDS.index(speed)
    for thing in pictures[:4]:
        slide, grow, spin = (course_of(moving(thing, motion, 6, speed=speed).frames) for motion in ("down", "grow", "spin"))
        assert trend(slide.y_T) == pytest.approx(TRAVEL[fast], abs=0.005) and trend(slide.x_T) == pytest.approx(0, abs=0.005)
        assert trend(grow.spread_T) == pytest.approx(np.log(FACTOR[fast]), abs=0.02)
        assert float(spin.turn_S.sum()) == pytest.approx(TURN[fast], abs=4)
        blinks = [frame.getextrema() == ((255, 255),) * 3 for frame in moving(thing, "blink", 6, speed=speed).frames]
        assert blinks == [[False, False, True, True, False, False], [False, True] * 3][fast]


def test_nothing_leaves_the_frame(pictures):
    for seed, thing in enumerate(pictures[::2]):
        for motion in MOTIONS:
            video = pixels(moving(thing, motion, 4, speed="quickly", seed=seed))
            assert min(video[:, edge].min() for edge in (0, -1)) > 240 and min(video[:, :, edge].min() for edge in (0, -1)) > 240


def test_a_pose_is_where_and_how_large_and_how_turned():
    bar = Image.new("RGB", (64, 64), "white")
    bar.paste("black", (10, 30, 50, 40))  # 40 pixels wide, 10 high
    flat, upright = (thing_of(drawn(thing_of(bar), Pose(20, 30, 24, angle), 64)) for angle in (0, 90))
    assert (flat.x, flat.y, upright.x, upright.y) == pytest.approx((20, 30, 20, 30), abs=0.1)
    assert (flat.left + flat.right, flat.up + flat.down, upright.up + upright.down) == pytest.approx((24, 6, 24), abs=2.1)
    spot = bar.copy()
    spot.paste("red", (10, 30, 20, 40))  # at the left end: clockwise, a quarter turn brings it up
    ink = np.asarray(drawn(thing_of(spot), Pose(32, 32, 24, 90), 64)).astype(int)
    assert ink[24, 32, 0] > 200 > 100 > ink[40, 32, 0]


def test_captions_are_english():
    assert caption(["red apple"], "left") == "a red apple moving left"
    assert caption(["cat"], "grow", "quickly") == "a cat growing quickly"
    assert caption(["ant", "rocket"]) == "an ant, then a rocket"
    names = "unicorn umbrella euro herb one-piece swimsuit x-ray ewe".replace("one-piece swimsuit", "one-piece_swimsuit").split()
    assert [with_article(name).split()[0] for name in names] == ["a", "an", "a", "an", "a", "an", "a"]
    assert with_article("scissors") == "scissors" and with_article("unamused face") == "an unamused face"


@pytest.mark.parametrize(
    "ask, complaint",
    [
        (lambda p: moving(p, "jump"), "the motion 'jump' is none of the 8 known: use one of left"),
        (lambda p: moving(p, "left", speed="fast"), "the speed 'fast' is none of the 2 known: use one of slowly"),
        (lambda p: moving(p, "left", frames=3), "3 frames, a motion takes at least 4"),
        (lambda p: in_order(p, p, frames=1), "1 frames, a motion takes at least 4"),
        (lambda p: moving(Image.new("RGB", (8, 8), "white"), "left"), "8x8 pixels, 0 of them darker than white"),
        (lambda p: measured_motion(Video((p,) * 3, 3.0)), "3 frames, a motion is measured from at least 4"),
    ],
)
def test_what_cannot_be_asked(pictures, ask, complaint):
    with pytest.raises(InputError, match=complaint):
        ask(pictures[0])


# the files and the tools that make them


def test_the_clips_of_the_fixture():
    rows = pq.read_table(DATA / "clips3.parquet").to_pylist()
    assert [row["text"] for row in rows] == ["a banana moving left", "a dog face growing", "a rocket, then a banana"]
    for row in rows:
        video = open_video(row["video"]["bytes"])
        assert len(video.frames) == 6 and video.fps == pytest.approx(3, abs=0.01)
        assert measured_motion(video) == row["motion"]


def test_the_speech_of_the_fixture():
    table = pq.read_table(DATA / "speech6.parquet")
    assert {"heart", "slt", "awb", "kal16", "rms"} == set(table["voice"].to_pylist())
    for row in table.to_pylist():
        sound = open_sound(row["audio"]["bytes"])
        assert sound.rate == 16000 and sound.samples.shape == (1, round(16000 * row["seconds"]))
        assert row["text"] == row["text"].lower() and 0.05 < float(sound.samples.square().mean().sqrt()) <= 0.1001
        assert row["split"] == ("test" if row["voice"] == "rms" else "train")


def test_clips_of_tests_are_not_trained_on(build_clips, emoji40):
    emoji = load_emoji(emoji40)
    drawings = build_clips.drawings_of(emoji, "train")
    seen, unseen = set(), []
    train = list(build_clips.clips(drawings, "train", 16, seen, unseen))
    test = list(build_clips.clips(drawings, "test_combination", 3, seen, unseen))
    shown = [{(row["motion"], *row["things"]) for row in rows} for rows in (train, test)]
    assert not shown[0] & shown[1] and all(thing in seen for row in test for thing in row["things"])
    assert {"red heart", "hammer", "ship"}.isdisjoint(drawings) and "thumbs up" not in drawings  # the test split; groups of people
    assert all(row["style"] != "emojione" for row in train + test)
    some = set(sorted(drawings)[::2])
    assert all(some.issuperset(row["things"]) for row in build_clips.clips(drawings, "test_combination", 3, set(some), []))
    for row in train:
        video = open_video(row["video"]["bytes"])
        assert len(video.frames) == 6 and measured_motion(video) == row["motion"]
        assert row["text"] == caption(row["things"], row["motion"], row["speed"] if row["text"].endswith("ly") else "")
    assert [row["text"] for row in build_clips.clips(drawings, "train", 4, set(), [])] == [row["text"] for row in train[:4]]


def test_names_as_they_are_spoken(build_speech):
    spoken = {
        "flag: St. Barthélemy": "flag saint Barthelemy", "1st place medal": "first place medal", "UP! button": "up button", "OK hand": "OK hand",
        "AB button (blood type)": "AB button blood type", "woman’s hat": "woman's hat", "keycap: *": "keycap star", "x-ray": "x ray",
        "Japanese “no vacancy” button": "Japanese no vacancy button", "kiss: woman, man": "kiss woman man",
    }  # fmt: skip
    assert {label: build_speech.spoken_name(label) for label in spoken} == spoken
    unclear = ["A button (blood type)", "regional indicator B", "circled M", "ZZZ", "T-Rex", "OK hand"]
    assert [bool(build_speech.LETTER.search(label)) for label in unclear] == [True, True, True, True, False, False]


def test_sentences_of_known_words(build_speech):
    known = set("the cat sat on a mat it's red".split())
    found = ["The cat sat -- on a mat", "the cat sat on a mat!", "the dog sat on a mat", "it's red", "it's a red-cat mat,"]
    assert build_speech.within(found, known) == ["The cat sat on a mat.", "It's a red cat mat."]
    possible = [f"the {a} {b} sat on the {c}" for a in ("red", "old") for b in ("cat", "dog") for c in ("mat", "rug")]
    examples, known = [possible[n] for n in (0, 3, 5, 6)], set("the red old cat dog sat on mat rug".split())
    assert {build_speech.text_of(chain) for chain in build_speech.chained(examples, known, 4)} == set(possible) - set(examples)
    with pytest.raises(SystemExit, match="4 of 5 new sentences"):
        build_speech.chained(examples, known, 5)


def test_no_training_text_has_a_test_sentence(build_speech, monkeypatch):
    generator = random.Random(0)
    for name, value in {"NUM_WORDS": 40, "NUM_CHAINS": 60, "NUM_TEST": 20, "NUM_SPOKEN": 15, "NUM_EXAMPLES": 30}.items():
        monkeypatch.setattr(build_speech, name, value)
    words = [f"w{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(40)]
    examples = [" ".join(generator.choices(words, k=generator.randint(3, 7))) for _ in range(300)]
    prose = [f"{example} {words[0]}" for example in examples[:100]]
    examples += [f"rare{chr(97 + n % 26)} {example}" for n, example in enumerate(examples)]  # words that are not frequent enough
    lines, vocabulary = build_speech.every_line({"sun": "sun", "moon": "moon"}, examples, prose)
    assert sorted(vocabulary) == sorted(words)
    tested = {line.text for line in lines if line.split == "test" and line.source == "sentence"}
    trained = [line for line in lines if line.split == "train"]
    assert len(tested) == 20 and not any(f" {test} " in f" {line.text} " for test in tested for line in trained)
    assert {line.voice for line in trained} == {"heart", "slt", "awb", "kal16"}
    assert {line.voice for line in lines if line.split == "test"} == {"heart", "rms"}
    assert {line.source for line in lines[: len(lines) // 4]} == {"name", "sentence", "prose", "chain"}  # the same mix from the start
    assert {(line.source, line.voice) for line in lines[-30:]} == {("example", "heart")} and "example" not in {line.source for line in lines[:-30]}
    assert not set(vocabulary).issuperset(word for line in lines[-30:] for word in line.text.split())
    assert len(lines) == len(set(lines))


def test_sounds_are_trimmed_and_equally_loud(build_speech):
    loud = np.sin(np.arange(8000) * 0.3).astype(np.float32) * 0.02
    padded = np.concatenate([np.zeros(5000, np.float32), loud, np.zeros(9000, np.float32)])
    cut = padded[slice(*build_speech.trimmed(padded))]
    begins, ends = np.flatnonzero(cut)[[0, -1]]
    assert 1280 <= begins <= 1440 and 1280 <= len(cut) - ends <= 1440  # 80 ms, and what is left of 10
    assert np.sqrt(np.square(build_speech.levelled(cut)).mean()) == pytest.approx(0.1)
    assert np.abs(build_speech.levelled(np.eye(1, 4000, 7)[0])).max() == pytest.approx(0.97)


def test_marks_become_phones(build_speech):
    """Main stress belongs to the vowel behind it, the weaker one is dropped, and whatever parts words is one space, none at the end."""
    marks = list("ˈI, ˌæp ˈ .dˈɑɡ.")
    phones = build_speech.phones_of(marks, [float(n) for n in range(len(marks))])
    assert [phone for phone, _ in phones] == ["ˈI", " ", "æ", "p", " ", "d", "ˈɑ", "ɡ"]
    assert [second for _, second in phones] == [0, 2, 4, 6, 7, 11, 12, 14]
    assert build_speech.phones_of([], []) == []


def test_shards_that_exist_are_left(build_speech, tmp_path, monkeypatch):
    class Voices:
        speak = staticmethod(lambda line: (np.full(160, 0.1, np.float32), [("l", 0.0), ("ˈI", 0.005)]))
        flac = staticmethod(lambda samples: b"fLaC")

    monkeypatch.setattr(build_speech, "Voices", Voices)
    monkeypatch.setattr(build_speech, "SHARD", 2)
    lines = [build_speech.Line("", f"Line {name}.", "heart", "sentence", "train") for name in "abcde"]
    build_speech.write_shards(tmp_path, lines[:3])  # an earlier, shorter run: its last shard has one clip, now two are due
    before = (tmp_path / "speech-000.parquet").stat().st_mtime_ns
    (tmp_path / "speech-002.parquet").write_bytes(b"half of a shard")
    build_speech.write_shards(tmp_path, lines)
    assert (tmp_path / "speech-000.parquet").stat().st_mtime_ns == before
    assert pq.read_table(tmp_path / "speech-001.parquet")["text"].to_pylist() == ["line c", "line d"]
    (last,) = pq.read_table(tmp_path / "speech-002.parquet").to_pylist()
    assert last["text"] == "line e" and last["phones"] == ["l", "ˈI"] and last["begins"] == pytest.approx([0.0, 0.005])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"speech-00{n}.parquet" for n in range(3)]
    (tmp_path / "speech-001.parquet").unlink()
    build_speech.write_shards(tmp_path, lines)
    assert build_speech.counts(tmp_path)["heart"]["train sentence"]["clips"] == 5
