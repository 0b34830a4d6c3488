"""A file of moving pictures or its bytes -> Video, evenly sampled in time; Video -> a file.

Read are animated GIF, WebP and PNG through Pillow, MP4, MOV and WebM through PyAV (`pip install av`), told apart by their first
bytes, never by their names. First the times of all frames are read without decoding one, then frames are decoded one after the
other and only those that are wanted are kept: a long video costs time, not memory.
"""

import io
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import fsum
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from mmgpt.data.pictures import MAX_PIXELS as MAX_FRAME
from mmgpt.data.pictures import as_rgb, broken, check_size, decode, kind_of, write_whole
from mmgpt.data.sound import given, suffix_of
from mmgpt.encoders.video import check
from mmgpt.errors import InputError
from mmgpt.types import Video

MAX_BYTES = 25 * 2**20
MAX_SECONDS = 60.0
MAX_FRAMES = 64
MAX_PIXELS = 135_000_000  # kept, 540 MB: 64 frames of 1920x1080 are 132.7 million
MAX_DECODED = 2_000_000_000  # pixels decoded on the way, half a minute of work as a GIF: a minute of 1280x720 at 30 frames a second is 1.7e9
MAX_INDEX = 4_000_000  # samples of an MP4, 70 bytes each in libav's index: a minute of sound stored as numbers at 48 kHz is 2.9 million
UNTIMED = 0.1  # seconds that a frame without a duration is shown, as in browsers
SHORTEST = 0.001  # seconds; what says less, says none
TICK = 0.01  # seconds, the clock of GIF: frames that begin no further off an even beat were even before their times were rounded
CODECS = ("h264", "hevc", "mpeg4", "vp8", "vp9", "av1", "libdav1d")  # the decoders of libav that are let at a file
FASTEST = {".gif": 50, ".webp": 1000, ".mp4": 1000}  # frames a second: browsers slow faster GIFs down to 10, WebP counts milliseconds
SAMPLE_COUNTS = {  # boxes of an MP4 that say how many samples it has, and where the number stands, from their names on
    b"stsz": 12,
    b"stz2": 12,
    b"trun": 8,
    b"cmov": 0,  # hides all that, compressed: its name is a number too big
}
TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


@dataclass(frozen=True)
class Limits:
    """What a video may cost: frames and pixels that are kept, seconds it lasts, pixels that are decoded on the way."""

    frames: int
    seconds: float
    pixels: int
    decoded: int

    def __post_init__(self):
        if self.frames < 1:
            raise InputError(f"max_frames={self.frames}: keep at least 1 frame")

    def check_kept(self, name: str, pixels: int) -> None:
        if pixels > self.pixels:
            asked = f"{name} would keep {pixels} pixels, at most {self.pixels} are kept"
            raise InputError(f"{asked}; make it smaller, lower max_frames or raise max_pixels")

    def check_decoded(self, name: str, pixels: int) -> None:
        if pixels > self.decoded:
            raise InputError(f"{name} has {pixels} pixels or more in all frames, at most {self.decoded} are decoded; cut it or raise max_decoded")


def open_video(
    source: str | Path | bytes,
    *,
    max_frames: int = MAX_FRAMES,
    max_seconds: float = MAX_SECONDS,
    max_pixels: int = MAX_PIXELS,
    max_decoded: int = MAX_DECODED,
    max_bytes: int = MAX_BYTES,
) -> Video:
    """The video as RGB frames of one size, upright, transparency on white, evenly spaced in time, so that `fps` is true.

    Of more than `max_frames` so many are kept, spread evenly over the whole length. Of frames that last differently long, those that
    last longer are repeated. `max_pixels` counts what is kept, `max_decoded` all that is decoded on the way to it.
    Anything that cannot be read, whose frames change their size, or that is bigger than the limits, raises `InputError`.
    """
    limits = Limits(max_frames, max_seconds, max_pixels, max_decoded)
    name, data = given(source, "video", max_bytes)
    try:
        if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return filmed(data, "mov", name, limits)
        if data.startswith(b"\x1aE\xdf\xa3"):
            return filmed(data, "matroska,webm", name, limits)
        if data.startswith((b"GIF8", b"\x89PNG")) or data[8:12] == b"WEBP":
            return drawn(data, name, limits)
    except InputError:
        raise
    except Exception as error:  # whatever a mutant makes Pillow and libav raise
        raise broken(name, len(data)) from error
    raise InputError(f"{name} ({len(data)} bytes) is in none of the 6 formats GIF, WebP, PNG, MP4, MOV and WebM; convert it to MP4")


def save_video(video: Video, path: str | Path) -> Path:
    """Write `video` as RGB in the format of the suffix, complete or not at all; returns the path.

    WebP is exact; GIF has 256 colours a frame; MP4 (H.264, needs `pip install av`) loses a little and needs even sizes.
    Frames alike that follow each other may be stored as one that lasts longer.
    """
    path = Path(path)
    fastest = suffix_of(path, FASTEST)
    check(video)
    if video.fps > fastest:
        raise InputError(f"{video.fps:g} frames a second, a {path.suffix} shows {fastest} at most; pass fewer frames, or save another format")
    frames = [as_rgb(frame) for frame in video.frames]
    content = io.BytesIO()
    try:
        if path.suffix.lower() == ".mp4":
            write_mp4(frames, video.fps, content)
        else:
            step = 10 if path.suffix.lower() == ".gif" else 1  # milliseconds; rounding the times, not the durations, keeps the beat
            times = [step * round(1000 * k / video.fps / step) for k in range(len(frames) + 1)]
            shown = [end - begin for begin, end in zip(times, times[1:], strict=False)]
            frames[0].save(content, path.suffix[1:], save_all=True, append_images=frames[1:], duration=shown, loop=0, lossless=True)
    except InputError:
        raise
    except Exception as error:  # a delay that a GIF cannot hold, a codec that this libav came without
        w, h = frames[0].size
        asked = f"{len(frames)} frames of {w}x{h} pixels at {video.fps:g} a second cannot be written as {path.suffix}"
        raise InputError(f"{asked}; try .webp, or another size or speed") from error
    return write_whole(content.getvalue(), path)


def beats(seconds: list[float], most: int) -> tuple[np.ndarray, float]:
    """(times to look at, how many a second), from how long each frame is shown: the middles of even steps over the whole length.

    examples, one frame shown for     0.1 0.1 0.1 0.1, `most` 2   -> 0.1 0.3 (just before), 5 a second: frames 0 2
                                      0.1 0.2 0.1                 -> 0.05 0.15 0.25 0.35, 10 a second:  frames 0 1 1 2
    """
    ends = np.cumsum(seconds)
    count, total = len(seconds), fsum(seconds)
    if np.abs(ends[:-1] - np.arange(1, count) * total / count).max(initial=0) > TICK:
        count = max(1, round(total / max(SHORTEST, min(seconds))))
    count = min(count, most)
    middles = (np.arange(count) + 0.5) * total / count - 1e-6  # one that falls on a border is the earlier frame's
    return middles, float(f"{count / total:.9g}")  # 30, not 30.000000000000004


def check_length(name: str, seconds: list[float], limits: Limits) -> None:
    total = fsum(seconds)
    if not seconds:
        raise InputError(f"{name} holds 0 frames, at least 1 is needed; check how it was made")
    if total > limits.seconds:
        raise InputError(f"{name} lasts {total:.2f} seconds, at most {limits.seconds:g} are read; cut it or raise max_seconds")
    if total < 0.99 * SHORTEST * len(seconds):
        raise InputError(f"{name} has {len(seconds)} frames in {total:.6f} seconds, at most {1 / SHORTEST:g} a second are read; convert it anew")


# --- GIF, WebP, PNG -------------------------------------------------------------------------------------------------------------------


def drawn(data: bytes, name: str, limits: Limits) -> Video:
    """An animation that Pillow decodes."""
    reader, header_size = kind_of(data, name)
    width, height = header_size(data)
    check_size(name, width, height, MAX_FRAME)
    seconds = [time if time >= SHORTEST else UNTIMED for time in TIMES[reader](data)]
    check_length(name, seconds, limits)
    limits.check_decoded(name, width * height * len(seconds))
    times, fps = beats(seconds, limits.frames)
    shown = np.searchsorted(np.cumsum(seconds), times, side="right").tolist()
    limits.check_kept(name, width * height * len(set(shown)))
    with reader(io.BytesIO(data)) as image:
        first = int(getattr(image, "default_image", False))  # of a PNG: what is shown where nothing moves, no part of the video
        if image.n_frames - first != len(seconds):
            raise broken(name, len(data))
        kept = {}
        for index in sorted(set(shown)):
            image.seek(index + first)
            kept[index] = decode(image, name, MAX_FRAME, len(data))
    video = Video(tuple(kept[index] for index in shown), fps)
    check(video)
    return video


def gif_times(data: bytes) -> list[float]:
    """How long each frame is shown. A frame that reaches beyond the screen is refused: Pillow would make all that follow bigger."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at, delay, seconds = 13 + table_size(flags), 0, []
    while at < len(data) and data[at] != 0x3B:
        if data[at] == 0x21:
            if data[at + 1] == 0xF9:
                delay = struct.unpack_from("<H", data, at + 4)[0]
            at = behind_blocks(data, at + 2)
        elif data[at] == 0x2C:
            left, top, columns, rows, flags = struct.unpack_from("<HHHHB", data, at + 1)
            if left + columns > width or top + rows > height:
                asked = f"frame {len(seconds)} reaches to {left + columns}x{top + rows} of {width}x{height} pixels"
                raise InputError(f"{asked}, frames of one size are read; write the GIF anew")
            at = behind_blocks(data, at + 11 + table_size(flags))
            seconds.append(delay / 100)
            delay = 0
        else:
            at += 1  # rubbish between blocks, skipped as Pillow does
    return seconds


def table_size(flags: int) -> int:
    """Bytes of a GIF's table of colours."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def behind_blocks(data: bytes, at: int) -> int:
    """Behind blocks led by their length, the last one empty."""
    while data[at]:
        at += 1 + data[at]
    return at + 1


def webp_times(data: bytes) -> list[float]:
    at, seconds = 12, []
    while at + 8 <= len(data):
        if data[at : at + 4] == b"ANMF":
            seconds.append(int.from_bytes(data[at + 20 : at + 23], "little") / 1000)
        size = struct.unpack_from("<I", data, at + 4)[0]
        at += 8 + size + size % 2
    return seconds or [0.0]  # a still picture


def png_times(data: bytes) -> list[float]:
    at, seconds = 8, []
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"fcTL":
            over, under = struct.unpack_from(">HH", data, at + 28)
            seconds.append(over / (under or 100))
        at += 12 + size
    return seconds or [0.0]


TIMES = {GifImageFile: gif_times, WebPImageFile: webp_times, PngImageFile: png_times}


# --- MP4, MOV, WebM -------------------------------------------------------------------------------------------------------------------


def filmed(data: bytes, container: str, name: str, limits: Limits) -> Video:
    """A film that libav decodes."""
    if container == "mov":
        check_index(data, name)
    if is_cut(data, container):
        raise broken(name, len(data))
    with opened_film(data, container, name) as (file, stream):
        begins, seconds = film_times(file, stream, name, 2 * len(data), limits)
    check_length(name, seconds, limits)
    times, fps = beats(seconds, limits.frames)
    frames, last, kept = [], None, 0
    with opened_film(data, container, name) as (file, stream):
        for frame in shown_at((begins[0] + times).tolist(), decoded(file, stream, name, limits)):
            if frame is not last:
                kept += frame.width * frame.height
                limits.check_kept(name, kept)
                picture, last = frame.to_image(), frame
                turn = TURNS.get(frame.rotation % 360)
                picture = picture if turn is None else picture.transpose(turn)
            frames.append(picture)
    if not frames:
        raise broken(name, len(data))
    return Video(tuple(frames), fps)


@contextmanager
def opened_film(data: bytes, container: str, name: str) -> Iterator[tuple]:
    """libav's file and its stream of pictures. Only the one container and few decoders may look at the bytes, and none beyond them."""
    try:
        import av
    except ImportError:
        raise InputError(f"{name} is an MP4, MOV or WebM, which PyAV reads: pip install av") from None
    options = {"codec_whitelist": ",".join(CODECS), "max_pixels": str(MAX_FRAME), "threads": "1"}
    with av.open(io.BytesIO(data), format=container, options=options) as file:
        stream = file.streams.best("video")
        codec = stream and stream.codec_context and stream.codec_context.codec.name
        if codec not in CODECS:
            raise InputError(f"{name} holds {codec or 'nothing'} for pictures, read are {', '.join(CODECS[:6])}; convert it to H.264")
        check_size(name, stream.width, stream.height, MAX_FRAME)
        stream.codec_context.options = options
        yield file, stream


def film_times(file, stream, name: str, max_read: int, limits: Limits) -> tuple[list[float], list[float]]:
    """(when each frame begins, how long each is shown). Samples that overlap, or unpack, could be read for hours: `max_read` bytes end that."""
    lasts, read = {}, 0
    for packet in file.demux():
        read += packet.size
        if read > max_read:
            raise InputError(f"{name} holds samples of {read} bytes or more in {max_read // 2}; convert it anew")
        if packet.stream_index == stream.index and packet.pts is not None and not packet.is_discard:
            lasts[packet.pts] = packet.duration or 0
        if len(lasts) * SHORTEST > limits.seconds:
            raise InputError(f"{name} has {len(lasts)} frames or more in {limits.seconds:g} seconds; convert it to fewer a second")
    begins = [float(pts * stream.time_base) for pts in sorted(lasts)]
    seconds = [end - begin for begin, end in zip(begins, begins[1:], strict=False)]
    if lasts:
        final = float(lasts[max(lasts)] * stream.time_base)
        seconds.append(final if final >= SHORTEST else sum(seconds) / len(seconds) if seconds else UNTIMED)
    return begins, seconds


def decoded(file, stream, name: str, limits: Limits) -> Iterator:
    """The frames, all of one size. What is counted is what goes into the decoder: not every frame needs to come out."""
    size, pixels = None, 0
    for packet in file.demux(stream):
        for frame in packet.decode():
            size = size or (frame.width, frame.height)
            if size != (frame.width, frame.height):
                asked = f"{name} changes from {size[0]}x{size[1]} to {frame.width}x{frame.height} pixels"
                raise InputError(f"{asked}, frames of one size are read; cut it there")
            yield frame
        pixels += stream.codec_context.width * stream.codec_context.height
        limits.check_decoded(name, pixels)


def shown_at(times: list[float], frames: Iterable) -> Iterator:
    """The frame that is shown at each of the times: the last that began before; the first one where none did."""
    shown, due = None, 0
    for frame in frames:
        while shown is not None and due < len(times) and frame.time > times[due]:
            yield shown
            due += 1
        shown = frame
    if shown is not None:
        yield from [shown] * (len(times) - due)


def boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, begin, end) of an MP4's outermost boxes; the last may end beyond the file."""
    at = 0
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        size = struct.unpack_from(">Q", data, at + 8)[0] if size == 1 else size
        end = at + size if size >= 8 else len(data)  # 0: to the end of the file
        yield name, at, end
        at = end


def check_index(data: bytes, name: str) -> None:
    """libav makes room for as many samples as an MP4 says it has, gigabytes for a number of four bytes: it must not say too many.

    libav takes the boxes that say so from anywhere but the samples themselves, so they are looked for everywhere else.
    """
    stated = 0
    for outer, begin, end in boxes(data):
        for found in re.finditer(b"|".join(SAMPLE_COUNTS), b"" if outer == b"mdat" else data[begin:end]):
            at = begin + found.start() + SAMPLE_COUNTS[found[0]]
            stated += int.from_bytes(data[at : at + 4], "big")
    if stated > MAX_INDEX:
        raise InputError(f"{name} says that it holds {stated} samples, or hides it, at most {MAX_INDEX} are read; cut it or convert it anew")


def is_cut(data: bytes, container: str) -> bool:
    """Whether the last box of an MP4 or the segment of a WebM reaches beyond the end."""
    if container == "mov":
        return max((end for _, _, end in boxes(data)), default=0) > len(data)
    at = 4 + sum(sized_number(data, 4))  # behind the header
    width, size = sized_number(data, at + 4)
    return size != (1 << 7 * width) - 1 and at + 4 + width + size > len(data)  # all ones: a stream, whose length nobody knew


def sized_number(data: bytes, at: int) -> tuple[int, int]:
    """(bytes it takes, the number) as WebM writes lengths: zeros before the first 1 bit say how many bytes follow."""
    width = 9 - data[at].bit_length()
    return width, int.from_bytes(data[at : at + width], "big") & (1 << 7 * width) - 1


def write_mp4(frames: list[Image.Image], fps: float, content: io.BytesIO) -> None:
    try:
        import av
    except ImportError:
        raise InputError("MP4 is written by PyAV: pip install av, or save .webp") from None
    w, h = frames[0].size
    if w % 2 or h % 2:
        raise InputError(f"frames of {w}x{h} pixels, MP4 needs even numbers; cut a pixel off, or save .webp")
    with av.open(content, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = w, h, "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_image(frame)))
        file.mux(stream.encode())
