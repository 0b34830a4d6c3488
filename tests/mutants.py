"""Damaged and huge files of sound and video, opened in a process of their own: what breaks a C library would end pytest.

`python tests/mutants.py sound 300` prints the number of each mutant before it is opened and, last, what came of all as JSON.
"""

import faulthandler
import io
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

SLOWEST = 30.0  # seconds until a mutant counts as a hang


def sound_file(samples_NC: np.ndarray, rate: int, format: str, subtype: str | None = None, **options) -> bytes:
    """A sound as libsndfile writes it."""
    import soundfile

    content = io.BytesIO()
    with soundfile.SoundFile(content, "w", rate, samples_NC.shape[1], subtype, format=format, **options) as file:
        for start in range(0, len(samples_NC), 4096):
            file.write(samples_NC[start : start + 4096])
    return content.getvalue()


def animation(frames: list[Image.Image], format: str, milliseconds=100, **options) -> bytes:
    content = io.BytesIO()
    frames[0].save(content, format, save_all=True, append_images=frames[1:], duration=milliseconds, **options)
    return content.getvalue()


def movie(frames: list[Image.Image], format: str = "mp4", codec: str = "libx264", fps: int = 30, **options) -> bytes:
    import av

    content = io.BytesIO()
    with av.open(content, "w", format=format, options=options) as file:
        stream = file.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_image(frame)))
        file.mux(stream.encode())
    return content.getvalue()


def noise(count: int, mode: str = "RGB") -> list[Image.Image]:
    dice = np.random.default_rng(7)
    return [Image.fromarray(dice.integers(0, 255, (48, 64, len(mode)), np.uint8)) for _ in range(count)]


def sounds() -> list[bytes]:
    tone = np.sin(np.arange(4000) * 0.3)[:, None] * 0.4 + np.random.default_rng(7).normal(0, 0.05, (4000, 2))
    kinds = [
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("WAVEX", "PCM_24"),
        ("WAV", "MS_ADPCM"),
        ("WAV", "IMA_ADPCM"),
        ("FLAC", "PCM_16"),
        ("FLAC", "PCM_24"),
    ]
    files = [sound_file(tone, 16000, *kind) for kind in [*kinds, ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)]]
    changing = sound_file(tone, 16000, "MP3", compression_level=0.5, bitrate_mode="VARIABLE")
    steady = sound_file(tone, 16000, "MP3", compression_level=0.5, bitrate_mode="CONSTANT")
    return [*files, changing, steady[steady.index(b"\xff\xf3", 4) :]]


def animations() -> list[bytes]:
    rgb, clear, uneven = noise(6), noise(6, "RGBA"), [50, 70, 100, 0, 10, 100]
    plain = [animation(rgb, format) for format in ("GIF", "WEBP", "PNG")]
    lossless = animation(clear, "WEBP", [time or 10 for time in uneven], lossless=True)
    apart = animation(clear, "PNG", [time or 10 for time in uneven], disposal=1, blend=1, default_image=True)
    return [*plain, animation(clear, "GIF", uneven, disposal=2), lossless, apart]


def movies() -> list[bytes]:
    if not find_spec("av"):
        return []
    pieces = movie(noise(6), movflags="frag_keyframe+empty_moov")
    return [pieces, *(movie(noise(6), *kind) for kind in (("mp4",), ("mov", "mpeg4"), ("webm", "libvpx-vp9"), ("webm", "libvpx")))]


def damaged(content: bytes, dice: random.Random) -> bytes:
    """Bytes changed, cut out or doubled, or the end lost: anywhere, near the begin or near the end, where headers are."""
    data = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 8))):
        near = min(len(data), dice.choice((120, 1200)))
        at = dice.choice((dice.randrange(len(data)), dice.randrange(near), len(data) - 1 - dice.randrange(near)))
        kind = dice.random()
        if kind < 0.6:
            data[at] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
        elif kind < 0.7:
            data[at : at + 4] = dice.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\x40\0\0", b"\0\0\x40\0"))
        elif kind < 0.8:
            del data[at : at + dice.randrange(1, 9)]
        elif kind < 0.9:
            data[at:at] = data[at : at + 8]
        else:
            del data[max(at, 12) :]
    return bytes(data)


def check_sound(sound) -> None:
    channels, count = sound.samples.shape
    assert sound.samples.isfinite().all() and 1 <= channels <= 8 and count * channels <= 60_000_000 and 4000 <= sound.rate <= 192_000


def check_video(video) -> None:
    assert 1 <= len(video.frames) <= 64 and 0 < video.fps < 1000.001 and len(video.frames) / video.fps <= 60.001
    assert {(frame.mode, frame.size) for frame in video.frames} == {("RGB", video.frames[0].size)}


def mutants(files: list[bytes], open_file, check, count: int) -> dict:
    """How many of `count` mutants were read and refused, the slowest, the memory they took beyond what the whole files did."""
    from mmgpt.errors import InputError

    for content in files:
        check(open_file(content))  # undamaged they are read
    came, slowest, before = Counter(read=0, refused=0), 0.0, megabytes()
    for number in range(count):
        content = damaged(files[number % len(files)], random.Random(number))
        print(number, flush=True)
        faulthandler.dump_traceback_later(SLOWEST, exit=True)
        begin = time.monotonic()
        try:
            check(open_file(content))
            came["read"] += 1
        except InputError as error:
            assert "\n" not in str(error) and " at 0x" not in str(error) and len(str(error)) < 500, str(error)
            came["refused"] += 1
        slowest = max(slowest, time.monotonic() - begin)
    faulthandler.cancel_dump_traceback_later()
    return {**came, "slowest": round(slowest, 3), "megabytes": megabytes() - before}


def taken(call, *words) -> tuple[str, int]:
    """(what a call returns or refuses, in words; how many megabytes the process grew beyond its peak)."""
    from mmgpt.errors import InputError

    before = megabytes()
    try:
        said = str(call(*words))
    except InputError as error:
        said = str(error)
    return said, megabytes() - before


def huge_sounds(open_sound, save_sound, folder: str) -> dict:
    """An hour of silence, with and without a length in its header, and a save of three million samples at once."""
    import torch

    from mmgpt.types import Audio

    hour = sound_file(np.broadcast_to(0.0, (3600 * 16000, 1)), 16000, "FLAC")
    long = Audio(torch.zeros(3_000_000), 48000)
    return {
        "bytes": len(hour),
        "hour": taken(open_sound, hour),
        "stream": taken(open_sound, stated(hour, 0)),
        "saved": taken(lambda: open_sound(save_sound(long, f"{folder}/a.ogg")).samples.shape[1]),
    }


def repeated(gif: bytes, times: int) -> bytes:
    """The same GIF with all its frames so many times."""
    head = 13 + (3 << (gif[10] & 7) + 1)  # the screen and its table of colours
    return gif[:head] + gif[head:-1] * times + gif[-1:]


def stated(flac: bytes, count: int) -> bytes:
    """The same FLAC, whose header says that it holds `count` samples; 0: not known."""
    return flac[:21] + bytes([flac[21] & 0xF0 | count >> 32]) + (count & 2**32 - 1).to_bytes(4, "big") + flac[26:]


def huge_videos(open_video) -> dict:
    """A GIF of 4,000 frames, and MP4s of some hundred bytes that say they hold 100 million samples."""
    gif = repeated(animation([Image.new("L", (128, 96), k) for k in range(250)], "GIF", 10), 16)
    found = {"gif": taken(lambda: [frame.getpixel((0, 0))[0] for frame in open_video(gif).frames])}
    if find_spec("av"):
        whole, pieces = movie(noise(2)), movie(noise(2), movflags="frag_keyframe+empty_moov")
        many = (100_000_000).to_bytes(4, "big")
        at, piece = whole.index(b"stsz"), pieces.index(b"trun")
        table = whole[: at + 8] + b"\0\0\0\1" + many + whole[at + 16 :]  # each of 1 byte, all in one chunk
        at = table.index(b"stsc")
        found["stsz"] = taken(open_video, table[: at + 16] + many + table[at + 20 :])
        found["trun"] = taken(open_video, pieces[: piece + 4] + bytes(4) + many + pieces[piece + 12 :])  # all as the header says, none listed
    return found


def opened(kind: str, count: int) -> dict:
    from mmgpt.data.moving import open_video
    from mmgpt.data.sound import open_sound, save_sound

    with tempfile.TemporaryDirectory() as folder:
        if kind == "sound":
            return mutants(sounds(), open_sound, check_sound, count) | huge_sounds(open_sound, save_sound, folder)
        files = {"animation": animations, "movie": movies, "video": lambda: animations() + movies()}[kind]()
        return mutants(files, open_video, check_video, count) | huge_videos(open_video)


def megabytes() -> int:
    """The most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def alone(kind: str, count: int) -> dict:
    """What `opened` says in a process of its own."""
    run = subprocess.run([sys.executable, __file__, kind, str(count)], capture_output=True, text=True)
    assert run.returncode == 0, f"{kind}: exit {run.returncode} at {run.stdout[-200:]!r}\n{run.stderr[-2000:]}"
    return json.loads(run.stdout.splitlines()[-1])


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("error")
    sys.path.insert(0, str(Path(__file__).parents[1]))
    print(json.dumps(opened(sys.argv[1], int(sys.argv[2]))))
