"""Encoders: raw value -> one vector a stretch of it; a ragged batch gives each segment the vectors it has alone."""

import math

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from tiny import gap, picture, text_codec

from mmgpt.decoders.transformer import DecoderConfig
from mmgpt.encoders import audio
from mmgpt.encoders.audio import FRAME, RATE, FrameEncoder, MelEncoder
from mmgpt.encoders.codes import Table
from mmgpt.encoders.image import ConvEncoder, PatchEncoder, pixels_of
from mmgpt.encoders.video import VideoEncoder, evenly
from mmgpt.errors import InputError
from mmgpt.layout import TextLayout, VectorsLayout
from mmgpt.model import GPT, Port
from mmgpt.pack import pack
from mmgpt.script import Span
from mmgpt.types import Audio, Part, Video, join

WIDTH = 32


def unchecked(kind: type, **fields):
    """A value as a careless caller builds it: nothing looks at its fields."""
    value = object.__new__(kind)
    for name, field in fields.items():
        object.__setattr__(value, name, field)
    return value


def noise(samples: int, rate: int = RATE, channels: int = 1, seed: int = 0) -> Audio:
    return Audio(torch.rand(channels, samples, generator=torch.Generator().manual_seed(seed)) - 0.5, rate)


def tone(hertz: float, seconds: float, rate: int = RATE) -> Audio:
    return Audio(0.5 * torch.sin(2 * math.pi * hertz * torch.arange(round(seconds * rate)) / rate)[None], rate)


def oblong(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def clip(frames: int, width: int = 8, height: int = 8, seed: int = 0) -> Video:
    return Video(tuple(oblong(width, height, seed + i) for i in range(frames)), 5.0)


def stirred(module):
    """Weights that begin at zero are moved, so that what they do is seen."""
    for p in module.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    return module


PICTURES = [oblong(8, 8), oblong(20, 4, 1), oblong(5, 33, 2), oblong(1, 1, 3)]
SOUNDS = [noise(2000), noise(1, seed=1), noise(700, 8000, 2, seed=2), noise(3000, 44_100, seed=3)]
CLIPS = [clip(3), clip(1, 16, 4, 10), clip(7, 4, 12, 20)]
CASES = {
    "patches": (lambda: PatchEncoder(WIDTH, 4, 12), PICTURES),
    "patches-hidden": (lambda: PatchEncoder(WIDTH, 4, hidden=16, square=8), PICTURES),
    "frames": (lambda: FrameEncoder(WIDTH), SOUNDS),
    "mel": (lambda: MelEncoder(WIDTH, mels=16), SOUNDS),
    "mel-blocks": (lambda: stirred(MelEncoder(WIDTH, mels=16, blocks=2)), SOUNDS),
    "video": (lambda: VideoEncoder(PatchEncoder(WIDTH, 4, 12), 5), CLIPS),
}


@pytest.fixture(params=CASES)
def case(request):
    make, values = CASES[request.param]
    torch.manual_seed(0)
    return make(), values


# Every encoder


def test_the_grid_counts_the_vectors_and_places_fill_it(case):
    encoder, values = case
    for value in values:
        prepared = encoder.prepare(value)
        cells = torch.cartesian_prod(*(torch.arange(n) for n in prepared.grid))
        assert torch.equal(prepared.place_N3, cells) and len(prepared) == math.prod(prepared.grid)
        assert encoder(prepared).shape == (len(prepared), WIDTH)


@torch.no_grad()
def test_batched_is_alone(case):
    encoder, values = case
    prepared = [encoder.prepare(value) for value in values]
    together = encoder(join(prepared)).split([len(p) for p in prepared])
    for one, vectors_ND in zip(prepared, together, strict=True):
        assert gap(vectors_ND, encoder(one)) < 1e-6
    assert gap(together[0][:1], together[1][:1]) > 1e-3  # different segments have different vectors


def test_gradient_reaches_every_parameter(case):
    encoder, values = case
    encoder(join([encoder.prepare(value) for value in values])).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


# Text and codes: ids are rows of the one table


def test_text_becomes_ids_and_again_text():
    codec = text_codec()
    for words in ("a red apple", "naïve 苹果 🍎", "<|end|> [BOI] </s>"):
        ids = codec.encode(words)
        assert ids.max() < codec.num_codes and codec.decode(ids) == words
    assert len(codec.encode("")) == 0


def test_an_id_has_the_same_vector_in_every_batch():
    table = Table(30, WIDTH)
    ids = torch.tensor([[3, 7, 29], [7, 0, 3]])
    assert torch.equal(table(ids)[0, 1], table(torch.tensor([7]))[0]) and torch.equal(table(ids)[1, 2], table.weight[3])
    table(ids).sum().backward()
    assert (table.weight.grad.abs().sum(1) > 0).nonzero().flatten().tolist() == [0, 3, 7, 29]


# Pictures


@pytest.mark.parametrize("size", [(4, 4), (1, 1), (1000, 3), (3, 1000), (31, 17), (64, 64)])
def test_any_size_and_aspect_ratio_fits_the_limit(size):
    prepared = PatchEncoder(WIDTH, 4, 12).prepare(oblong(*size))
    _, rows, columns = prepared.grid
    assert 1 <= len(prepared) <= 12 and (columns > rows) == (size[0] > size[1])


def test_patches_put_back_in_place_are_the_picture():
    image = oblong(12, 8)
    prepared = PatchEncoder(WIDTH, 4).prepare(image)
    pixels = rearrange(prepared.values_NF, "(h w) (p q c) -> c (h p) (w q)", h=2, p=4, q=4)
    assert torch.equal(pixels, pixels_of(image)) and prepared.place_N3[4].tolist() == [0, 1, 1]


# Sound


def test_samples_are_cut_into_frames_and_the_last_is_filled_with_silence():
    sound = noise(1000)
    prepared = FrameEncoder(WIDTH).prepare(sound)
    assert prepared.grid == (2, 1, 1)
    assert torch.equal(prepared.values_NF.flatten()[:1000], sound.samples[0]) and not prepared.values_NF.flatten()[1000:].any()


@pytest.mark.parametrize("kind", [FrameEncoder, MelEncoder])
def test_a_vector_for_each_begun_frame_at_any_rate(kind):
    encoder = kind(WIDTH)
    for rate in (4_000, 8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 192_000):
        for seconds in (0.04, 0.1):  # the second is two and a half frames
            assert len(encoder.prepare(tone(440, seconds, rate))) == math.ceil(seconds / 0.04), rate
    assert [len(encoder.prepare(noise(n))) for n in (1, FRAME, FRAME + 1)] == [1, 1, 2]


def test_channels_are_mixed_and_mono_may_be_flat():
    encoder, sound = FrameEncoder(WIDTH), noise(900, channels=2)
    mixed = encoder.prepare(Audio(sound.samples.mean(0, keepdim=True), RATE)).values_NF
    assert torch.equal(encoder.prepare(sound).values_NF, mixed)
    assert torch.equal(encoder.prepare(unchecked(Audio, samples=sound.samples.mean(0), rate=RATE)).values_NF, mixed)


def test_a_tone_is_the_same_tone_at_another_rate():
    there, here = (FrameEncoder(WIDTH).prepare(tone(500, 0.2, rate)).values_NF.flatten() for rate in (44_100, RATE))
    assert gap(there[300:-300], here[300:-300]) < 0.01


def test_resampling_filters_stay_small(monkeypatch):
    """A filter has rate x 16,000 / gcd² numbers: at 44,101 Hz as it stands 700 million."""
    asked = []
    monkeypatch.setattr("torchaudio.functional.resample", lambda sound_N, rate, new: asked.append(rate) or sound_N)
    for rate in (4_001, 44_101, 191_999):
        FrameEncoder(WIDTH).prepare(noise(1, rate))
        assert math.gcd(asked[-1], RATE) >= 25 and abs(asked[-1] / rate - 1) < 0.004


def test_a_tone_stands_in_its_mel_band():
    encoder = MelEncoder(WIDTH, mels=40)
    prepared = [encoder.prepare(tone(hertz, 0.2)).values_NF for hertz in (300, 1000, 4000)]
    loudest = [int(rearrange(values_NF, "n (m k) -> n m k", m=40)[2].mean(-1).argmax()) for values_NF in prepared]
    assert loudest == sorted(set(loudest))
    centre = encoder.spectrogram.mel_scale.fb.argmax(0)[loudest[1]] * RATE / encoder.WINDOW
    assert abs(float(centre) - 1000) <= 80


@torch.no_grad()
def test_a_mel_vector_reads_its_own_window_and_nothing_else():
    encoder, sound = MelEncoder(WIDTH, mels=16), noise(5 * FRAME)  # vector n reads samples 640 n - 360 to 640 n + 1000
    before = encoder(encoder.prepare(sound))
    for at, changed in ((1, [0]), (2190, [2, 3]), (2240, [2, 3, 4]), (2290, [3, 4])):
        samples = sound.samples.clone()
        samples[0, at] += 2
        difference_N = (encoder(encoder.prepare(Audio(samples, RATE))) - before).abs().amax(1)
        assert difference_N.nonzero().flatten().tolist() == changed


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 2])
def test_a_block_reads_three_vectors_on_either_side(blocks):
    encoder, sound = stirred(MelEncoder(WIDTH, mels=16, blocks=blocks)), noise(20 * FRAME)
    samples = sound.samples.clone()
    samples[0, 10 * FRAME + 320] += 2  # in the windows of vectors 9, 10 and 11
    changed_N = (encoder(encoder.prepare(Audio(samples, RATE))) - encoder(encoder.prepare(sound))).abs().amax(1) > 0
    assert changed_N.nonzero().flatten().tolist() == list(range(9 - 3 * blocks, 12 + 3 * blocks))


def test_loudness_is_kept_and_silence_is_finite():
    for encoder in (FrameEncoder(WIDTH), MelEncoder(WIDTH)):
        silence, sound = Audio(torch.zeros(1, 1000), RATE), noise(1000)
        assert encoder.prepare(silence).values_NF.isfinite().all()
        assert gap(encoder.prepare(sound).values_NF, encoder.prepare(Audio(sound.samples / 4, RATE)).values_NF) > 0.1


# Video


@torch.no_grad()
def test_a_frame_is_its_picture_and_its_time():
    image = PatchEncoder(WIDTH, 4, 12)
    encoder, video = VideoEncoder(image, 5), clip(3, 8, 12)
    vectors_THD = encoder(encoder.prepare(video)).view(3, -1, WIDTH)
    for t, frame in enumerate(video.frames):
        assert gap(vectors_THD[t], image(image.prepare(frame)) + encoder.time.weight[t]) < 1e-6


def test_a_long_video_is_read_evenly():
    assert evenly(10, 4) == [0, 3, 6, 9] and evenly(3, 4) == [0, 1, 2] and evenly(4000, 1) == [0]
    shades = tuple(Image.new("RGB", (4, 4), (i % 256, i // 256, 0)) for i in range(4000))
    read = VideoEncoder(PatchEncoder(WIDTH, 4), 5).prepare(Video(shades, 25.0))
    assert read.grid == (5, 1, 1)
    assert gap(read.values_NF, torch.cat([PatchEncoder(WIDTH, 4).prepare(shades[i]).values_NF for i in (0, 1000, 2000, 2999, 3999)])) == 0


# Through the whole model: a text loss teaches the encoders


def gpt_with(sound: torch.nn.Module) -> GPT:
    text = text_codec()
    end = text.num_codes
    image = PatchEncoder(WIDTH, 4, 12)
    ports = {
        "text": Port(str, codec=text, writes=TextLayout(Span(0, end + 1), end)),
        "image": Port(Image.Image, image, VectorsLayout(end + 2, end + 3)),
        "audio": Port(Audio, sound, VectorsLayout(end + 4, end + 5)),
        "video": Port(Video, VideoEncoder(PatchEncoder(WIDTH, 4, 12), 5), VectorsLayout(end + 6, end + 7)),
    }
    return GPT(DecoderConfig(WIDTH, 2, 2, 1, 16, 64), ports, end + 8, end + 1)


SAMPLES = [
    [Part(SOUNDS[0]), Part("caption:"), Part("a red apple", learn=True)],
    [Part(CLIPS[0]), Part(SOUNDS[2]), Part("caption:"), Part("a cat", learn=True)],
    [Part("draw:"), Part(CLIPS[2]), Part(PICTURES[1]), Part("a green apple", learn=True)],
]


@pytest.mark.parametrize("sound", [lambda: FrameEncoder(WIDTH), lambda: MelEncoder(WIDTH, 16)], ids=["frames", "mel"])
def test_a_text_loss_teaches_every_encoder(sound):
    torch.manual_seed(0)
    gpt = gpt_with(sound())
    gpt.losses(pack([gpt.write(sample) for sample in SAMPLES], gpt.spans))["text"].mean().backward()
    for name, parameter in gpt.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("row_length", [None, 200], ids=["padded", "packed"])
def test_losses_of_a_batch_are_those_of_its_documents(row_length):
    torch.manual_seed(0)
    gpt = gpt_with(MelEncoder(WIDTH, 16))
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.mul_(5 if parameter.ndim == 2 else 1)
        documents = sorted((gpt.write(sample) for sample in SAMPLES), key=lambda d: -sum(map(len, d)))  # the order in which a row is filled
        alone = [gpt.losses(pack([document], gpt.spans))["text"] for document in documents]
        together = gpt.losses(pack(documents, gpt.spans, row_length))["text"]
    assert gap(together, torch.cat(alone)) < 1e-4


# Bad input: one family of errors, with what was found, the limit and the remedy


def sound_of(samples: torch.Tensor, rate: float = RATE) -> Audio:
    return unchecked(Audio, samples=samples, rate=rate)


def unread(channels: int, seconds: float) -> torch.Tensor:
    """Samples that nobody can look at: a size is refused before any work is done."""
    return torch.empty(channels, round(seconds * RATE), device="meta")


BAD_SOUNDS = {
    "no samples": (sound_of(torch.zeros(1, 0)), "0 samples.*at least 1"),
    "no samples, flat": (sound_of(torch.zeros(0)), "0 samples.*at least 1"),
    "no channels": (sound_of(torch.zeros(0, 5)), "0 channels, 1 to 8.*pass"),
    "nine channels": (sound_of(unread(9, 1)), "9 channels, 1 to 8.*fewer"),
    "three dimensions": (sound_of(torch.zeros(1, 1, 5)), "3 dimensions.*pass 2"),
    "one number": (sound_of(torch.tensor(0.5)), "0 dimensions.*pass 2"),
    "integers": (sound_of(torch.zeros(1, 5, dtype=torch.int16)), "int16.*divide"),
    "NaN": (sound_of(torch.tensor([[0.0, math.nan, 0.0]])), "1 of 3 samples are NaN.*repair"),
    "infinite": (sound_of(torch.tensor([[0.0, math.inf, -math.inf]])), "2 of 3 samples are NaN or infinite.*repair"),
    "16-bit numbers": (sound_of(torch.tensor([[0.0, -20_000.0]])), "2e\\+04, the limit is 10.*32768"),
    "slow": (sound_of(unread(1, 1), 3_999), "3999 Hz.*4000 to 192000"),
    "fast": (sound_of(unread(1, 1), 192_001), "192001 Hz.*4000 to 192000"),
    "broken rate": (sound_of(unread(1, 1), 16_000.5), "16000.5 Hz.*whole number"),
    "no rate": (sound_of(unread(1, 1), math.nan), "nan Hz.*4000 to 192000"),
    "an hour": (sound_of(unread(2, 3600)), "3600.00 seconds, the limit is 30.*cut"),
    "a little long": (sound_of(unread(1, 30.01)), "30.01 seconds, the limit is 30.*cut"),
}


@pytest.mark.parametrize("kind", [FrameEncoder, MelEncoder])
@pytest.mark.parametrize("name", BAD_SOUNDS)
def test_bad_sound_is_refused(name, kind):
    value, message = BAD_SOUNDS[name]
    with pytest.raises(InputError, match=message):
        kind(WIDTH).prepare(value)


def test_the_limits_themselves_are_taken():
    encoder = FrameEncoder(WIDTH, max_seconds=0.5)
    assert len(encoder.prepare(noise(RATE // 2, channels=audio.CHANNELS))) == 13
    assert len(encoder.prepare(noise(1, audio.RATES[0]))) == len(encoder.prepare(noise(1, audio.RATES[1]))) == 1


BAD_CLIPS = {
    "no frames": (unchecked(Video, frames=(), fps=5.0), "0 frames.*at least 1"),
    "two sizes": (unchecked(Video, frames=(picture(0, 8), picture(1, 4)), fps=5.0), "2 sizes, 4x4 to 8x8.*resize"),
    "no pixels": (unchecked(Video, frames=(Image.new("RGB", (0, 5)),), fps=5.0), "0x5 pixels.*at least 1x1"),
    "no speed": (unchecked(Video, frames=(picture(0, 8),), fps=0.0), "0.0 frames a second.*above 0"),
    "backwards": (unchecked(Video, frames=(picture(0, 8),), fps=-5.0), "-5.0 frames a second.*above 0"),
    "NaN speed": (unchecked(Video, frames=(picture(0, 8),), fps=math.nan), "nan frames a second.*above 0"),
    "infinite speed": (unchecked(Video, frames=(picture(0, 8),), fps=math.inf), "inf frames a second.*above 0"),
}


@pytest.mark.parametrize("name", BAD_CLIPS)
def test_bad_video_is_refused(name):
    value, message = BAD_CLIPS[name]
    with pytest.raises(InputError, match=message):
        VideoEncoder(PatchEncoder(WIDTH, 4)).prepare(value)


def test_convolutional_patches_are_the_same_alone_and_in_any_company():
    """Pictures of two sizes in one call; the network sees each whole picture and nothing of its neighbours."""
    torch.manual_seed(0)
    encoder = ConvEncoder(32, patch=8, stem=8)
    with torch.no_grad():
        for weight in encoder.parameters():  # residual branches begin at zero
            weight.add_(0.05 * torch.randn_like(weight))
    cut = [encoder.cut(torch.rand(3, height, width) * 2 - 1) for height, width in ((16, 24), (8, 8), (16, 24))]
    together = encoder(join(cut))
    assert together.shape == (6 + 1 + 6, 32)
    assert (together - torch.cat([encoder(one) for one in cut])).abs().max() < 1e-5
    changed = [cut[0], cut[1], encoder.cut(torch.zeros(3, 16, 24))]
    assert (encoder(join(changed))[:7] - together[:7]).abs().max() < 1e-5 and (encoder(join(changed))[7:] - together[7:]).abs().max() > 1e-2
    together.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in encoder.parameters())
    with pytest.raises(InputError, match="patches of 12 pixels"):
        ConvEncoder(32, patch=12)


def test_video_reads_its_frames_through_a_convolutional_encoder_too():
    torch.manual_seed(0)
    encoder = VideoEncoder(ConvEncoder(32, patch=4, stem=8), 5)
    with torch.no_grad():
        clips = [encoder.prepare(one) for one in (clip(3), clip(1, 16, 4, 10))]
        assert gap(encoder(join(clips)), torch.cat([encoder(one) for one in clips])) < 1e-5
        still = encoder.image(encoder.image.prepare(clip(3).frames[1]))
        assert gap(encoder(clips[0])[len(still) : 2 * len(still)], still + encoder.time.weight[1]) < 1e-5


def moved_encoder() -> VideoEncoder:
    """One whose network for what moved says something: it begins silent."""
    torch.manual_seed(0)
    encoder = VideoEncoder(PatchEncoder(32, 8), 5, changes=8)
    stirred(encoder.changes)
    return encoder


def test_what_moved_is_the_clip_s_own_and_no_other_s():
    """Clips of two sizes, together and alone; the first frame of a clip follows none."""
    encoder = moved_encoder()
    with torch.no_grad():
        clips = [encoder.prepare(one) for one in (clip(3), clip(2, 16, 8, 9), clip(4, seed=3))]
        assert gap(encoder(join(clips)), torch.cat([encoder(one) for one in clips])) < 1e-5
        still = Video(clip(1).frames * 3, 6.0)
        seen_THD = encoder.changed(encoder.prepare(still)).view(3, -1, 32)
        assert gap(seen_THD[0], seen_THD[1]) < 1e-6 and gap(seen_THD[0], seen_THD[2]) < 1e-6
        there_THD = encoder.changed(clips[0]).view(3, -1, 32)
        back_THD = encoder.changed(encoder.prepare(Video(clip(3).frames[::-1], 6.0))).view(3, -1, 32)
        assert gap(there_THD[1], back_THD[1]) > 1e-2  # the same frame, come from elsewhere


def test_changes_are_learned_and_begin_silent():
    encoder = VideoEncoder(PatchEncoder(32, 8), 5, changes=8)
    prepared = encoder.prepare(clip(3))
    assert not encoder.changed(prepared).any()
    encoder = moved_encoder()
    encoder(prepared).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in encoder.changes.parameters())
    for patch, channels in ((12, 8), (2, 8), (8, 12)):
        with pytest.raises(InputError, match=f"changes in {channels} channels, patches of {patch} pixels"):
            VideoEncoder(PatchEncoder(32, patch), 5, changes=channels)
