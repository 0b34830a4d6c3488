"""A sound file or its bytes -> Audio; Audio -> a sound file.

Read are WAV, FLAC, MP3 and OGG (Vorbis, Opus), told apart by their first bytes, never by their names, decoded by libsndfile
block by block. What a header says is held against the limits before a sample is decoded, and never believed beyond them.
"""

import io
import struct
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from mmgpt.data.pictures import broken, read_bytes, write_whole
from mmgpt.encoders.audio import CHANNELS, RATES, check
from mmgpt.errors import InputError
from mmgpt.types import Audio

MAX_BYTES = 25 * 2**20
MAX_SECONDS = 600.0
MAX_SAMPLES = 60_000_000  # of all channels, 240 MB: 600 seconds of stereo at 48 kHz are 57.6 million
BLOCK = 65_536  # samples decoded at once; libsndfile crashes where it has to write some million at once as OGG
FORMATS = {"WAV", "WAVEX", "FLAC", "OGG", "MP3"}  # libsndfile's names of what may lie behind the first bytes that `check_kind` lets through
UNKNOWN = 2**63 - 1  # libsndfile's length of a FLAC stream that does not state its own
SAVED_AS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS"), ".mp3": ("MP3", "MPEG_LAYER_III")}


def open_sound(source: str | Path | bytes, *, max_seconds: float = MAX_SECONDS, max_bytes: int = MAX_BYTES, max_samples: int = MAX_SAMPLES) -> Audio:
    """The sound as stored, float32 in [-1, 1], (channels, samples): of 1 to 8 channels at 4,000 to 192,000 Hz.

    Whole numbers of 8 to 32 bits and floating point are read of WAV. `max_seconds` and `max_samples` (of all channels) are counted
    while decoding. A header that states more than the file holds is refused as cut short, one that states less is believed, except of
    an MP3 of which much would be left over. Anything that cannot be read, or is bigger than the limits, raises `InputError`.
    """
    import soundfile

    name, data = given(source, "sound", max_bytes)
    check_kind(data, name)
    if is_cut(data):
        raise broken(name, len(data))
    try:
        stored = io.BytesIO(data)
        with soundfile.SoundFile(stored) as file:
            exact = file.format != "MP3" or states_length(data)
            values = decode(file, name, max_seconds, max_samples, exact)
            if not exact and stored.tell() < 0.9 * len(data):
                asked = f"{name} states no length, and the one guessed by its first bit rate ends at byte {stored.tell()} of {len(data)}"
                raise InputError(f"{asked}; convert it to WAV or FLAC")
            return Audio(torch.from_numpy(values), file.samplerate)
    except InputError:
        raise
    except Exception as error:  # libsndfile's own, and what a mutant makes its Python side raise
        raise broken(name, len(data)) from error


def save_sound(audio: Audio, path: str | Path) -> Path:
    """Write `audio` in the format of the suffix, complete or not at all; returns the path. Samples are clipped to [-1, 1].

    WAV and FLAC hold 16 bits, OGG (Vorbis) and MP3 lose more; MP3 takes 2 channels and 9 rates from 8,000 to 48,000 Hz.
    """
    import soundfile

    path = Path(path)
    kind = suffix_of(path, SAVED_AS)
    check(audio, float("inf"))
    values = torch.atleast_2d(audio.samples.detach().cpu().float())
    bad = int((~values.isfinite()).sum())
    if bad:
        raise InputError(f"{bad} of {values.numel()} samples are NaN or infinite: repair the sound, samples lie in [-1, 1]")
    whole = (values * 2**15).round().clamp(-(2**15), 2**15 - 1).to(torch.int32).T.contiguous().numpy() << 16  # given 16 bits, MP3 is noise in stereo
    content = io.BytesIO()
    try:
        with soundfile.SoundFile(content, "w", int(audio.rate), len(values), format=kind[0], subtype=kind[1]) as file:
            for start in range(0, len(whole), BLOCK):
                file.write(whole[start : start + BLOCK])
    except soundfile.LibsndfileError as error:
        asked = f"{len(values)} channels at {audio.rate} Hz cannot be written as {path.suffix}"
        raise InputError(f"{asked}; resample and mix, such as 1 channel at 16000 Hz, or save as .flac") from error
    return write_whole(content.getvalue(), path)


def decode(file, name: str, max_seconds: float, max_samples: int, exact: bool) -> Float[np.ndarray, "C N"]:
    """All samples of a `SoundFile`, when it is of a kind and size that is read. A length that is not `exact` may be 10% too long."""
    channels, rate, stated = file.channels, file.samplerate, file.frames
    if file.format not in FORMATS:
        raise InputError(f"{name} holds {file.format}, read are WAV, FLAC, MP3 and OGG; convert it to WAV")
    if not 1 <= channels <= CHANNELS or not RATES[0] <= rate <= RATES[1]:
        asked = f"{name} has {channels} channels at {rate} Hz"
        raise InputError(f"{asked}; read are 1 to {CHANNELS} channels at {RATES[0]} to {RATES[1]} Hz, mix or resample it")
    if not stated:
        raise InputError(f"{name} holds 0 samples, at least 1 is needed; check how it was made")
    limit = int(min(max_seconds * rate, max_samples // channels))
    asked = f"at most {max_seconds:g} seconds and {max_samples} samples of all channels are read; cut it, or raise max_seconds or max_samples"
    if limit < stated < UNKNOWN:
        raise InputError(f"{name} has {stated} samples of {channels} channels, {stated / rate:.2f} seconds, {asked}")

    values = np.empty((channels, min(stated, limit)), np.float32)  # costs memory only where it is filled
    count = bad = 0
    file.seekable = lambda: False  # else each block is followed by a seek to where it ends, which fails at the end of a FLAC of unknown length
    while len(block := file.read(BLOCK, "float32", always_2d=True)):
        if count + len(block) > limit:
            raise InputError(f"{name} has {count + len(block)} samples of {channels} channels or more, {asked}")
        values[:, count : count + len(block)] = block.T
        count, bad = count + len(block), bad + int((~np.isfinite(block)).sum())
    if bad:
        raise InputError(f"{bad} of {count * channels} samples of {name} are NaN or infinite; repair the recording")
    if not count or count < (stated if exact else 0.9 * stated) and stated < UNKNOWN:
        raise InputError(f"{name} is broken or cut short, {count} samples are left of {stated}; save or download it again")
    return values if count == values.shape[1] else values[:, :count].copy()


def check_kind(data: bytes, name: str) -> None:
    """Refuses all but the first bytes of WAV, FLAC, OGG and MP3, which begins with a tag or a frame of layer III."""
    frame = data[:1] == b"\xff" and len(data) > 1 and data[1] & 0xE6 == 0xE2
    if not (frame or data.startswith((b"fLaC", b"OggS", b"ID3")) or (data[:4] == b"RIFF" and data[8:12] == b"WAVE")):
        raise InputError(f"{name} ({len(data)} bytes) is in none of the 4 formats WAV, FLAC, MP3 and OGG; convert it to WAV")


def is_cut(data: bytes) -> bool:
    """Whether the end is missing where libsndfile would say nothing: WAV that stops before its samples do, OGG without a last page.

    A stream of WAV, whose writer could not know the length, states 2^32 - 1 bytes and goes on to the end.
    """
    if data[:4] == b"OggS":
        at = data.rfind(b"OggS")  # a page: 5 bytes, flags (4: the last one), 20 bytes, the number of lengths, the lengths, the content
        lengths = data[at + 27 : at + 27 + data[at + 26]] if len(data) > at + 26 else b""
        return not lengths or not data[at + 5] & 4 or at + 27 + len(lengths) + sum(lengths) > len(data)
    at = 12 if data[:4] == b"RIFF" else len(data)
    while at + 8 <= len(data):
        size = struct.unpack_from("<I", data, at + 4)[0]
        if data[at : at + 4] == b"data":
            return at + 8 + size > len(data) and size != 2**32 - 1
        at += 8 + size + size % 2
    return False


def states_length(data: bytes) -> bool:
    """Whether an MP3 says in its first frame how long it is. Otherwise libsndfile takes all its frames to be as long as the first."""
    at = 10 + sum((byte & 127) << 7 * place for place, byte in enumerate(data[9:5:-1])) if data[:3] == b"ID3" else 0  # behind the tag
    return any(mark in data[at : at + 64] for mark in (b"Xing", b"Info", b"VBRI"))


def given(source: object, noun: str, max_bytes: int) -> tuple[str, bytes]:
    """(a name for errors, the bytes) of a path or of bytes."""
    if not isinstance(source, (str, Path, bytes)):
        raise InputError(f"a {noun} cannot be a {type(source).__name__}; give a path or bytes")
    name = f"the {noun}" if isinstance(source, bytes) else repr(str(source))[:300]
    data = source if isinstance(source, bytes) else read_bytes(source, name, max_bytes)
    if len(data) > max_bytes:
        raise InputError(f"{name} has {len(data)} bytes or more, at most {max_bytes} are read; cut it or raise max_bytes")
    return name, data


def suffix_of(path: Path, known: dict):
    """The entry of the path's suffix."""
    if path.suffix.lower() not in known:
        raise InputError(f"{str(path)!r} has the unknown suffix {path.suffix!r}; known are {', '.join(known)}")
    return known[path.suffix.lower()]
