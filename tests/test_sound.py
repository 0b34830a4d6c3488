"""Sound files of every kind go in, samples or one InputError come out; a saved sound is complete or not there."""

import inspect
import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from mutants import alone, sound_file, stated

from mmgpt.data.sound import BLOCK, open_sound, save_sound
from mmgpt.errors import InputError
from mmgpt.types import Audio

WHOLE = torch.tensor([[-32768, -1, 0, 1, 2, 16384, 32767, 5], [3, 4, 5, 6, 7, 8, 9, -20000]]) / 32768  # exact in 16 bits
TAG = b"ID3\x04\0\0\0\0\x02\x00" + bytes(256)  # its length is written in 7 bits a byte
LOSSY = [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)]
KINDS = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), *LOSSY]


def tone(count: int = 16000, rate: int = 16000, channels: int = 1) -> np.ndarray:
    """A different note in each channel, (samples, channels)."""
    notes = 220 * (1 + np.arange(channels))
    return 0.5 * np.sin(2 * np.pi * notes * np.arange(count)[:, None] / rate)


def refused(source, **limits) -> str:
    with pytest.raises(InputError) as error:
        open_sound(source, **limits)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


def wav(*, kind: int = 1, channels: int = 1, rate: int = 16000, bits: int = 16, stated: int | None = None, content: bytes = bytes(2000)) -> bytes:
    """A WAV file whose header may say anything."""
    size = len(content) if stated is None else stated
    head = struct.pack("<HHIIHH", kind, channels, rate, rate * channels * bits // 8 % 2**32, channels * bits // 8 % 2**16, bits)
    return b"RIFF" + struct.pack("<I", 36 + len(content)) + b"WAVEfmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", size) + content


# --- what is read -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
def test_what_is_saved_without_loss_comes_back_exactly(tmp_path, suffix):
    path = save_sound(Audio(WHOLE, 22050), tmp_path / f"a{suffix}")
    sound = open_sound(path)
    assert torch.equal(sound.samples, WHOLE) and sound.rate == 22050 and sound.samples.dtype == torch.float32
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("suffix", [".ogg", ".mp3"])
def test_what_is_saved_with_loss_sounds_the_same(tmp_path, suffix):
    wave = torch.from_numpy(tone(channels=2).T).float()
    sound = open_sound(save_sound(Audio(wave, 16000), tmp_path / f"a{suffix}"))
    assert sound.samples.shape == wave.shape and sound.rate == 16000
    assert (sound.samples - wave)[:, 2000:-2000].square().mean() < 1e-3 * wave.square().mean()


def test_one_channel_without_a_dimension_of_its_own(tmp_path):
    path = save_sound(Audio(WHOLE[0], 8000), str(tmp_path / "a.wav"))
    assert isinstance(path, Path) and torch.equal(open_sound(path).samples, WHOLE[:1])


def test_path_name_and_bytes_are_the_same_sound(tmp_path):
    path = tmp_path / "named_wrongly.mp3"  # the content decides, not the name
    path.write_bytes(save_sound(Audio(WHOLE, 16000), tmp_path / "a.flac").read_bytes())
    for source in (path, str(path), path.read_bytes()):
        assert torch.equal(open_sound(source).samples, WHOLE)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_join_without_a_seam(kind):
    content = sound_file(tone(2 * BLOCK + 777, channels=2), 16000, *kind)
    whole = soundfile.read(io.BytesIO(content), dtype="float32")[0]
    assert whole.shape == (2 * BLOCK + 777, 2) and np.abs(open_sound(content).samples.numpy().T - whole).max() < 1e-6


def test_floating_point_is_read_as_it_is():
    values = np.array([[-1.5], [0.1], [1 / 3], [1e-20], [2.0]])
    for format, subtype in (("WAV", "FLOAT"), ("WAV", "DOUBLE"), ("WAVEX", "FLOAT")):
        assert torch.equal(open_sound(sound_file(values, 16000, format, subtype)).samples[0], torch.from_numpy(values[:, 0]).float())


@pytest.mark.parametrize("kind", KINDS)
def test_one_sample(kind):
    assert open_sound(sound_file(tone(1) + 0.25, 16000, *kind)).samples.shape == (1, 1)


@pytest.mark.parametrize("rate, channels", [(4000, 1), (192_000, 8), (11025, 3)])
def test_rates_and_channels_at_the_limits(tmp_path, rate, channels):
    wave = torch.from_numpy(tone(1000, rate, channels).T).float()
    for suffix in (".wav", ".flac", ".ogg"):
        sound = open_sound(save_sound(Audio(wave, rate), tmp_path / f"a{suffix}"))
        assert sound.samples.shape == (channels, 1000) and sound.rate == rate


def test_mp3_with_a_tag_before_it_and_one_behind():
    content = sound_file(tone(), 16000, "MP3")
    tagged = TAG + content + b"TAG" + bytes(125)
    assert torch.equal(open_sound(tagged).samples, open_sound(content).samples)
    assert "cut short" in refused(TAG + content[:-200])  # how long it is stands behind the tag


def test_mp3_that_states_no_length():
    """Of an even bit rate the length can be told by the first frame; else libsndfile would leave out much and say nothing."""
    still, loud = tone(50_000) * 1e-3, np.random.default_rng(0).normal(0, 0.2, (50_000, 1))
    even = sound_file(np.concatenate([still, loud]), 16000, "MP3", compression_level=0.5, bitrate_mode="CONSTANT")
    assert abs(open_sound(even[even.index(b"\xff\xf3", 4) :]).samples.shape[1] - 100_000) < 3 * 1152
    uneven = sound_file(np.concatenate([still, loud]), 16000, "MP3", compression_level=0.2, bitrate_mode="VARIABLE")
    assert open_sound(uneven).samples.shape == (1, 100_000)
    assert "states no length" in refused(uneven[uneven.index(b"\xff\xf3", 4) :])


def test_streams_that_could_not_know_their_length():
    assert open_sound(wav(stated=2**32 - 1)).samples.shape == (1, 1000)
    content = sound_file(tone(BLOCK + 5), 16000, "FLAC")
    assert torch.equal(open_sound(stated(content, 0)).samples, open_sound(content).samples)


# --- what is refused ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_is_never_read(kind):
    content = sound_file(tone(4000), 16000, *kind)
    assert open_sound(content).samples.shape == (1, 4000)
    for end in [*range(0, len(content), 1 + len(content) // 200), len(content) - 1]:
        refused(content[:end])


def test_ogg_without_its_last_page_is_cut():
    content = sound_file(tone(100_000), 16000, "OGG")
    assert "cut short" in refused(content[: content.rindex(b"OggS")])


def test_headers_that_lie():
    flac = sound_file(tone(), 16000, "FLAC")
    assert "broken or cut short, 16000 samples are left of 17000" in refused(stated(flac, 17000))
    assert "68719476735 samples" in refused(stated(flac, 2**36 - 1))
    assert torch.equal(open_sound(stated(flac, 4096)).samples, open_sound(flac).samples[:, :4096])  # what says less is believed
    assert "(2044 bytes) is broken or cut short" in refused(wav(stated=2001))
    refused(wav(stated=2**32 - 2))
    refused(wav(rate=0))
    assert "at 3999 Hz; read are 1 to 8 channels at 4000 to 192000 Hz" in refused(wav(rate=3999))
    assert "at 192001 Hz" in refused(wav(rate=192_001))
    refused(wav(rate=2**32 - 1))
    refused(wav(channels=0))
    assert "9 channels" in refused(wav(channels=9, content=bytes(1800)))
    refused(wav(channels=65_535))
    refused(wav(bits=65_535))
    refused(wav(kind=65_535))


def test_no_samples():
    assert "holds 0 samples" in refused(wav(content=b""))
    assert "holds 0 samples" in refused(sound_file(tone(0), 16000, "OGG"))


def test_samples_that_are_no_numbers():
    values = tone(100)
    values[7], values[9] = np.nan, -np.inf
    assert "2 of 100 samples of the sound are NaN or infinite" in refused(sound_file(values, 16000, "WAV", "FLOAT"))
    assert "1 of 100" in refused(sound_file(np.where(np.arange(100)[:, None] == 5, 1e300, 0.0), 16000, "WAV", "DOUBLE"))  # too big for float32


def test_limits_are_the_callers():
    content = sound_file(tone(2 * BLOCK, channels=2), 16000, "FLAC")
    seconds = 2 * BLOCK / 16000
    limits = {"max_seconds": seconds, "max_samples": 4 * BLOCK, "max_bytes": len(content)}
    for source in (content, stated(content, 0)):
        assert open_sound(source, **limits).samples.shape == (2, 2 * BLOCK)
        assert "raise max_seconds" in refused(source, max_seconds=seconds - 0.001)
        assert f"{4 * BLOCK - 1} samples of all channels" in refused(source, max_samples=4 * BLOCK - 1)
        assert f"at most {len(content) - 1} are read" in refused(source, max_bytes=len(content) - 1)


def test_other_formats():
    others = [sound_file(tone(1000), 16000, format) for format in ("AIFF", "AU", "CAF", "W64", "VOC")]
    for content in [*others, b"", b"\0", b"RIFF", b"RIFF....WEBP", b"\xff\xd8\xff", b"\x89PNG", b"plain text", b"\xff"]:
        assert "WAV, FLAC, MP3 and OGG" in refused(content) and f"({len(content)} bytes)" in refused(content)
    for content in (b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"RIFF....WAVE", b"OggS" + bytes(50)):
        refused(content)
    assert "holds AIFF, read are WAV, FLAC, MP3 and OGG" in refused(TAG + others[0])  # which libsndfile finds behind a tag


def test_missing_folder_device_and_other_types(tmp_path):
    for path, reason in ((tmp_path / "no.wav", "does not exist"), (tmp_path, "folder"), ("/dev/zero", "regular"), ("a\0b", "path")):
        assert reason in refused(path)
    for value in (None, 3, bytearray(b"RIFF")):
        with pytest.raises(InputError, match=f"a sound cannot be a {type(value).__name__}"):
            inspect.unwrap(open_sound)(value)  # past the type checks of the tests, which users do not have


# --- what is written ------------------------------------------------------------------------------------------------------------------


def test_too_loud_is_clipped(tmp_path):
    sound = open_sound(save_sound(Audio(torch.tensor([-7.0, -1.0, 0.5, 1.0, 7.0]), 16000), tmp_path / "a.wav"))
    assert sound.samples.tolist() == [[-1.0, -1.0, 0.5, 32767 / 32768, 32767 / 32768]]


@pytest.mark.parametrize(
    "samples, rate, said",
    [
        (torch.tensor([0.0, torch.nan, torch.inf]), 16000, "2 of 3 samples are NaN or infinite"),
        (torch.zeros(2, 0), 16000, "0 samples"),
        (torch.zeros(9, 5), 16000, "9 channels"),
        (torch.zeros(5), 100, "a rate of 100 Hz"),
    ],
)
def test_sounds_that_cannot_be_saved(tmp_path, samples, rate, said):
    for suffix in (".wav", ".ogg", ".mp3"):
        with pytest.raises(InputError, match=said):
            save_sound(Audio(samples, rate), tmp_path / f"a{suffix}")
    assert not list(tmp_path.iterdir())


def test_mp3_takes_few_rates_and_channels(tmp_path):
    for channels, rate in ((1, 4000), (1, 12345), (3, 16000)):
        with pytest.raises(InputError, match=f"{channels} channels at {rate} Hz cannot be written as .mp3; .* save as .flac"):
            save_sound(Audio(torch.zeros(channels, 100), rate), tmp_path / "a.mp3")
    assert not list(tmp_path.iterdir())


def test_unknown_suffix_lists_the_known(tmp_path):
    for name in ("a.aiff", "a", "a.exe"):
        with pytest.raises(InputError, match=r"known are \.wav, \.flac, \.ogg, \.mp3"):
            save_sound(Audio(WHOLE, 16000), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = save_sound(Audio(WHOLE, 16000), tmp_path / "a.wav")
    old = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(InputError, match="No space left"):
        save_sound(Audio(WHOLE / 2, 16000), path)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_saving_where_it_is_impossible(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    for path in (tmp_path / "no" / "a.wav", tmp_path / "folder.wav", tmp_path / "a\0b.wav", tmp_path / ("x" * 300 + ".wav")):
        with pytest.raises(InputError, match="cannot be written"):
            save_sound(Audio(WHOLE, 16000), path)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.wav"]


# --- files that are damaged or huge, in a process of their own ------------------------------------------------------------------------


def check(came: dict) -> None:
    assert came["read"] > 0.2 * (came["read"] + came["refused"]) and came["refused"] > came["read"] / 2, came
    assert came["slowest"] < 5 and came["megabytes"] < 100, came


def test_some_hundred_mutants_and_an_hour_of_silence():
    came = alone("sound", 360)
    check(came)
    assert came["bytes"] < 200_000  # FLAC needs next to nothing for silence
    (hour, grown), (stream, streamed), (saved, _) = came["hour"], came["stream"], came["saved"]
    assert "57600000 samples of 1 channels, 3600.00 seconds" in hour and grown < 5, came
    assert "raise max_seconds" in stream and streamed < 60, came  # 600 seconds are 38 MB
    assert saved == "3000000"  # libsndfile crashes at that if it is written at once


@pytest.mark.long
def test_ten_thousand_mutants():
    came = alone("sound", 10_000)
    print(came)
    check(came)
