"""Videos of every kind go in, upright RGB frames with a true beat or one InputError come out; a saved video is complete or not there."""

import inspect
import io
import os
import random
import struct
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from mutants import alone, animation, movie, noise, repeated, sound_file
from PIL import Image

from mmgpt.data.moving import beats, boxes, open_video, save_video
from mmgpt.errors import InputError
from mmgpt.types import Video

FORMATS = ("GIF", "WEBP", "PNG")


@pytest.fixture
def av():
    return pytest.importorskip("av")


def greys(count: int, size: tuple[int, int] = (8, 6)) -> list[Image.Image]:
    """Frame k is grey of value k."""
    return [Image.new("RGB", size, (k % 256,) * 3) for k in range(count)]


def drawn(frames: list[Image.Image], format: str, milliseconds=100, **options) -> bytes:
    """A file from which the frames come back exactly."""
    return animation(frames, format, milliseconds, **({"lossless": True} if format == "WEBP" else {}), **options)


def values(video: Video) -> list[int]:
    """What frames that began as `greys` are."""
    return [frame.getpixel((0, 0))[0] for frame in video.frames]


def refused(source, **limits) -> str:
    with pytest.raises(InputError) as error:
        open_video(source, **limits)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


def at_box(content: bytes, name: bytes, at: int, value: bytes) -> bytes:
    """An MP4 with some bytes, `at` behind the name of a box, changed."""
    begin = content.rindex(name) + at
    return content[:begin] + value + content[begin + len(value) :]


# --- what is read -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_frames_come_back_exactly(tmp_path, format):
    frames = noise(5) if format != "GIF" else greys(5)
    path = tmp_path / "named_wrongly.mp4"  # the content decides, not the name
    path.write_bytes(drawn(frames, format, 40))
    for source in (path, str(path), path.read_bytes()):
        video = open_video(source)
        assert video.fps == 25 and len(video.frames) == 5
        for frame, original in zip(video.frames, frames, strict=True):
            assert frame.mode == "RGB" and not frame.info and (np.asarray(frame) == np.asarray(original)).all()


@pytest.mark.parametrize("format", FORMATS)
def test_one_frame(format):
    video = open_video(drawn(greys(1), format, 0))
    assert len(video.frames) == 1 and video.fps == 10


def test_transparency_lies_on_white():
    half = [Image.new("RGBA", (4, 4), (0, 0, 0, alpha)) for alpha in (0, 128, 255)]
    for format in ("WEBP", "PNG"):
        assert values(open_video(drawn(half, format))) == [255, 127, 0]
    hole = [Image.new("RGBA", (4, 4), (9, 9, 9, 0)), Image.new("RGBA", (4, 4), (9, 9, 9, 255))]
    assert values(open_video(drawn(hole, "GIF", disposal=2))) == [255, 9]


def test_every_frame_is_turned_upright():
    frames, exif = noise(3), Image.Exif()
    exif[0x0112] = 6
    for format in ("WEBP", "PNG"):
        video = open_video(drawn(frames, format, exif=exif))
        for frame, stored in zip(video.frames, frames, strict=True):
            assert (np.asarray(frame) == np.rot90(np.asarray(stored), -1)).all()


def test_a_picture_that_stands_in_for_an_animation_is_no_frame():
    assert values(open_video(drawn(greys(4), "PNG", default_image=True))) == [1, 2, 3]


# --- time -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_frames_that_last_longer_are_repeated(format):
    video = open_video(drawn(greys(4), format, [100, 300, 100, 200]))
    assert values(video) == [0, 1, 1, 1, 2, 3, 3] and video.fps == 10
    assert video.frames[1] is video.frames[2]  # kept once


def test_times_that_were_rounded_are_an_even_beat():
    assert values(open_video(drawn(greys(30), "GIF", [30, 30, 40] * 10))) == [*range(30)]
    assert open_video(drawn(greys(30), "GIF", [30, 30, 40] * 10)).fps == 30


def test_the_fastest_and_the_longest_are_read():
    assert open_video(drawn(greys(250), "WEBP", 1), max_frames=250).fps == 1000
    assert open_video(repeated(drawn(greys(250), "GIF", 10), 24)).fps == pytest.approx(64 / 60)  # a minute, not more


def test_no_duration_is_a_tenth_of_a_second():
    for format in FORMATS:
        assert open_video(drawn(greys(4), format, 0)).fps == 10


def test_many_frames_are_sampled_evenly():
    for format in FORMATS:
        content = drawn(greys(200), format, 20)
        video = open_video(content, max_frames=50)
        assert values(video) == [*range(1, 200, 4)] and video.fps == 12.5
        assert values(open_video(content, max_frames=1)) == [99] and open_video(content, max_frames=1).fps == 0.25
    uneven = drawn(greys(4), "GIF", [1000, 10, 10, 980])
    assert values(open_video(uneven, max_frames=4)) == [0, 0, 3, 3] and open_video(uneven, max_frames=4).fps == 2


def test_every_beat_shows_the_frame_of_its_time():
    dice = random.Random(3)
    for _ in range(500):
        seconds = [dice.choice((0.01, 0.02, 0.05, 0.1, 0.7, 0.001)) for _ in range(dice.randrange(1, 40))]
        most = dice.randrange(1, 80)
        times, fps = beats(seconds, most)
        ends = np.cumsum(seconds)
        assert 1 <= len(times) <= most and abs(len(times) / fps - ends[-1]) < 1e-6 * ends[-1]
        assert 0 < times[0] and times[-1] < ends[-1] and np.allclose(np.diff(times), 1 / fps)
        shown = np.bincount(np.searchsorted(ends, times, side="right"), minlength=len(seconds)) / fps
        assert np.abs(shown - seconds).max() <= 1 / fps + 0.01  # no frame is longer or shorter by more than a beat and a tick


# --- what is refused ------------------------------------------------------------------------------------------------------------------


def test_limits_are_the_callers():
    content = drawn(greys(5), "WEBP", 100)
    limits = {"max_frames": 5, "max_seconds": 0.5, "max_pixels": 5 * 48, "max_decoded": 5 * 48, "max_bytes": len(content)}
    assert len(open_video(content, **limits).frames) == 5
    assert "lasts 0.50 seconds, at most 0.49" in refused(content, max_seconds=0.49)
    assert "240 pixels, at most 239 are kept" in refused(content, max_pixels=239)
    assert len(open_video(content, max_pixels=239, max_frames=4).frames) == 4
    assert "240 pixels or more in all frames, at most 239 are decoded" in refused(content, max_decoded=239, max_frames=1)
    assert f"at most {len(content) - 1} are read" in refused(content, max_bytes=len(content) - 1)
    assert "max_frames=0: keep at least 1" in refused(content, max_frames=0)


def lying(format: str) -> bytes:
    """A small animation whose header is changed to promise 16000 x 16000 pixels."""
    content = bytearray(drawn(greys(3), format))
    if format == "GIF":
        content[6:10] = struct.pack("<HH", 16_000, 16_000)
    elif format == "PNG":
        content[16:24] = struct.pack(">II", 16_000, 16_000)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    else:
        content[24:30] = (15_999).to_bytes(3, "little") * 2
    return bytes(content)


@pytest.mark.parametrize("format", FORMATS)
def test_bombs_are_refused_by_their_header(format):
    assert "16000x16000 = 256000000 pixels, at most 16800000" in refused(lying(format))


def test_many_big_frames_are_refused_before_one_is_decoded():
    content = repeated(animation([Image.new("L", (4000, 4000))], "GIF", 20), 9)
    assert "would keep 144000000 pixels, at most 135000000" in refused(content)
    assert "144000000 pixels or more in all frames" in refused(content, max_decoded=10**8)


def test_frames_of_different_sizes():
    """A GIF frame that reaches beyond the screen would make the picture bigger from there on; WebP and PNG are read on one canvas."""
    content = bytearray(drawn(noise(3), "GIF"))
    at = [place for place in range(len(content)) if content[place : place + 9] == b"\x2c\0\0\0\0\x40\0\x30\0"]
    assert len(at) == 3
    for reach in (65, 20_000):
        content[at[1] + 5 : at[1] + 7] = struct.pack("<H", reach)
        assert f"frame 1 reaches to {reach}x48 of 64x48 pixels" in refused(bytes(content))


def test_no_frames():
    assert "0 frames" in refused(b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0) + b";")
    for content in (b"GIF89a", b"GIF8", b"\x89PNG\r\n\x1a\n", b"RIFF\x04\0\0\0WEBP", b"\x1aE\xdf\xa3", b"\0\0\0\x08ftyp"):
        refused(content)


def test_a_png_that_says_it_has_other_frames_than_it_has():
    content = drawn(greys(4), "PNG")
    at = content.index(b"acTL")
    for count in (0, 3, 5, 2**31 - 1):
        chunk = b"acTL" + struct.pack(">II", count, 0)
        refused(content[:at] + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[at + 16 :])


@pytest.mark.parametrize("format", FORMATS)
def test_cut_at_any_place(format):
    content = drawn(noise(4), format)
    whole = [np.asarray(frame) for frame in open_video(content).frames]
    read = 0
    for end in sorted({*range(0, len(content), 1 + len(content) // 200), *range(len(content) - 30, len(content))}):
        try:
            part = open_video(content[:end])
        except InputError as error:
            assert "\n" not in str(error)
        else:  # only an end mark was lost
            read += 1
            assert all((np.asarray(frame) == original).all() for frame, original in zip(part.frames, whole, strict=True))
    assert read <= 20  # PNG: checksums and the closing chunk


def test_other_formats():
    others = [b"", b"\0", b"plain text", b"RIFF", b"%PDF", b"\xff\xd8\xff\xe0", b"#EXTM3U\n", b"ffconcat version 1.0\n"]
    for content in [*others, sound_file(np.zeros((9, 1)), 16000, "WAV")]:
        assert "GIF, WebP, PNG, MP4, MOV and WebM" in refused(content) and f"({len(content)} bytes)" in refused(content)


def test_missing_folder_device_and_other_types(tmp_path):
    for path, reason in ((tmp_path / "no.gif", "does not exist"), (tmp_path, "folder"), ("/dev/zero", "regular"), ("a\0b", "path")):
        assert reason in refused(path)
    for value in (None, 3, Image.new("RGB", (2, 2))):
        with pytest.raises(InputError, match=f"a video cannot be a {type(value).__name__}"):
            inspect.unwrap(open_video)(value)  # past the type checks of the tests, which users do not have


# --- MP4, MOV, WebM -------------------------------------------------------------------------------------------------------------------

MOVIES = [("mp4", "libx264"), ("mov", "mpeg4"), ("webm", "libvpx-vp9"), ("webm", "libvpx")]


@pytest.mark.parametrize("kind", MOVIES)
def test_movies(av, kind):
    content = movie([Image.new("RGB", (64, 48), (2 * k, 60, 255 - 2 * k)) for k in range(100)], *kind, fps=25)
    video = open_video(content, max_frames=100)
    assert video.fps == pytest.approx(25) and len(video.frames) == 100 and {frame.size for frame in video.frames} == {(64, 48)}
    assert max(abs(value - 2 * k) for k, value in enumerate(values(video))) < 12
    some = open_video(content, max_frames=10)
    assert some.fps == pytest.approx(2.5) and max(abs(value - 2 * (10 * k + 4.5)) for k, value in enumerate(values(some))) < 14


def test_frames_of_a_movie_that_last_longer_are_repeated(av):
    """The last two of four frames begin later: at 0.3 and 0.4 seconds."""
    content = bytearray(movie(greys(4, (64, 48)), "webm", "libvpx-vp9", fps=10))
    last = content.rindex(b"\xa3")  # a block: its name, its length, the track, the time in milliseconds
    for at, milliseconds in ((content.rindex(b"\xa3", 0, last), 300), (last, 400)):
        content[at + 3 : at + 5] = struct.pack(">H", milliseconds)
    video = open_video(bytes(content), max_pixels=4 * 64 * 48)
    assert video.fps == 10 and len(video.frames) == 5 and video.frames[1] is video.frames[2] and len({*map(id, video.frames)}) == 4


@pytest.mark.parametrize("kind", MOVIES)
def test_a_cut_movie_is_never_read(av, kind):
    content = movie(noise(4), *kind)
    for end in [*range(0, len(content), 1 + len(content) // 60), len(content) - 1]:
        refused(content[:end])


def test_a_movie_held_sideways(av):
    """A phone stores the turn as a matrix in the header of the track: x to y, y to -x is a quarter clockwise."""
    content = movie([Image.fromarray(np.repeat(np.array([[[250, 0, 0]], [[0, 0, 250]]], np.uint8), 24, 0).repeat(64, 1))] * 3)
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    turned = open_video(at_box(content, b"tkhd", 44, matrix)).frames[0]
    assert turned.size == (48, 64) and turned.getpixel((40, 30))[0] > 200 and turned.getpixel((8, 30))[2] > 200  # what was above is right


def test_movies_are_counted_while_they_are_decoded(av):
    content = movie(noise(6))
    pixels = 64 * 48 * 6
    assert len(open_video(content, max_pixels=pixels, max_decoded=2 * pixels).frames) == 6
    assert "are kept" in refused(content, max_pixels=pixels - 1)
    assert f"at most {pixels - 1} are decoded" in refused(content, max_decoded=pixels - 1, max_frames=1)
    assert "lasts 0.20 seconds" in refused(content, max_seconds=0.19)
    assert "has 6 frames in 0.000" in refused(at_box(content, b"mdhd", 16, struct.pack(">I", 10**8)))  # that many ticks a second
    assert "has 6 frames or more in 0.005 seconds" in refused(content, max_seconds=0.005)


def test_samples_that_overlap_are_not_read_again_and_again(av):
    """40 samples, each nearly the whole file, each in a chunk of its own that begins where all do."""
    content = at_box(at_box(movie(noise(40)), b"stsc", 16, struct.pack(">I", 1)), b"stsz", 16, struct.pack(">I", 10_000) * 40)
    at = content.rindex(b"stco")
    content = at_box(content, b"stco", 8, struct.pack(">I", 40))
    content = content[: at + 12] + content[at + 12 : at + 16] * 40 + content[at + 16 :]
    for box in (b"stco", b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        (size,) = struct.unpack_from(">I", content, content.rindex(box) - 4)
        content = at_box(content, box, -4, struct.pack(">I", size + 39 * 4))
    assert f"bytes or more in {len(content)}" in refused(content)


def test_a_movie_that_changes_its_size(av, monkeypatch):
    """The header says 64x48, and so are the first frames; libav itself refuses later ones that are too big, before it makes room for them."""
    parts = []
    for size in ((64, 48), (320, 240)):
        coder = av.CodecContext.create("libvpx", "w")
        coder.width, coder.height, coder.pix_fmt, coder.time_base = *size, "yuv420p", Fraction(1, 30)
        parts += [bytes(packet) for frame in greys(3, size) for packet in coder.encode(av.VideoFrame.from_image(frame))]
        parts += [bytes(packet) for packet in coder.encode(None)]
    content = io.BytesIO()
    with av.open(content, "w", format="webm") as file:
        stream = file.add_stream("libvpx", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, part in enumerate(parts):
            packet = av.Packet(part)
            packet.stream, packet.time_base, packet.pts, packet.dts, packet.is_keyframe = stream, Fraction(1, 30), number, number, number % 3 == 0
            file.mux(packet)
    assert "changes from 64x48 to 320x240 pixels" in refused(content.getvalue())
    monkeypatch.setattr("mmgpt.data.moving.MAX_FRAME", 320 * 240 - 1)
    assert "broken" in refused(content.getvalue())


def test_sound_alone_and_rare_codecs(av):
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    assert "holds nothing for pictures" in refused(content.getvalue())
    assert "holds mpeg2video for pictures" in refused(movie(noise(2), "mov", "mpeg2video"))


def test_without_pyav(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install av" in refused(struct.pack(">I4sI", 12, b"ftyp", 0) + struct.pack(">I4s", 8, b"moov"))
    with pytest.raises(InputError, match="pip install av"):
        save_video(Video(tuple(greys(2)), 10), tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


def test_boxes():
    long = struct.pack(">I4sQ", 1, b"mdat", 20) + b"abcd"
    assert [*boxes(struct.pack(">I4s", 12, b"ftyp") + b"1234" + long + struct.pack(">I4s", 0, b"moov") + b"12")] == [
        (b"ftyp", 0, 12), (b"mdat", 12, 32), (b"moov", 32, 42),
    ]  # fmt: skip


def test_only_samples_may_look_like_a_huge_index(av):
    content, looks = movie(noise(2)), b"stsz" + b"\xff" * 12
    assert len(open_video(content + struct.pack(">I4s", 24, b"mdat") + looks).frames) == 2
    assert f"{2**32 + 1} samples" in refused(content + struct.pack(">I4s", 24, b"free") + looks)
    assert "or hides it" in refused(content + struct.pack(">I4s", 8, b"cmov"))


# --- what is written ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".WEBP"])
@pytest.mark.parametrize("fps", [10.0, 24.0, 29.97, 0.5])
def test_saved_is_opened(tmp_path, suffix, fps):
    path = save_video(Video(tuple(greys(20)), fps), str(tmp_path / f"a{suffix}"))
    video = open_video(path)
    assert isinstance(path, Path) and values(video) == [*range(20)] and video.fps == pytest.approx(fps, rel=0.01)
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]


def test_saved_as_mp4(av, tmp_path):
    frames = [frame.resize((64, 48), Image.Resampling.BICUBIC) for frame in (noisy.resize((8, 6)) for noisy in noise(9))]
    video = open_video(save_video(Video(tuple(frames), 29.97), tmp_path / "a.mp4"))
    assert len(video.frames) == 9 and video.fps == pytest.approx(29.97)
    for frame, original in zip(video.frames, frames, strict=True):
        assert np.abs(np.asarray(frame).astype(int) - np.asarray(original)).mean() < 6
    with pytest.raises(InputError, match="65x48 pixels, MP4 needs even numbers"):
        save_video(Video(tuple(greys(2, (65, 48))), 10), tmp_path / "b.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_saved_without_alpha(tmp_path):
    clear = Video((Image.new("RGBA", (8, 8), (0, 0, 0, 0)), Image.new("L", (8, 8), 7)), 10)
    for suffix in (".gif", ".webp"):
        path = save_video(clear, tmp_path / f"a{suffix}")
        assert values(open_video(path)) == [255, 7]
        with Image.open(path) as stored:
            assert not stored.has_transparency_data


@pytest.mark.parametrize(
    "video, name, said",
    [
        (Video((), 10), "a.gif", "0 frames"),
        (Video((*greys(1), *greys(1, (4, 4))), 10), "a.webp", "frames of 2 sizes"),
        (Video(tuple(greys(2)), float("nan")), "a.gif", "nan frames a second"),
        (Video(tuple(greys(2)), 60), "a.gif", "60 frames a second, a .gif shows 50 at most"),
        (Video(tuple(greys(2)), 1e-4), "a.gif", "cannot be written as .gif"),
        (Video(tuple(greys(2)), 10), "a.avi", r"known are \.gif, \.webp, \.mp4"),
        (Video(tuple(greys(2)), 10), "no/a.gif", "choose an existing folder"),
    ],
)
def test_videos_that_cannot_be_saved(tmp_path, video, name, said):
    with pytest.raises(InputError, match=said):
        save_video(video, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = save_video(Video(tuple(greys(3)), 10), tmp_path / "a.gif")
    old = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        save_video(Video(tuple(greys(5)), 10), path)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["a.gif"]


# --- files that are damaged or huge, in a process of their own ------------------------------------------------------------------------


def check(came: dict) -> None:
    assert came["read"] > 0.2 * (came["read"] + came["refused"]) and came["refused"] > came["read"] / 2, came
    assert came["slowest"] < 5 and came["megabytes"] < 150, came


def test_some_hundred_mutants_four_thousand_frames_and_headers_of_a_hundred_million_samples():
    came = alone("video", 330)
    check(came)
    frames, grown = came["gif"]
    assert frames == str([int((k + 0.5) * 62.5 - 0.01) % 250 for k in range(64)]) and grown < 20, came  # all would be 196 MB
    for box in {"stsz", "trun"} & set(came):
        said, grown = came[box]
        assert "100000000 samples" in said and grown < 20, came


@pytest.mark.long
@pytest.mark.parametrize("kind, count", [("animation", 10_000), ("movie", 3_000)])
def test_thousands_of_mutants(kind, count):
    if kind == "movie":
        pytest.importorskip("av")
    came = alone(kind, count)
    print(kind, {name: came[name] for name in ("read", "refused", "slowest", "megabytes")})
    check(came)
