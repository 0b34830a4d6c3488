"""Sound and video in and out: their layout, a small model of all four modalities, its checkpoint, its events, its training."""

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import any_gpt, clip, gap, picture, tiny_gpt, tone

import mmgpt
from mmgpt.data.fill import pieces
from mmgpt.decoders.audio_codec import AudioCodec
from mmgpt.errors import CheckpointError, InputError
from mmgpt.generate import engine
from mmgpt.generate.engine import Request, run
from mmgpt.generate.request import Chunk, Preview
from mmgpt.generate.row import Row
from mmgpt.generate.sampling import steered
from mmgpt.hub import load
from mmgpt.layout import FramesLayout, TextLayout
from mmgpt.native import NativeConfig, SoundConfig, VideoConfig, build_from, save
from mmgpt.pack import length, pack
from mmgpt.script import Automaton, Span, parse
from mmgpt.train.any import with_words, words_of
from mmgpt.train.mix import Direction, MixTask, hidden, swapped
from mmgpt.types import Audio, Part, Video

LAYOUT = FramesLayout(5, Span(10, 10 + 1 + 3 * 4), 3)  # three quantizers of four codes; 10 ends
bounded = settings(max_examples=60, deadline=None, derandomize=True)


# --- frames of codes ------------------------------------------------------------------------------------------------------------------


@bounded
@given(st.integers(1, 9), st.integers(0, 4), st.integers(0, 99))
def test_frames_parse_back(frames, more, seed):
    """Also where there could have been more of them: `end` ends them."""
    codes = np.random.default_rng(seed).integers(0, 4, (frames, 1, 3))
    written = LAYOUT.write(codes, learn=True)
    assert written.ids_N[0] == 5 and written.ids_N[-1] == 10 and len(written) == 2 + 3 * frames
    assert written.choice_N.tolist() == [False, *[True] * (3 * frames + 1)]
    ids, script = parse(written.ids_N, [LAYOUT.script((frames + more, 1, 3))])
    assert (LAYOUT.codes(ids, script.grid) == codes).all()


@bounded
@given(st.integers(1, 6), st.integers(0, 10_000))
def test_frames_drawn_at_random_are_whole(most, seed):
    """Each quantizer's ids are its own, a frame is complete before the end, and there is one frame at least."""
    walk, ids, random = Automaton([LAYOUT.script((most, 1, 3))]), [], Random(seed)
    while (choice := walk.next()) is not None:
        span = random.choice(choice.spans)
        ids.append(random.randrange(span.start, span.stop))
        walk.push(ids[-1])
    codes = LAYOUT.codes(parse(ids, [LAYOUT.script((most, 1, 3))])[0], (most, 1, 3))
    assert ids[-1] == 10 and ids.count(10) == 1 and 1 <= len(codes) <= most and codes.min() >= 0 and codes.max() < 4
    assert (LAYOUT.write(codes).ids_N == ids).all()


def test_a_written_frame_stands_where_it_is_generated():
    """The places of a short sound are those of a longer one's beginning, its end included."""
    short, long = LAYOUT.write(np.zeros((2, 3), int)), LAYOUT.script((5, 1, 3))
    assert (short.place_N3 == long.place_N3[: len(short)]).all() and short.span == 4
    assert short.place_N3[:, 0].tolist() == [0, 1, 1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize(
    "codes, words",
    [
        (np.zeros((2, 2), int), "(2, 1, 2)"),
        (np.full((1, 3), 4), "codes 4..4"),
        (np.zeros((0, 3), int), "at least 1 frame"),
        (np.zeros((1, 3)), "float64"),
    ],
)
def test_codes_that_are_no_frames_are_refused(codes, words):
    with pytest.raises(InputError, match="codes") as caught:
        LAYOUT.write(codes)
    assert words in str(caught.value)


def test_a_layout_whose_ids_do_not_fit_is_refused():
    with pytest.raises(InputError, match="12 ids for 3 quantizers"):
        FramesLayout(5, Span(10, 22), 3)


@pytest.mark.parametrize("grid", [(4, 1, 2), (4, 2, 3), (0, 1, 3)])
def test_sizes_that_are_no_frames_are_refused(grid):
    with pytest.raises(InputError, match="3.*at least 1 frame"):
        LAYOUT.script(grid)


def test_a_sound_stands_beside_the_words_that_it_says():
    """On the second axis alone, from where the segment before begins, one place further with each word; what follows stands as ever."""
    plain, worded = (any_gpt(quantizers=1, words=words) for words in (False, True))
    first = plain.ports["audio"].writes.num_codes
    codes = with_words(np.arange(6)[:, None], [0, 3, 5], [first + 4, first + 9, first + 4])
    text, *more = [plain.write([Part("a cat sat")])[-1], Part("b")]
    behind, beside = (
        pack([gpt.write([Part("a cat sat"), Part(tone(), True, some), *more])], {}).position_BT3[0].tolist()
        for gpt, some in ((plain, codes % first), (worded, codes))
    )
    opened = 1 + len(text)  # begin, the words and their end
    assert [place[::2] for place in beside] == [place[::2] for place in behind] and beside[:opened] == behind[:opened]
    assert [place[1] - 1 for place in beside[opened : opened + 10]] == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2]  # begin, w 3 frames, w 2, w 1
    assert beside[opened + 11 :] == behind[opened + 11 :] and len(beside) > opened + 11


@pytest.mark.parametrize("to", ["audio", ("text", "audio"), ("audio", "audio")])
def test_what_stands_beside_words_is_drawn_where_it_is_learned(to):
    """Each id that the engine reads stands where it stands in a training document, guided or not."""
    gpt, streams = any_gpt(quantizers=1, words=True), []
    forward = gpt.forward
    gpt.forward = lambda stream, *rest: (streams.append(stream), forward(stream, *rest))[1]
    (result,) = mmgpt.Engine(gpt).run([mmgpt.Request(["a cat"], to, guidance=2.0, seed=3)])
    sound = len(gpt.write([result.parts[-1]])[-1])
    for row, parts in enumerate(([Part("a cat")], gpt.ports["audio"].unconditional([Part("a cat")]))):
        written = [Part("") if row and isinstance(part.value, str) else part for part in result.parts]  # words guide what is behind them
        stream = pack([gpt.write([*parts, *written])], {})
        read = torch.cat([one.position_BT3[row][one.document_BT[row] > 0] for one in streams if len(one.ids_BT) == 2])
        whole = stream.position_BT3[0].tolist()
        unread = len(whole) - len(read) if row == 0 else unread
        alike = sound - unread if row else len(read)
        assert read.tolist()[-alike:] == whole[: len(whole) - unread][-alike:] and unread <= 2 and alike > 3


def test_a_sound_alone_in_its_piece_stands_beside_what_is_before_it_there():
    """A document that is cut between its words and its sound: no place before the beginning."""
    gpt = any_gpt(quantizers=1, words=True)
    document = gpt.write([Part("a cat a cat a cat"), Part(tone(), True, np.zeros((9, 1), int))])
    cut = pieces(document, length(document) - 1, head=1)
    alone = pack([cut[1]], {}).position_BT3[0]
    assert len(cut) == 2 and alone[1:, 1].tolist() == [0] * 11 and alone[:, 0].tolist() == [*range(12)]
    assert torch.equal(pack(pieces(document, length(document)), {}).position_BT3, pack([document], {}).position_BT3)


def test_words_keep_their_vectors_with_another_codec():
    """Codes and words are each found again, however many codes there are now."""
    gpt = any_gpt(quantizers=1, words=True)
    config = replace(gpt.config, audio=replace(gpt.config.audio, codec=replace(gpt.config.audio.codec, levels=(4, 4, 3))))
    made = build_from(gpt, config, AudioCodec(config.audio.codec))
    old, new = gpt.ports["audio"].writes, made.ports["audio"].writes
    assert (old.num_codes, new.num_codes) == (16, 48) and old.num_words == new.num_words > 200
    words = [model.table.weight[layout.hideable.stop : layout.ids.stop] for model, layout in ((gpt, old), (made, new))]
    codes = [model.table.weight[layout.ids.start : layout.ids.start + 17] for model, layout in ((gpt, old), (made, new))]
    more = made.table.weight[new.ids.start + 17 : new.hideable.stop]
    assert torch.equal(*words) and torch.equal(*codes) and torch.cdist(more, words[0]).min() > 0.01  # codes that are new are nobody's


def test_words_alone_are_a_frame_of_silence_in_a_stream_too():
    gpt = any_gpt(quantizers=1, words=True)
    with torch.no_grad():
        gpt.table.weight[gpt.ports["audio"].writes.ids.start + 1 : gpt.ports["audio"].writes.hideable.stop] = 0
        gpt.table.weight[gpt.ports["audio"].writes.hideable.stop :] *= 3
    asked = [mmgpt.Request(["a cat"], "audio", guidance=1.0, seed=seed) for seed in range(9)]
    for request in asked:
        events = list(mmgpt.Engine(gpt).stream(request))
        heard = torch.cat([event.value.samples for event in events if isinstance(event, Chunk)], -1)
        assert gap(heard, events[-1].result.value.samples) < 1e-4
    assert (events[-1].result.codes >= 16).any()


def test_nothing_runs_ahead_of_words():
    """Where the next id stands is known when it is there, so neither guesses nor beams follow a sound with words."""
    for words in (False, True):
        gpt = any_gpt(quantizers=1, words=words)
        row, first = Row(gpt, mmgpt.Request(["a cat"], "audio", guidance=1.0, guess=2)), gpt.ports["audio"].writes.ids.start + 1
        for id in (first, first + 1, first, first + 1, first):
            row.push(id, 0.0)
        assert bool(row.guesses()) != words
    with pytest.raises(InputError, match="beams=2"):
        mmgpt.Engine(gpt).run([mmgpt.Request(["a cat"], "audio", guidance=1.0, beams=2)])


@bounded
@given(st.integers(1, 9), st.integers(0, 10_000))
def test_words_stand_among_frames(count, seed):
    """Anywhere, as many as there are; the end comes behind one slot at least, and all of them parse back."""
    layout = FramesLayout(5, Span(10, 10 + 1 + 4 + 3), num_words=3)
    codes = np.random.default_rng(seed).integers(0, 7, (count, 1))
    written = layout.write(codes, learn=True)
    ids, script = parse(written.ids_N, [layout.script((count + 2, 1, 1))])
    assert layout.num_codes == 4 and (layout.codes(ids, script.grid)[:, 0] == codes).all() and layout.hideable == Span(10, 15)
    walk, drawn, random = Automaton([layout.script((count, 1, 1))]), [], Random(seed)
    while (choice := walk.next()) is not None:
        span = random.choice(choice.spans)
        drawn.append(random.randrange(span.start, span.stop))
        walk.push(drawn[-1])
    assert drawn[0] == 5 and drawn[-1] == 10 and 10 not in drawn[:-1] and len(drawn) > 2
    with pytest.raises(InputError, match="codes 7..7: this layout writes codes 0..6"):
        layout.write(np.full((1, 1), 7))


def test_words_need_frames_of_one_code():
    with pytest.raises(InputError, match="3 words among frames of 2 codes"):
        FramesLayout(5, Span(10, 10 + 1 + 8 + 3), 2, num_words=3)
    with pytest.raises(InputError, match="words=True and a codec of 2 quantizers"):
        any_gpt(words=True)


def test_what_is_said_are_the_words_of_the_text_before_it():
    """All of them, in their order and no others, however hot it is drawn; after a text that was written too; and none where there is no text."""
    gpt = any_gpt(quantizers=1, words=True, verbatim=True)
    text, layout = gpt.ports["text"].codec, gpt.ports["audio"].writes
    hot = mmgpt.Sampling(temperature=5.0)
    for seed, asked in enumerate(("a red apple", "a", "caption: a small cat")):
        (result,) = run(gpt, [Request([asked], "audio", hot, seed=seed, grid=(60, 1, 1))])
        codes = result.codes.flatten()
        assert text.written(codes[codes >= layout.num_codes] - layout.num_codes).strip() == asked
    (both,) = run(gpt, [Request(["a cat"], ("text", "audio"), hot, seed=3, grid=((1, 1, 3), (60, 1, 1)))])
    codes = both.parts[1].codes.flatten()
    assert (codes[codes >= layout.num_codes] - layout.num_codes).tolist() == both.parts[0].codes.flatten().tolist() != []
    (free,) = run(gpt, [Request([Part("")], "audio", hot, seed=3, grid=(60, 1, 1))])
    assert (free.codes >= layout.num_codes).any()  # of nothing that was said, any
    with pytest.raises(InputError, match="slots, and frames that say them: say less"):
        run(gpt, [Request(["a red apple " * 30], "audio", grid=(60, 1, 1))])


def test_words_that_are_no_words_of_the_text_are_refused():
    layout = FramesLayout(5, Span(10, 10 + 1 + 4 + 3), num_words=3, says=lambda ids: [0, 3])
    with pytest.raises(InputError, match=r"codes of words beyond 0\.\.2"):
        layout.owed([TextLayout(Span(20, 30), 29).write(np.array([21]))])
    with pytest.raises(InputError, match="2 words ahead: use 0 or more, and `says`"):
        FramesLayout(5, Span(10, 10 + 1 + 4 + 3), num_words=3, ahead=2)
    with pytest.raises(InputError, match="verbatim=True and words=False"):
        SoundConfig(verbatim=True)
    with pytest.raises(InputError, match="letters=True and verbatim=False"):
        SoundConfig(words=True, letters=True)
    with pytest.raises(InputError, match="1 phones, letters=False, ahead=6"):
        SoundConfig(words=True, verbatim=True, phones=("a",))


SPELLED = (("A red apple!", "a red apple"), ("a", "a"), ("don't: a café", "don't a café"), ("two  spaces", "two spaces"))


@pytest.mark.parametrize("asked, said", SPELLED)
def test_letters_are_those_of_the_text_before_them(asked, said):
    """All of them, in their order, some ahead, however hot it is drawn; and no more frames than can be read."""
    gpt = any_gpt(quantizers=1, words=True, verbatim=True, letters=True)
    layout, frames = gpt.ports["audio"].writes, gpt.config.audio.frames
    for seed in range(3):
        (result,) = run(gpt, [Request([asked], "audio", mmgpt.Sampling(temperature=5.0), seed=seed)])
        codes = result.codes.flatten()
        spoken = codes < layout.num_codes
        assert bytes((codes[~spoken] - layout.num_codes).tolist()).decode() == said + "\0" * 6
        assert not spoken[:6].any() and 0 < spoken.sum() <= frames
        written = layout.write(result.codes, learn=True)
        assert tuple(written.ids_N) == result.ids and written.choice_N.tolist() == [False] * 7 + [True] * (len(written) - 7)
        moved = np.maximum((written.ids_N >= layout.hideable.stop).cumsum() - 1, 0)
        assert (written.place_N3[:-1, 1] == moved[:-1]).all() and (written.place_N3[:, 0] == np.arange(len(written))).all()


@torch.no_grad()
def test_the_next_letter_is_as_likely_as_any_is(monkeypatch):
    """Which one it is, is known: whether it comes now is what is drawn, at any temperature."""
    gpt = any_gpt(quantizers=1, words=True, verbatim=True, letters=True)
    row = Row(gpt, Request(["a cat"], "audio", mmgpt.Sampling(temperature=0.2)))
    layout, h_ND = gpt.ports["audio"].writes, torch.randn(3, gpt.decoder.config.width)
    while row.choice.any_of is None:
        row.push(row.choice.at(0), 0.0)
    owed = row.choice.spans[-1]
    logits_NV = mmgpt.Engine(gpt).scores("audio", row.choice, h_ND)
    whole_NV = gpt.heads["audio"].logits(h_ND, layout.ids)
    letters = slice(layout.hideable.stop - layout.ids.start, None)
    assert len(owed) == 1 and gap(logits_NV[:, -1], whole_NV[:, letters].logsumexp(-1)) < 1e-5
    assert gap(logits_NV[:, : layout.num_codes], whole_NV[:, 1 : 1 + layout.num_codes]) < 1e-5
    drawn = []
    monkeypatch.setattr(engine, "choose", lambda logits_RV, *_: (drawn.append(logits_RV), logits_RV.argmax(-1))[1])
    mmgpt.Engine(gpt).draw([row], h_ND[:1])
    assert gap((drawn[0] / 0.2).softmax(-1)[:, -1], logits_NV[:1].softmax(-1)[:, -1]) < 1e-6


@pytest.mark.parametrize("temperature", [0.0, 0.2, 1.0, 3.0])
def test_when_a_word_comes_does_not_hang_on_how_coldly_frames_are_drawn(temperature):
    """One id against hundreds: cold, it came before its time. The same for the end; frames among themselves are drawn as ever."""
    logits_RV = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 2
    logits_RV[0, 7] = 12
    p_RV, q_RV = logits_RV.softmax(-1), steered(logits_RV, [7, 30], temperature)
    if temperature == 0:
        rest = [n for n in range(40) if n not in (7, 30)]
        wanted = [max((7, 30), key=lambda n: p_V[n]) if max(p_V[7], p_V[30]) > p_V[rest].sum() else rest[int(p_V[rest].argmax())] for p_V in p_RV]
        assert q_RV.argmax(-1).tolist() == wanted and wanted[0] == 7 and set(wanted) - {7, 30}
        return
    q_RV = (q_RV / temperature).softmax(-1)
    cold_RV = (logits_RV / temperature).index_fill(1, torch.tensor([7, 30]), -torch.inf).softmax(-1)
    assert gap(q_RV[:, [7, 30]], p_RV[:, [7, 30]]) < 1e-6
    assert gap(q_RV.index_fill(1, torch.tensor([7, 30]), 0.0), cold_RV * (1 - p_RV[:, [7, 30]].sum(-1, keepdim=True))) < 1e-6


def test_owed_words_and_the_end_behind_them_steer():
    gpt = any_gpt(quantizers=1, words=True, verbatim=True)
    layout = gpt.ports["audio"].writes
    walk = Automaton([layout.script((20, 1, 1))], [layout.hideable.stop + 3])
    walk.push(layout.begin)
    assert walk.next().steers == (layout.hideable.stop + 3,) and layout.end not in walk.next()
    walk.push(layout.hideable.stop + 3)
    walk.push(layout.end + 1)
    assert walk.next().steers == (layout.end,) and walk.next() == walk.next() and layout.end in walk.next()


def test_words_are_spelled_as_their_text_is():
    """Every id's letters are the bytes that it writes, also of a part of a character."""
    gpt = any_gpt(quantizers=1, words=True, verbatim=True, letters=True)
    codec = gpt.ports["text"].codec
    for asked in ("a red apple", "café über naïve", "日本 🍎!", "\n\ttabs"):
        ids = codec.encode(asked)
        assert b"".join(codec.letters(id) for id in ids.tolist()).decode() == codec.written(ids)
    letters, codes = words_of(gpt, "Café, red")
    assert bytes(codes).decode() == "café red" and letters == ["c", "a", "f", "", "", " ", "r", "e", "d"]
    assert words_of(any_gpt(quantizers=1, words=True), "a cat")[1] == codec.encode("a cat").tolist()
    assert with_words(np.array([[5], [6], [7]]), [0, 2], [90, 91, 89], 1).flatten().tolist() == [90, 91, 5, 6, 89, 7]


def test_words_among_frames_are_never_hidden():
    gpt = any_gpt(quantizers=1, words=True)
    layout = gpt.ports["audio"].writes
    codes = with_words(np.arange(9)[:, None], [0, 4, 9], [layout.num_codes + n for n in (5, 6, 7)])
    stream = pack([gpt.write([Part("a cat"), Part(tone(), True, codes)])] * 20, gpt.spans)
    gone = hidden(stream, {"audio": layout.hideable}, gpt.begin, 1.0, torch.Generator().manual_seed(0)).ids_BT
    words = stream.ids_BT >= layout.hideable.stop
    assert words.sum() == 60 and torch.equal(gone[words], stream.ids_BT[words]) and (gone != stream.ids_BT).sum() > 20
    task = MixTask(gpt, directions(gpt), 128)
    assert task.coded["audio"] == layout.hideable and task.coded["image"] == gpt.spans["image"] and "text" not in task.coded


def test_a_sound_with_words_is_said_and_kept(tmp_path):
    """A model whose speech has words among its frames: written, streamed, saved, read again."""
    gpt = any_gpt(quantizers=1, words=True)
    gpt.table.weight.data[gpt.ports["audio"].writes.hideable.stop :] *= 0.5  # so many words would leave no room for frames
    asked = [mmgpt.Request(["a cat"], "audio", guidance=1.0, seed=seed) for seed in range(20)]
    mixed = [len(np.unique(result.codes < gpt.ports["audio"].codec.num_codes)) == 2 for result in mmgpt.Engine(gpt).run(asked)]
    request = asked[mixed.index(True)]
    events = list(mmgpt.Engine(gpt).stream(request))
    chunks, result = [event.value.samples for event in events if isinstance(event, Chunk)], events[-1].result
    frames = int((result.codes < gpt.ports["audio"].codec.num_codes).sum())
    assert 0 < frames < len(result.codes) and result.value.samples.shape[-1] == frames * 640
    assert gap(torch.cat(chunks, -1), result.value.samples) < 1e-4
    again = load(save(gpt, tmp_path / "again"))
    assert mmgpt.Engine(again).run([request])[0].ids == result.ids


def test_a_document_that_is_written_is_the_one_that_would_be_learned():
    gpt = any_gpt(quantizers=1, words=True)
    row = Row(gpt, mmgpt.Request(["a cat"], ("text", "audio", "audio"), guidance=1.0))
    while not row.done:
        row.push(row.choice.at(len(row.choice.spans[0]) - 1), 0.0)
    written, learned = (pack([document], {}) for document in (row.branches[0].document, gpt.write([Part("a cat"), *row.result.parts])))
    assert torch.equal(written.ids_BT, learned.ids_BT) and torch.equal(written.position_BT3, learned.position_BT3)


# --- a model of all modalities --------------------------------------------------------------------------------------------------------


def test_everything_to_everything():
    """Each of four modalities is read, and each is written, of a size that it may have."""
    gpt = any_gpt()
    for given_part in ("a red apple", picture(), tone(), clip()):
        parts = [given_part, "caption:"]
        words = gpt.generate(parts, to="text", grid=(1, 1, 5))
        image, sound, video = (gpt.generate(parts, to=name, guidance=1.0) for name in ("image", "audio", "video"))
        assert isinstance(words, str) and isinstance(image, Image.Image) and image.size == (16, 16)
        assert isinstance(sound, Audio) and sound.rate == 16_000 and 640 <= sound.samples.shape[-1] <= 0.4 * 16_000
        assert isinstance(video, Video) and [frame.size for frame in video.frames] == [(16, 16)] * 3 and video.fps == 3.0


def test_what_was_written_is_what_would_be_read_as_learned():
    """The ids of a written sound and clip are those of the same codes in a training document."""
    gpt = any_gpt()
    for to in ("audio", "video"):
        (result,) = mmgpt.Engine(gpt).run([mmgpt.Request(["a cat"], to, guidance=1.0, seed=3)])
        document = gpt.write([Part("a cat"), replace(result.parts[0], learn=True)])
        assert tuple(document[-1].ids_N) == result.ids and length(document) == sum(result.usage.read.values()) + len(result.ids)


def test_rows_of_all_modalities_in_one_batch_are_as_alone():
    gpt = any_gpt()
    requests = [mmgpt.Request([tone(), "say"], to, guidance=1.0, seed=n) for n, to in enumerate(("text", "image", "audio", "video"))]
    together = mmgpt.Engine(gpt).run(requests)
    alone = [mmgpt.Engine(gpt).run([request])[0] for request in requests]
    assert [result.ids for result in together] == [result.ids for result in alone]


def test_one_segment_after_the_other():
    """From sound to words to a picture to a sound, in one row."""
    result = mmgpt.Engine(any_gpt()).run([mmgpt.Request([tone()], ("text", "image", "audio"), grid=((1, 1, 4), None, (3, 1, 2)), guidance=1.0)])[0]
    assert [type(part.value).__name__ for part in result.parts] == ["str", "Image", "Audio"]


def test_chunks_of_a_sound_are_the_sound():
    gpt = any_gpt()
    events = list(mmgpt.Engine(gpt).stream(mmgpt.Request(["a cat"], "audio", guidance=1.0, seed=5)))
    chunks = [event.value.samples for event in events if isinstance(event, Chunk)]
    assert len(chunks) > 1 and gap(torch.cat(chunks, -1), events[-1].result.value.samples) < 1e-5


def test_previews_of_a_clip_are_its_frames():
    events = list(mmgpt.Engine(any_gpt()).stream(mmgpt.Request(["a cat"], "video", guidance=1.0, seed=5)))
    previews = [event for event in events if isinstance(event, Preview)]
    whole = events[-1].result.value
    assert [(event.rows, event.of, len(event.value.frames)) for event in previews] == [(1, 3, 1), (2, 3, 2)]
    assert all((np.array(a) == np.array(b)).all() for event in previews for a, b in zip(event.value.frames, whole.frames, strict=False))


def test_pictures_and_frames_share_their_weights():
    """The eyes and the codec of a clip are the pictures': nothing is kept twice."""
    gpt = any_gpt()
    added = {name for name in gpt.state_dict() if ".video." in name}
    assert added == {"encoders.video.time.weight"}
    assert gpt.heads["video"].ids == gpt.heads["image"].ids


def test_saved_is_loaded(tmp_path):
    gpt = any_gpt()
    again = load(save(gpt, tmp_path / "model"))
    assert again.config == gpt.config
    for to in ("text", "image", "audio", "video"):
        results = [
            mmgpt.Engine(one).run([mmgpt.Request([tone(), clip()], to, seed=2, grid=(1, 1, 6) if to == "text" else None)])[0].ids
            for one in (gpt, again)
        ]
        assert results[0] == results[1]


def test_a_model_of_pictures_alone_says_what_it_cannot_do():
    gpt = tiny_gpt()
    with pytest.raises(InputError, match="Audio: this model takes text, image"):
        gpt.generate([tone()])
    with pytest.raises(InputError, match="to='audio': this model writes text, image"):
        gpt.generate(["a cat"], to="audio")


def test_the_adapter_says_what_it_cannot_take():
    pytest.importorskip("transformers")
    from mmgpt.interop.hf.native import from_native

    with pytest.raises(CheckpointError, match="4 modalities, text, image, audio, video"):
        from_native(any_gpt())


def test_what_is_added_leaves_the_rest_as_it_was():
    """A model that gets ears and a voice reads words and pictures as before."""
    base, gpt = tiny_gpt(), any_gpt()
    stream = pack([base.write([Part(picture()), Part("caption:"), Part("a cat", learn=True)])], base.spans)
    assert gap(base(stream), gpt(stream)) < 1e-6


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"audio": {"encoder": "nose"}}, "encoder='nose'"),
        ({"audio": {"seconds": 1e9}}, "seconds=1000000000.0"),
        ({"video": {"side": 6}}, "6 pixels"),
        ({"video": {"frames": 10**9}}, "frames=1000000000"),
    ],
)
def test_settings_that_describe_no_model_are_refused(changes, words):
    with pytest.raises(InputError) as caught:
        replace(NativeConfig(), **{name: {"audio": SoundConfig, "video": VideoConfig}[name](**some) for name, some in changes.items()})
    assert words in str(caught.value)


def test_a_folder_that_lies_about_its_sound_codec_is_refused(tmp_path):
    import json

    from mmgpt.checkpoint import read_folder, write_folder

    folder = save(any_gpt(), tmp_path / "model")
    tensors, texts = read_folder(folder)
    config = json.loads(texts["config.json"])
    config["audio"]["codec"]["levels"] = [64, 64, 64, 64, 64]
    lying = write_folder(tmp_path / "lying", tensors, texts | {"config.json": json.dumps(config)})
    with pytest.raises(CheckpointError):
        load(lying)


# --- training -------------------------------------------------------------------------------------------------------------------------


def directions(gpt) -> list[Direction]:
    sounds, clips = [tone(0.2, 200.0), tone(0.2, 500.0)], [clip(3, 0), clip(3, 9)]
    names = ["a cat", "a red apple"]
    weight_N = torch.ones(2, dtype=torch.double)

    def of(make):
        return lambda item, generator: gpt.write(make(item))

    return [
        Direction("transcribe", 2, weight_N, of(lambda n: [Part(sounds[n]), Part(names[n], True)]), [([Part(sounds[0])], "text", names[0])]),
        Direction("speak", 2, weight_N, of(lambda n: [Part(names[n]), Part(sounds[n], True)]), [([Part(names[0])], "audio", names[0])]),
        Direction("describe", 2, weight_N, of(lambda n: [Part(clips[n]), Part(names[n], True)])),
        Direction("animate", 2, weight_N, of(lambda n: [Part(names[n]), Part(clips[n], True)])),
    ]


def test_a_few_of_each_are_learned_by_heart():
    gpt = any_gpt(1).train()
    with torch.no_grad():  # as at the start of training
        for parameter in gpt.decoder.parameters():
            parameter.mul_(0.2 if parameter.ndim == 2 else 1)
        gpt.table.weight.mul_(0.2)
    task = MixTask(gpt, directions(gpt), 128)
    optimizer = torch.optim.AdamW([p for p in gpt.parameters() if p.requires_grad], 3e-3)
    for step in range(70):
        loss, figures = task.losses(task.batch(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert set(figures) == {"text", "audio", "video"} and max(figures.values()) < 0.3, figures


def test_parts_of_a_batch_are_the_batch(tmp_path):
    gpt = any_gpt()
    task = MixTask(gpt, directions(gpt), 128)
    whole = task.batch(4)
    parts = [task.share(4, n, 2) for n in range(2)]
    assert sum(task.size(part) for part in parts) == task.size(whole)
    assert {name: sum(task.counts(part).get(name, 0) for part in parts) for name in task.counts(whole)} == task.counts(whole)
    task.sample(tmp_path, 0)
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".wav", ".txt"]


def test_parts_hide_codes_of_their_own_chance_and_items_of_no_weight_are_never_drawn():
    gpt, document = any_gpt(), [Part("a cat"), Part(tone(0.4), True)]
    weight_N = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.double)
    drawn = []

    def make(item, generator):
        drawn.append(item)
        return gpt.write(document)

    task = MixTask(gpt, [Direction("speak", 4, weight_N, make)], 128, hide=1.0)
    shares = [[task.share(step, n, 2).ids_BT for step in range(4)] for n in range(2)]
    assert set(drawn) == {0, 2} and not all(torch.equal(a, b) for a, b in zip(*shares, strict=True))


def test_a_target_is_learned_once():
    """Pictures and frames have the same ids: codes of which nobody says whose they are belong to the first head that scores them."""
    gpt = any_gpt()
    codes = gpt.ports["image"].codec.encode(picture())
    stream = pack([[*gpt.write([Part("a cat")]), gpt.ports["image"].writes.write(codes, learn=True)]], gpt.spans)
    assert {target.head: len(target.id_N) for target in stream.targets} == {"image": codes.size}


def test_codes_are_hidden_but_not_words():
    gpt = any_gpt()
    stream = MixTask(gpt, directions(gpt), 128).batch(0)
    gone = hidden(stream, {name: gpt.spans[name] for name in ("audio", "video")}, gpt.begin, 1.0, torch.Generator().manual_seed(0))
    changed = (gone.ids_BT != stream.ids_BT).flatten()
    coded = torch.cat([target.slot_N + 1 for target in stream.targets if target.head != "text"])
    assert 0 < changed.sum() < len(coded) and not changed[[n for n in range(len(changed)) if n not in set(coded.tolist())]].any()
    assert all((a.id_N == b.id_N).all() for a, b in zip(stream.targets, gone.targets, strict=True))


def test_codes_of_others_are_shown_but_not_learned():
    """Of what is asked for, all up to a code or scattered; in its place stands what another document has there; words stay."""
    gpt, generator = any_gpt(), torch.Generator().manual_seed(0)
    shape = gpt.ports["image"].grid
    pictures = [Part(picture(0), True, np.full(shape, n)) for n in range(6)]
    stream = pack([gpt.write([Part("a cat", learn=True), one]) for one in pictures], gpt.spans, 64)
    own = {target.head: target for target in stream.targets}["image"]
    shown = swapped(stream, ["image"], 1.0, generator)
    assert shown.targets is stream.targets and torch.equal(swapped(stream, ["image"], 0.0, generator).ids_BT, stream.ids_BT)
    mine, theirs = (x.ids_BT.flatten()[own.slot_N + 1].view(6, -1) for x in (stream, shown))
    changed = (mine != theirs).nonzero()
    assert len(changed) and set(changed[:, 0].tolist()) == set(range(6))
    assert all(len(set(row.tolist())) <= 2 for row in theirs)  # its own, and those of one other
    begun = [bool((row[1:].long() <= row[:-1].long()).all()) for row in mine != theirs]
    assert True in begun and False in begun
    rest = torch.ones(stream.ids_BT.numel(), dtype=torch.bool)
    rest[own.slot_N + 1] = False
    assert torch.equal(shown.ids_BT.flatten()[rest], stream.ids_BT.flatten()[rest])


def test_codes_are_kept_for_the_same_files_and_codec(tmp_path, monkeypatch):
    from mmgpt.train import any as recipe

    monkeypatch.setattr(recipe, "CODES", tmp_path)
    monkeypatch.setattr(recipe, "BLOCK", 2)
    gpt, sounds, opened = any_gpt(), [tone(0.1), tone(0.2), tone(0.3), tone(0.4)], []
    codec = gpt.ports["audio"].codec

    def encode(n: int) -> np.ndarray:
        opened.append(n)
        return codec.encode(sounds[n])

    stored = [b"a", b"b", b"c"]
    first = recipe.coded(codec, stored, encode, "speech")
    again = recipe.coded(codec, stored, encode, "speech")
    assert opened == [0, 0, 1, 2, 0] and [codes.tolist() for codes in first] == [codes.tolist() for codes in again]
    assert [codes.dtype for codes in again] == [np.dtype("int64")] * 3 and [len(codes) for codes in again] == [3, 5, 8]
    opened.clear()
    recipe.coded(codec, [b"a", b"b", b"d"], encode, "speech")  # another file in the second block
    assert opened == [0, 2]
    grown = recipe.coded(codec, [*stored, b"e"], encode, "speech")  # more files: the first block is known
    assert opened == [0, 2, 0, 2, 3] and [codes.tolist() for codes in grown[:3]] == [codes.tolist() for codes in first]
    next(codec.parameters()).data.add_(0.5)
    recipe.coded(codec, stored, encode, "speech")  # another codec
    assert opened[5:] == [0, 0, 1, 2] and len(list(tmp_path.iterdir())) == 6 and recipe.coded(codec, [], encode, "speech") == []


def test_what_was_coded_before_a_stop_is_kept(tmp_path, monkeypatch):
    from mmgpt.train import any as recipe

    monkeypatch.setattr(recipe, "CODES", tmp_path)
    monkeypatch.setattr(recipe, "BLOCK", 2)
    codec, opened = any_gpt().ports["audio"].codec, []

    def encode(n: int) -> np.ndarray:
        if n == 3 and len(opened) == 4:
            raise KeyboardInterrupt
        opened.append(n)
        return np.full((n + 1, 1), n)

    with pytest.raises(KeyboardInterrupt):
        recipe.coded(codec, [b"a", b"b", b"c", b"d"], encode, "speech")
    found = recipe.coded(codec, [b"a", b"b", b"c", b"d"], encode, "speech")
    assert opened == [0, 0, 1, 2, 0, 2, 3] and [codes.tolist() for codes in found] == [[[n]] * (n + 1) for n in range(4)]


@pytest.mark.parametrize("changes", [0, 8])
def test_clips_that_were_seen_before_are_read_as_if_they_were_seen_now(changes, tmp_path, monkeypatch):
    from mmgpt.data.footage import load_clips
    from mmgpt.train import any as recipe

    monkeypatch.setattr(recipe, "CODES", tmp_path)
    clips, base = load_clips(Path(__file__).parent / "data" / "clips3.parquet"), any_gpt()
    gpt = build_from(base, replace(base.config, video=replace(base.config.video, changes=changes)))
    if changes:
        torch.nn.init.normal_(gpt.encoders["video"].changes.network[-1].weight)
    kept = set(gpt.state_dict())
    (fresh, _), (known, _) = (recipe.clip_directions(gpt, clips, [], (1, 0), 0.1, sights) for sights in ([], recipe.clip_sights(gpt, clips)))
    assert set(gpt.state_dict()) == kept
    for item in range(3):
        streams = [pack([way.document(item, torch.Generator().manual_seed(0))], gpt.spans) for way in (fresh, known)]
        vectors = [gpt.embed(stream) for stream in streams]
        assert gap(*vectors) < 2e-3 and (streams[0].ids_BT == streams[1].ids_BT).all()
        vectors[1].sum().backward()
    learned = [gpt.encoders["video"].time, *([gpt.encoders["video"].changes.network[0]] if changes else [])]
    assert all(part.weight.grad.any() for part in learned)
    assert all(p.grad is None for p in gpt.encoders["image"].parameters())


def test_clips_that_were_heard_before_are_read_as_if_they_were_heard_now(tmp_path, monkeypatch):
    from mmgpt.data.speech import load_speech
    from mmgpt.train import any as recipe

    monkeypatch.setattr(recipe, "CODES", tmp_path)
    monkeypatch.setattr(recipe, "varied", lambda sound, generator: sound)
    monkeypatch.setattr(recipe, "masked", lambda values, parts, generator: values)
    rows, base = load_speech(Path(__file__).parent / "data" / "speech6.parquet"), any_gpt()
    gpt = build_from(base, replace(base.config, audio=replace(base.config.audio, encoder="whisper", blocks=1, seconds=1.1)))
    short = [n for n, row in enumerate(rows) if recipe.fits(row, 1.1)]
    assert 0 < len(short) < len(rows)
    gpt.encoders["audio"].tower.requires_grad_(False)
    kept, none = set(gpt.state_dict()), [np.zeros((0, 1))] * len(rows)
    known = recipe.speech_heard(gpt.encoders["audio"], rows)
    ways = [recipe.speech_directions(gpt, rows, none, (1, 0), "heart", 0.1, heard)[0] for heard in ([], known)]
    assert set(gpt.state_dict()) == kept and ways[0].weight_N.nonzero()[:, 0].tolist() == short
    for item in short:
        streams = [pack([way.document(item, torch.Generator().manual_seed(0))], gpt.spans) for way in ways]
        vectors = [gpt.embed(stream) for stream in streams]
        assert gap(*vectors) < 2e-3 and (streams[0].ids_BT == streams[1].ids_BT).all()
        vectors[1].sum().backward()
    assert gpt.encoders["audio"].out[0].weight.grad.any()
    assert all(p.grad is None for p in gpt.encoders["audio"].tower.parameters())


def test_what_was_read_off_is_written_again():
    """Heard, written down and said; a name heard, written down and drawn as one of those drew it who drew the same."""
    from mmgpt.data.speech import load_speech
    from mmgpt.train.any import sketch_direction, speech_directions
    from mmgpt.train.gpt import GPTTask, Item, Mix

    gpt, rows = any_gpt(max_length=600), load_speech(Path(__file__).parent / "data" / "speech6.parquet")
    gpt = build_from(gpt, replace(gpt.config, audio=replace(gpt.config.audio, seconds=2.0)))
    codes = [np.full((5, 1, 2), n) for n in range(len(rows))]
    _, speak, repeat = speech_directions(gpt, rows, codes, (1, 1), "heart", 0.1, (), 1, names=3.0)
    assert speak.weight_N.tolist() == [3.0 * (row.voice == "heart") if row.source == "name" else float(row.voice == "heart") for row in rows]
    assert {1.0, 3.0} <= set(speak.weight_N.tolist())
    for item in repeat.weight_N.nonzero()[:, 0].tolist():
        begin, heard, asked, words, said = repeat.document(item, torch.Generator().manual_seed(0))
        again = gpt.write([Part(rows[item].text, learn=True), Part(Audio(torch.zeros(1), 16_000), learn=True, codes=codes[item])])
        assert heard.encoder == "audio" and asked.ids_N.tolist() == gpt.write([Part("transcribe:")])[1].ids_N.tolist()
        assert [(one.ids_N.tolist(), one.learn) for one in (begin, words, said)] == [(one.ids_N.tolist(), one.learn) for one in again]
    items = [Item((name,), (("caption:", name),)) for name in ("a cat", "a dog", "a cat")]
    task = GPTTask(gpt, torch.from_numpy(np.stack([np.array(picture(n)) for n in range(3)])).permute(0, 3, 1, 2), items, Mix(1, 1, augment=False))
    named = [replace(row, text=text) for row, text in zip(rows, ("A-Cat", "a dog", "a bird", "acat"), strict=False)]
    listening = speech_directions(gpt, named, codes[: len(named)], (1, 1), "heart", 0.1)[0]
    sketch = sketch_direction(task, listening, named, 1, 0.0)
    assert sketch.weight_N.tolist() == [weight * (n != 2) for n, weight in enumerate(listening.weight_N.tolist())]
    drawn = {sketch.document(0, torch.Generator().manual_seed(n))[-1].ids_N.tobytes() for n in range(8)}
    assert drawn == {gpt.ports["image"].writes.write(task.codes[n], learn=True).ids_N.tobytes() for n in (0, 2)} and len(drawn) == 2
    assert [one.learn for one in sketch.document(1, torch.Generator())] == [False, False, False, True, True]
    *given, _ = sketch_direction(task, listening, named, 1, 1.0).document(1, torch.Generator())
    empty = gpt.write([Part(named[1].sound), Part(""), Part("")])
    assert [(len(one), one.learn) for one in given] == [(len(one), False) for one in empty] and empty[2].ids_N.tolist() == given[2].ids_N.tolist()


def test_a_share_of_clips_is_described_by_how_it_moves():
    from mmgpt.data.footage import load_clips
    from mmgpt.train.any import clip_directions

    clips, gpt = load_clips(Path(__file__).parent / "data" / "clips3.parquet"), any_gpt()
    for moves, (asked, said) in {0.0: ("describe:", clips[0].text), 1.0: ("motion:", clips[0].motion)}.items():
        document = clip_directions(gpt, clips, [], (1, 0), 0.1, moves=moves)[0].document(0, torch.Generator())
        text = gpt.ports["text"].codec
        assert [text.decode(part.ids_N[part.ids_N < text.num_codes]) for part in document[2:]] == [asked, said]
