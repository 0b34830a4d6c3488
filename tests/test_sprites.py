"""Video as a thing's picture and its poses: poses and codes, the layout that may cut to another thing, the model that writes it."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from tiny import any_gpt, gap, tone

import mmgpt
from mmgpt.data.clips import MOTIONS, SPEEDS, in_order, moving
from mmgpt.data.emoji import load_emoji, picture
from mmgpt.decoders.image_codec import ImageCodec, ImageCodecConfig
from mmgpt.decoders.sprite import Pose, drawn, thing_of
from mmgpt.decoders.sprite_codec import FIRST, LATER, SpriteCodec, codes_of, poses_of
from mmgpt.decoders.sprite_layout import SpritesLayout
from mmgpt.errors import InputError, LengthError
from mmgpt.evaluate.video import measured_motion
from mmgpt.generate import stretch
from mmgpt.generate.request import Preview
from mmgpt.generate.row import Row
from mmgpt.generate.stretch import alike
from mmgpt.hub import load
from mmgpt.native import VideoConfig, build_from, save
from mmgpt.pack import length, pack
from mmgpt.script import Automaton, Span, parse
from mmgpt.types import Part, Video

LAYOUT = SpritesLayout(5, 6, 7, Span(20, 20 + 9 + 5 + 8 + 1), 8, 2, 3, (2, 3), (4, 2, 2))  # 9 codes of pictures
bounded = settings(max_examples=60, deadline=None, derandomize=True)


def sprites_gpt(**changes):
    """A tiny model whose clips are sprites: pictures of 16 pixels, 4 frames of 32."""
    base = any_gpt()
    return build_from(base, replace(base.config, video=VideoConfig(4, 32, 2.0, codec="sprites", **changes))).eval()


@pytest.fixture(scope="module")
def exact() -> SpriteCodec:
    """A codec that keeps pictures as they are: what is lost is lost by the poses."""
    codec = SpriteCodec(ImageCodec(ImageCodecConfig(stride=(8, 4), levels=(4, 4, 4, 4), width=16, blocks=1)), 64, 128, 6, 3.0)
    kept: list[Image.Image] = []

    class Pictures:
        side = 64

        def encode(self, shown: Image.Image) -> np.ndarray:
            kept.append(shown)
            return np.full(codec.grid, len(kept) - 1)

        def decode(self, codes: np.ndarray) -> Image.Image:
            return kept[int(codes.flat[0])]

    codec.picture = Pictures()
    return codec


# --- poses ------------------------------------------------------------------------------------------------------------------------------


@bounded
@given(st.integers(2, 9), st.integers(0, 999))
def test_a_walk_of_poses_is_followed(frames, seed):
    """Rounding is made good: the last frame is as near as the second one."""
    random = Random(seed)
    at, walk = Pose(0.5, 0.5, 0.5), []
    for _ in range(frames):
        walk.append(at if random.random() < 0.8 or not walk else None)
        x, y, size, angle = (random.uniform(-most, most) for most in (0.05, 0.05, 0.1, 50))
        at = Pose(min(1, max(0, at.x + x)), min(1, max(0, at.y + y)), min(1.1, max(0.15, at.size * np.exp(size))), at.angle + angle)
    found = poses_of(codes_of(walk), 1)
    assert [pose is None for pose in found] == [pose is None for pose in walk]
    for n, (pose, wanted) in enumerate(zip(found, walk, strict=True)):
        if pose is not None and (n == 0 or walk[n - 1] is not None):
            assert abs(pose.x - wanted.x) <= (1 / 128 if n == 0 else 1 / 256) + 1e-9
            assert abs(pose.y - wanted.y) <= (1 / 128 if n == 0 else 1 / 256) + 1e-9
            assert abs(np.log(pose.size / wanted.size)) < (0.045 if n == 0 else 0.0101)
            assert n == 0 or abs((pose.angle - wanted.angle + 180) % 360 - 180) <= 2.51


def test_half_a_pose_is_none():
    codes = codes_of([Pose(0.5, 0.5, 0.5), Pose(0.6, 0.5, 0.5), None])
    assert len(codes) == len(FIRST) + 2 * len(LATER) and max(codes) < sum(FIRST) + sum(LATER)
    assert [len(poses_of(codes[:count], 64)) for count in (0, 2, 3, 6, 7, 10, 11)] == [0, 0, 1, 1, 2, 2, 3]
    assert poses_of([codes[1], codes[0], *codes[2:]], 64) == []  # a y where an x belongs
    with pytest.raises(InputError, match="first frame shows nothing"):
        codes_of([None, Pose(0.5, 0.5, 0.5)])


# --- the codec --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("motion", MOTIONS)
def test_a_clip_comes_back_in_its_motion(exact, emoji40, motion, speed):
    things = [picture(row) for row in load_emoji(emoji40) if row.label in ("banana", "rocket", "dog face", "hammer")]
    for seed, thing in enumerate(things[::2]):
        clip = moving(thing, motion, 6, speed=speed, seed=seed)
        codes = exact.encode(clip)
        back = exact.decode(codes)
        assert len(codes) == 128 + len(FIRST) + 5 * len(LATER) and back.fps == 3.0 and back.frames[0].size == (128, 128)
        assert measured_motion(back) == motion
        for ours, frame in zip(back.frames, clip.frames, strict=True):
            assert np.abs(np.array(ours.reduce(2), float) - np.array(frame, float)).mean() < 6


def test_one_thing_then_another_is_two_shots(exact, emoji40):
    things = [picture(row) for row in load_emoji(emoji40) if row.label in ("banana", "rocket")]
    clip = in_order(things[0], things[-1], 6, seed=3)
    codes = exact.encode(clip)
    back = exact.decode(codes)
    assert len(codes) == 2 * (128 + len(FIRST)) + 4 * len(LATER) and measured_motion(back) == "then" and len(back.frames) == 6
    other = np.full(128, 7)
    changed = exact.exchange(codes, [None, other])
    assert (changed[:128] == codes[:128]).all() and (changed != codes).sum() == 128
    assert (exact.cut(changed)[1][0] == other).all() and (exact.exchange(codes, []) == codes).all()


def test_what_is_not_there_is_not_drawn(exact):
    white = Image.new("RGB", (64, 64), "white")
    disc = white.copy()
    ImageDraw.Draw(disc).ellipse((20, 20, 40, 40), fill="red")
    for frames in ([white] * 4, [disc], [disc, white, disc], [white, white, disc, disc]):
        back = exact.decode(exact.encode(Video(tuple(frames), 2.0)))
        assert len(back.frames) == len(frames)
        seen = [frame.getextrema() != ((255, 255),) * 3 for frame in back.frames]
        assert seen[1:] == [frame is disc for frame in frames][1:]  # a first frame shows what will come
    long = Video(tuple(disc for _ in range(50)), 25.0)
    assert len(exact.decode(exact.encode(long)).frames) == 6


def test_what_codecs_and_cameras_leave_on_paper_is_no_thing(exact):
    """Neither transparent paper nor pale specks make a thing larger."""
    disc = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(disc).ellipse((20, 20, 44, 44), fill="red")
    specks = Image.new("RGB", (64, 64), "white")
    specks.paste(disc, mask=disc)
    specks.putpixel((1, 1), (240, 240, 240))
    specks.putpixel((62, 62), (235, 235, 235))
    for frame in (disc, specks):
        (_, poses), *_ = exact.shots(Video((frame,) * 4, 2.0))
        assert [(pose.x, pose.y, pose.size) for pose in poses] == [pytest.approx((0.508, 0.508, 0.39), abs=0.02)] * 4
        back = thing_of(exact.decode(exact.encode(Video((frame,) * 4, 2.0))).frames[1])
        assert back.edge == pytest.approx(50, abs=4)


def test_codes_that_are_no_sprites_are_refused(exact):
    codes = exact.encode(Video((picture_of("red"),) * 4, 2.0))
    assert len(exact.decode(codes[:128]).frames) == 1 and len(exact.decode(codes[: 128 + 3 + 5]).frames) == 2
    for wrong, words in ((codes[:100], "100 codes hold no picture"), (codes + exact.num_codes, "they run from 0"), (codes[:0], "0 codes hold")):
        with pytest.raises(InputError, match=words):
            exact.decode(wrong)


def picture_of(colour: str) -> Image.Image:
    shown = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(shown).polygon([(10, 50), (30, 10), (52, 44)], fill=colour)
    return shown


def test_a_close_up_fills_the_picture(exact):
    (shown, poses), *_ = exact.shots(Video((picture_of("blue"),) * 4, 2.0))
    thing = thing_of(shown)
    assert 0.85 < thing.edge / 64 < 0.97 and poses[0].size == pytest.approx(thing_of(picture_of("blue")).edge / 64, abs=0.02)


def test_what_turns_and_grows_is_shown_as_it_stood_at_first(exact, emoji40):
    """Its largest frame would show it turned."""
    thing = thing_of(next(picture(row) for row in load_emoji(emoji40) if row.label == "hammer"))
    frames = tuple(drawn(thing, Pose(32, 32, 24 + 3 * t, 30 * t), 64) for t in range(5))
    (shown, poses), *_ = exact.shots(Video(frames, 2.0))
    assert [pose.angle for pose in poses] == pytest.approx([0, 30, 60, 90, 120], abs=4)
    assert np.abs(np.array(shown, float) - np.array(exact.shots(Video(frames[:1], 2.0))[0][0], float)).mean() < 1
    back = exact.decode(exact.encode(Video(frames, 2.0)))
    assert max(np.abs(np.array(ours.reduce(2), float) - np.array(frame, float)).mean() for ours, frame in zip(back.frames, frames, strict=True)) < 9


# --- the layout -------------------------------------------------------------------------------------------------------------------------


def shots(frames: int, cut: int, seed: int) -> np.ndarray:
    random = Random(seed)
    codes: list[int] = []
    for count in [cut, frames - cut] if cut else [frames]:
        codes += [random.randrange(9) for _ in range(6)]
        for slots, base in ((LAYOUT.first, 9), *[(LAYOUT.later, 9 + sum(LAYOUT.first))] * (count - 1)):
            codes += [base + sum(slots[:n]) + random.randrange(size) for n, size in enumerate(slots)]
    return np.array(codes)


@bounded
@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 99))
def test_shots_parse_back(frames, cut, seed):
    codes = shots(frames, cut % frames, seed)
    written = LAYOUT.write(codes, learn=True)
    assert written.ids_N[:2].tolist() == [5, 6] and written.ids_N[-1] == 8 and written.span == written.place_N3.max() + 1
    assert written.choice_N.sum() == len(codes) + (cut % frames > 0)  # the cut is chosen, too
    ids, script = parse(written.ids_N, LAYOUT.scripts((frames, 2, 3)))
    assert (LAYOUT.codes(ids, script.grid) == codes).all() and script.grid == (frames, 2, 3)
    assert written.place_N3[2:8].tolist() == [[2, 2 + row, 2 + column] for row in range(2) for column in range(3)]


@bounded
@given(st.integers(1, 5), st.integers(0, 10_000))
def test_shots_drawn_at_random_are_whole(frames, seed):
    walk, ids, random = Automaton(LAYOUT.scripts((frames, 2, 3))), [], Random(seed)
    while (choice := walk.next()) is not None:
        span = random.choice(choice.spans)
        ids.append(random.randrange(span.start, span.stop))
        walk.push(ids[-1])
    open_ids, script = parse(ids, LAYOUT.scripts((frames, 2, 3)))
    codes = LAYOUT.codes(open_ids, script.grid)
    assert sum(LAYOUT.frames_of(codes)) == frames and ids.count(LAYOUT.cut) <= 1
    again = LAYOUT.write(codes)
    assert again.ids_N.tolist() == ids and (again.place_N3 == script.place_N3).all()


def test_ways_agree_on_places_as_long_as_they_agree_on_ids():
    ways = LAYOUT.scripts((4, 2, 3))
    for cut, way in enumerate(ways[1:], 1):
        at = int(np.flatnonzero(way.first_N == LAYOUT.cut)[0])
        assert at == 2 + 6 + 1 + 2 + 3 * (cut - 1) and (way.place_N3[: at + 1] == ways[0].place_N3[: at + 1]).all()
        assert (np.diff(way.place_N3.max(1)) >= -3).all() and way.place_N3[at, 0] == way.place_N3[at - 1, 0] + 1


@pytest.mark.parametrize(
    "codes, words",
    [
        (shots(3, 0, 0)[:-1], "codes of 1 shots"),
        (np.concatenate([shots(1, 0, n) for n in range(3)]), "codes of 3 shots"),
        (np.zeros((2, 3), int), r"shape \(2, 3\)"),
        (np.zeros(8), "float64"),
        (np.array([0, 1, 2, 3, 4, 5, 12, 10]), "leave the layout's range"),  # the second slot's code in the first
    ],
)
def test_codes_that_are_no_shots_are_refused(codes, words):
    with pytest.raises(InputError, match=words):
        LAYOUT.write(codes)


def test_a_layout_of_nothing_is_refused():
    for first, later in (((2, 3), ()), ((1,), (2,)), ((9, 9), (9, 9))):
        with pytest.raises(InputError, match="23 ids for frames"):
            replace(LAYOUT, first=first, later=later)
    for grid, cut in (((0, 2, 3), 0), ((3, 2, 2), 0), ((3, 2, 3), 3)):
        with pytest.raises(InputError, match="cannot be written by this layout"):
            LAYOUT.script(grid, cut)


# --- the model --------------------------------------------------------------------------------------------------------------------------


def test_a_model_writes_sprites(tmp_path):
    gpt = sprites_gpt()
    requests = [mmgpt.Request([given, "move"], "video", guidance=1.0, seed=seed) for seed, given in enumerate(["a cat", tone()] * 20)]
    results = mmgpt.Engine(gpt).run(requests)
    lengths = [len(result.ids) for result in results]
    whole, cut = lengths.index(min(lengths)), lengths.index(max(lengths))
    assert lengths[whole] < lengths[cut]
    for request, result in ((requests[n], results[n]) for n in (whole, cut)):
        assert len(result.value.frames) == 4 and result.value.frames[0].size == (32, 32) and result.value.fps == 2.0
        assert mmgpt.Engine(gpt).run([request])[0].ids == result.ids
        document = gpt.write([*(Part(value) for value in request.parts), replace(result.parts[0], learn=True)])
        assert tuple(document[-1].ids_N) == result.ids
    again = load(save(gpt, tmp_path / "model"))
    assert again.config == gpt.config and mmgpt.Engine(again).run(requests[:1])[0].ids == results[0].ids
    assert {name for name in gpt.state_dict() if ".video." in name} == {"encoders.video.time.weight"}


def test_there_is_room_for_a_cut_or_it_is_refused():
    """Whether the model cuts is not known before: the longer way must fit."""
    gpt = sprites_gpt()
    lengths = [len(way) for way in gpt.ports["video"].writes.scripts(gpt.ports["video"].grid)]
    short, long = lengths[0], max(lengths)
    read = length(gpt.write([Part("a cat")]))
    gpt.max_length = read + long
    mmgpt.Engine(gpt).run([mmgpt.Request(["a cat"], "video", guidance=1.0)])
    gpt.max_length -= 1
    assert short < long
    with pytest.raises(LengthError, match=f"{read + long} positions to read and write, this model holds {read + long - 1}"):
        mmgpt.Engine(gpt).run([mmgpt.Request(["a cat"], "video", guidance=1.0)])


def test_more_frames_than_pictures_would_fit():
    """What counts is what is written, a picture or two, not one for each frame."""
    gpt = sprites_gpt()
    gpt.max_length = 200
    rows, columns = gpt.ports["video"].grid[1:]
    frames = 200 // (rows * columns) + 2
    result = mmgpt.Engine(gpt).run([mmgpt.Request(["a cat"], "video", grid=(frames, rows, columns), guidance=1.0)])[0]
    assert len(result.value.frames) == frames
    for wrong in ((0, rows, columns), (-1, rows, columns), (3, rows, columns + 1), (99, rows, columns)):
        with pytest.raises(InputError, match="cannot be written by this layout|a size of"):
            mmgpt.Engine(gpt).run([mmgpt.Request(["a cat"], "video", grid=wrong)])


def test_many_steps_at_once_write_what_single_ones_write(monkeypatch):
    """As long as all ways agree, no row is asked in between."""
    gpt, taken = sprites_gpt(), []
    requests = [mmgpt.Request(["a cat"], "video", guidance=1.0, seed=n) for n in range(3)]
    at_once = [result.ids for result in mmgpt.Engine(gpt).run(requests)]
    row = Row(gpt, requests[0])
    while not row.done:
        taken.append(alike(row))
        row.push(at_once[0][len(row.ids)], 0.0)
    rows, columns = gpt.ports["video"].grid[1:]
    assert taken[0] == rows * columns and max(taken[rows * columns :]) == 1
    monkeypatch.setattr(stretch, "quiet", lambda row: False)
    assert [result.ids for result in mmgpt.Engine(gpt).run(requests)] == at_once


@pytest.mark.parametrize("make", [any_gpt, sprites_gpt])
def test_a_model_of_all_modalities_may_begin_any_of_them(make):
    """to="any": a text in which the model itself begins pictures, sounds and clips."""
    gpt, begun = make(), set()
    for seed in range(12):
        result = mmgpt.Engine(gpt).run([mmgpt.Request(["a cat"], "any", guidance=1.0, seed=seed, sampling=mmgpt.Sampling(1.5))])[0]
        begun |= {type(part.value).__name__ for part in result.parts}
    assert "str" in begun and len(begun) > 1


def test_what_will_move_is_shown_first():
    events = list(mmgpt.Engine(sprites_gpt()).stream(mmgpt.Request(["a cat"], "video", guidance=1.0, seed=5)))
    previews = [event for event in events if isinstance(event, Preview)]
    assert [(event.rows, event.of, len(event.value.frames)) for event in previews] == [(1, 2, 1)]


def test_pictures_and_sprites_share_ids_and_keep_their_own_losses():
    gpt = sprites_gpt()
    image, video = gpt.heads["image"].ids, gpt.heads["video"].ids
    assert video.start == image.start and len(video) == len(image) + sum(FIRST) + sum(LATER) + 1
    shown = picture_of("green").resize((16, 16))
    clip = Video(tuple(picture_of("red") for _ in range(4)), 2.0)
    documents = [gpt.write([Part("a"), Part(shown, learn=True)]), gpt.write([Part("b"), Part(clip, learn=True)])]
    together = gpt.losses(pack(documents, gpt.spans))
    for document, name in zip(documents, ("image", "video"), strict=True):
        alone = gpt.losses(pack([document], gpt.spans))
        assert set(alone) == {name} and gap(alone[name], together[name]) < 1e-5
    sum(loss.sum() for loss in together.values()).backward()
    assert gpt.table.weight.grad[video.start : video.stop].abs().sum(1).gt(0).all()


def rows_of_port(gpt, name: str) -> torch.Tensor:
    layout = gpt.ports[name].writes
    return torch.cat([gpt.table.weight[layout.begin][None], gpt.table.weight[layout.ids.start : layout.ids.stop]])


def test_a_model_keeps_what_it_knew_when_clips_become_sprites():
    base = any_gpt()
    gpt = build_from(base, replace(base.config, audio=None, video=VideoConfig(4, 32, 2.0, codec="sprites")))
    request = mmgpt.Request(["a cat"], "image", guidance=1.0, seed=1)
    both = build_from(base, replace(base.config, video=VideoConfig(4, 32, 2.0, codec="sprites")))
    assert both.heads["audio"].ids.start > base.heads["audio"].ids.start  # poses stand before it
    assert torch.equal(rows_of_port(both, "audio"), rows_of_port(base, "audio"))
    assert mmgpt.Engine(both).run([mmgpt.Request(["a cat"], "audio", seed=1)])[0].log_probability == pytest.approx(
        mmgpt.Engine(base).run([mmgpt.Request(["a cat"], "audio", seed=1)])[0].log_probability, abs=1e-3
    )
    assert torch.equal(gpt.table.weight[: gpt.heads["image"].ids.stop], base.table.weight[: base.heads["image"].ids.stop])
    assert mmgpt.Engine(gpt).run([request])[0].ids == mmgpt.Engine(base).run([request])[0].ids
    with pytest.raises(InputError, match="video codec 'flow'"):
        VideoConfig(codec="flow")
