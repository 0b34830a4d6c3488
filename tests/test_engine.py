"""Rows that come and go: alone or in any batch, in one segment or several, streamed or whole, read from the beginning or from what was kept."""

import os
import random
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_generate import recorded
from tiny import gap, picture, tiny_gpt

from mmgpt.errors import GuidanceError, InputError
from mmgpt.generate.engine import Engine, run
from mmgpt.generate.guidance import Guidance
from mmgpt.generate.prefix import Prefixes, cut, key_of, leaders, rest, shared
from mmgpt.generate.quantised import quantised
from mmgpt.generate.request import Begun, Delta, Done, Ended, Preview, Request
from mmgpt.generate.row import went_on
from mmgpt.generate.sampling import GREEDY, Sampling, choose
from mmgpt.generate.stretch import take
from mmgpt.pack import lay, pack
from mmgpt.types import Part

WARM = Sampling(temperature=1.0, top_p=0.95)
GPT = tiny_gpt()


def pool() -> list[Request]:
    """Requests of all kinds: words, pictures, both, guided in three ways, with prompts of all lengths."""
    return [
        Request([picture(1), "caption:"], "text", WARM, grid=(1, 1, 9), seed=1),
        Request(["a red apple"], "image", WARM, guidance=3.0, seed=2),
        Request([Part("")], "image", grid=(1, 1, 3), seed=3),
        Request(["a very long prompt, longer than all of the others, with many words"], "image", guidance=1.0, seed=4),
        Request([picture(2), "and", picture(3), "what is it?"], "text", GREEDY, grid=(1, 1, 6), seed=5),
        Request([picture(2), "name"], "text", WARM, guidance=2.0, grid=(1, 1, 7), seed=6),
        Request(["edit", picture(4), "to be green"], "image", WARM, guidance=Guidance(2.0, picture=1.5), seed=7),
        Request([Part("")], "text", Sampling(0.7, repetition_penalty=1.5), grid=(1, 1, 1), seed=8),
        Request(["a cat"], ("text", "image", "text"), WARM, grid=((1, 1, 3), None, (1, 1, 4)), seed=9),
        Request(["a cat"], ("image", "image"), WARM, guidance=Guidance(2.0, negative="a dog", interval=(0.2, 0.7)), seed=10),
        Request([picture(2), "and", picture(3), "what else?"], "text", WARM, grid=(1, 1, 12), seed=11),
        Request(["say something"], "text", Sampling(1.0, presence_penalty=1.0, bias=((5, 2.0),)), grid=(1, 1, 20), seed=12),
    ]


@pytest.mark.parametrize("mixes", [20, pytest.param(500, marks=pytest.mark.long)])
def test_alone_is_in_any_batch(mixes):
    """Whoever is beside it, whenever it joins, and whether somebody else has read its prompt: the same ids of the same probability."""
    draw, alone = random.Random(0), [run(GPT, [request])[0] for request in pool()]
    for _ in range(mixes):
        chosen = [draw.randrange(len(alone)) for _ in range(draw.randint(2, 9))]
        engine = Engine(GPT, batch=draw.randint(1, 6), keep=draw.choice([0, 300]))
        results = engine.run([pool()[n] for n in chosen])
        assert [result.ids for result in results] == [alone[n].ids for n in chosen]
        assert max(abs(result.log_probability - alone[n].log_probability) for result, n in zip(results, chosen, strict=True)) < 1e-3
        assert not engine.rows and not engine.branches and not engine.waiting and not engine.cache.used_R.any()


@torch.no_grad()
def vectors(documents) -> list[torch.Tensor]:
    """The vectors of whole documents, each in a pass of its own, without a cache."""
    return [GPT(pack([document], {}))[0] for document in documents]


@contextmanager
def passes(monkeypatch):
    """The number of positions of every pass, and of every call of the encoder of pictures."""
    read, seen = [], []
    plain, encode = type(GPT).forward, GPT.encoders["image"].forward

    def counting(self, stream, cache=None, backend="sdpa"):
        read.append(int((stream.document_BT > 0).sum()))
        return plain(self, stream, cache, backend)

    def looking(prepared):
        seen.append(len(prepared.grids))
        return encode(prepared)

    with monkeypatch.context() as patch:
        patch.setattr(type(GPT), "forward", counting)
        patch.setattr(GPT.encoders["image"], "forward", looking)
        yield read, seen


# --- several segments in a row --------------------------------------------------------------------------------------------------------


def test_words_and_pictures_in_one_row(monkeypatch):
    """Every segment is what a request for it alone writes, given what stands before it; nothing is read twice."""
    request = Request(["a cat"], ("text", "image", "text"), GREEDY, guidance=1.0, grid=((1, 1, 5), None, (1, 1, 6)))
    with passes(monkeypatch) as (read, _):
        result = run(GPT, [request])[0]
    prompt = sum(map(len, GPT.write([Part("a cat")])))
    assert sum(read) == prompt + len(result.ids) - 2 and len(result.parts) == 3  # but the last id that was chosen, and the end behind it
    given = [Part("a cat")]
    for part, (to, grid), value in zip(result.parts, request.wanted, result.value, strict=True):
        alone = run(GPT, [Request(given, to, GREEDY, guidance=1.0, grid=grid)])[0]
        assert np.array_equal(alone.codes, part.codes) and part.value == value == alone.value
        given.append(part)
    assert isinstance(result.value[1], Image.Image) and sum(result.usage.written.values()) == len(result.ids)
    assert sum(map(len, GPT.write(given))) == prompt + len(result.ids)


def test_the_model_says_when_a_picture_begins():
    """It writes words, and a picture where it begins one; then words again, until it ends."""
    gpt = tiny_gpt()
    begin = gpt.ports["image"].writes.begin
    with torch.no_grad():
        gpt.table.weight[begin] *= 2.5
    found = [run(gpt, [Request(["a cat"], "any", WARM, seed=seed)])[0] for seed in range(12)]
    kinds = ["".join("t" if isinstance(value, str) else "p" for value in result.value) for result in found]
    assert any("p" in kind for kind in kinds) and any("p" not in kind for kind in kinds) and "pt" in "".join(kinds)
    for result in found:
        assert [part.codes.shape for part in result.parts if not isinstance(part.value, str)] == [(1, 2, 4)] * result.ids.count(begin)
        assert sum(result.usage.written.values()) == len(result.ids)
    seen = next(result for result, kind in zip(found, kinds, strict=True) if "p" in kind)
    streamed = [event.part.value for event in Engine(gpt).stream(Request(["a cat"], "any", WARM, seed=found.index(seen))) if isinstance(event, Ended)]
    assert [value for value in streamed if isinstance(value, str)] == [value for value in seen.value if isinstance(value, str)]


def test_several_segments_of_the_wrong_kind():
    for wrong, message in [
        ({"to": ("text", "smell")}, "to='smell': this model writes text, image"),
        ({"to": ("text", "image"), "grid": ((1, 1, 2),)}, "1 sizes for 2 segments"),
        ({"to": ("text",) * 9, "grid": ((1, 1, 30),) * 9}, "positions to read and write, this model holds 256"),
        ({"to": "image", "stop": ("end",)}, "image holds no words that could stop it"),
    ]:
        with pytest.raises(InputError, match=message):
            run(GPT, [Request(["a cat"], **wrong)])


# --- stop rules -----------------------------------------------------------------------------------------------------------------------


def test_words_that_stop_a_text():
    whole = GPT.generate(["a cat"], sampling=GREEDY, grid=(1, 1, 30))
    words = whole[len(whole) // 2 : len(whole) // 2 + 3]
    request = Request(["a cat"], sampling=GREEDY, grid=(1, 1, 30), stop=("never said", words))
    stopped = run(GPT, [request])[0]
    assert stopped.value == whole[: whole.find(words)] and len(stopped.ids) < 30 and words in GPT.ports["text"].codec.decode(stopped.codes)
    assert "".join(event.text for event in Engine(GPT).stream(request) if isinstance(event, Delta)) == stopped.value
    assert run(GPT, [replace(request, stop=("never said",))])[0].value == whole
    both = replace(request, to=("text", "image"), grid=((1, 1, 5), None), stop=("never said",))
    assert run(GPT, [both])[0].value[0] == whole[: len(run(GPT, [both])[0].value[0])]


# --- what is told on the way ----------------------------------------------------------------------------------------------------------


def test_streamed_is_whole():
    for request in pool():
        result, events = run(GPT, [request])[0], list(Engine(GPT).stream(request))
        assert isinstance(events[0], Begun) and isinstance(events[-1], Done) and events[-1].result.ids == result.ids
        ended = [event.part for event in events if isinstance(event, Ended)]
        assert len(ended) == len(request.wanted) == sum(isinstance(event, Begun) for event in events)
        text = "".join(event.text for event in events if isinstance(event, Delta))
        assert text == "".join(part.value for part in ended if isinstance(part.value, str))
        for event in events:
            if isinstance(event, Preview):
                assert event.value.size == (16, 8) and (event.rows, event.of) == (1, 2)
        assert any(isinstance(event, Preview) for event in events) == any((1, 2, 4) == getattr(part.codes, "shape", 0) for part in ended)


def test_the_first_event_comes_at_once_and_the_next_within_two_steps():
    engine, steps = Engine(GPT), []
    plain = engine.step
    engine.step = lambda: steps.append(1) or plain()
    told = []
    letter = int(GPT.ports["text"].codec.encode("a")[0])
    for event in engine.stream(Request(["a cat"], "text", Sampling(0.0, bias=((letter, 1000.0),)), grid=(1, 1, 8))):
        told.append((len(steps), type(event)))
    assert told[0] == (0, Begun) and next(n for n, kind in told if kind is Delta) <= 2


@pytest.mark.parametrize(
    "chosen",
    [[1], [3], [1, 6], [3, 3, 3], [1, 3], [2, 2, 7], [9, 9], [5, 5, 5], [0, 10], ["ends"] * 4, ["alike"] * 5],
    ids=lambda chosen: str(chosen),
)
def test_many_steps_together_are_steps_one_by_one(monkeypatch, chosen):
    """The same ids, of the same probability, in as many passes; texts that end earlier than others among them."""
    together, drawn, passes = [], {}, []

    def ending(logits_RV, sampling, generators):
        index_R = choose(logits_RV, sampling, generators)
        for n, seed in enumerate(generator.initial_seed() for generator in generators):
            drawn[seed] = drawn.get(seed, 0) + 1
            if "ends" in chosen and drawn[seed] == 3 + seed:
                index_R[n] = GPT.ports["text"].writes.end
        return index_R

    monkeypatch.setattr("mmgpt.generate.engine.choose", ending)
    monkeypatch.setattr("mmgpt.generate.stretch.choose", ending)
    monkeypatch.setattr("mmgpt.generate.stretch.HELD", 2_000)  # of some steps together, several times
    monkeypatch.setattr("mmgpt.generate.engine.take", lambda *given: together.append(given[1]) or take(*given))
    monkeypatch.setattr(GPT.decoder, "forward", lambda *given, forward=GPT.decoder.forward: passes.append(1) or forward(*given))
    own = {"ends": Request(["a cat"], "text", WARM, grid=(1, 1, 30)), "alike": Request(["a cat"], "image", WARM, guidance=2.0)}
    requests = [replace(own[n], seed=i) if n in own else pool()[n] for i, n in enumerate(chosen)]
    engine = Engine(GPT)
    rows = [engine.submit(request) for request in requests]
    while engine.step():
        assert not together
    count, passes[:] = len(passes), []
    drawn.clear()
    for row, result in zip(rows, Engine(GPT).run(requests), strict=True):
        assert row.result.ids == result.ids and row.result.usage == result.usage
        assert row.result.log_probability == pytest.approx(result.log_probability, rel=1e-6)
    assert "ends" not in chosen or [len(row.result.ids) for row in rows] == [3, 4, 5, 6]
    assert len(passes) == count and (together or chosen in ([1, 3], [1, 6], [2, 2, 7], [0, 10]))


def test_whoever_stops_listening_frees_the_row_and_nobody_is_moved():
    engine, others = Engine(GPT), [pool()[n] for n in (0, 3, 5)]
    wanted = [run(GPT, [request])[0].ids for request in others]
    rows = [engine.submit(request) for request in others]
    stream = engine.stream(pool()[8])
    next(stream), next(stream)
    assert len(engine.rows) == 4
    stream.close()
    assert len(engine.rows) == 3 and len(engine.branches) == 4
    while engine.step():
        pass
    assert [row.result.ids for row in rows] == wanted
    waiting = Engine(GPT, batch=1)
    first, second = waiting.submit(pool()[0]), waiting.submit(pool()[1])
    waiting.step()
    waiting.cancel(second)
    assert list(waiting.waiting) == [] and waiting.rows == [first]


# --- damage -------------------------------------------------------------------------------------------------------------------------------


def test_scores_that_are_no_numbers_end_their_row_alone(monkeypatch):
    """Those beside it go on, bit for bit as without it, also in the place that it held."""
    gpt = tiny_gpt()
    encode, poison = gpt.encoders["image"].forward, gpt.encoders["image"].prepare(picture(99)).values_NF

    def sick(prepared):
        out = encode(prepared)
        bad = (prepared.values_NF[: len(poison)] - poison).abs().max() == 0 if len(prepared.grids) == 1 else False
        return out * float("nan") if bad else out

    gpt.encoders["image"].forward = sick
    good = [request for request in pool() if all(not isinstance(part, Image.Image) for part in request.parts)]
    wanted = [run(gpt, [request])[0].ids for request in good]
    engine = Engine(gpt, batch=4)
    rows = [engine.submit(request) for request in [good[0], Request([picture(99), "caption:"], "text"), *good[1:]]]
    while engine.step():
        pass
    assert "the weights are damaged" in str(rows[1].error) and rows[1].result is None
    assert [row.result.ids for n, row in enumerate(rows) if n != 1] == wanted
    long, short = pool()[3], Request([Part("")], "text", GREEDY, grid=(1, 1, 9))  # the short one comes into its place, beside one that reads farther
    wanted, narrow = [run(gpt, [request])[0].ids for request in (long, short)], Engine(gpt, batch=2)
    rows = [narrow.submit(request) for request in (replace(long, to=("image", "image")), Request([picture(99), "caption:"], "text"), short)]
    while narrow.step():
        pass
    assert rows[1].error is not None and rows[0].result.ids[: len(wanted[0])] == wanted[0] and rows[2].result.ids == wanted[1]
    with pytest.raises(InputError, match="the weights are damaged"):
        list(engine.stream(Request([picture(99), "caption:"], "text")))


def test_a_result_without_a_value_is_one_rows_error(monkeypatch):
    gpt = tiny_gpt()

    def refusing(codes):
        raise InputError("no picture today")

    monkeypatch.setattr(gpt.ports["image"].codec, "decode", refusing)
    engine = Engine(gpt)
    rows = [engine.submit(Request(["a cat"], to, grid=grid)) for to, grid in (("text", (1, 1, 20)), ("image", None))]
    while engine.step():
        pass
    assert rows[0].error is None and len(rows[0].result.ids) > 10 and str(rows[1].error) == "no picture today"
    with pytest.raises(InputError, match="no picture today"):
        engine.run([Request(["a cat"], "image")])


# --- what was read already ------------------------------------------------------------------------------------------------------------


def test_one_picture_and_twenty_questions(monkeypatch):
    """The picture and the words before the questions are read once; the answers are those of each question alone."""
    start = [picture(5), "this is a long beginning that all of the questions have in common"]
    requests = [Request([*start, f"question number {n}"], sampling=GREEDY, grid=(1, 1, 4)) for n in range(20)]
    alone = [run(GPT, [request])[0].ids for request in requests]
    with passes(monkeypatch) as (read, seen):
        found = run(GPT, requests)
    assert [result.ids for result in found] == alone and seen == [1]
    common = sum(map(len, GPT.write([Part(part) for part in start])))
    assert sum(read[:2]) < common + 20 * (len(GPT.write([Part("question number 11")])[1]) + 2)


def test_a_conversation_reads_only_what_is_new(monkeypatch):
    """What was given, and what was written, stays: words, a picture that was drawn, and one that was shown."""
    engine, parts = Engine(GPT, keep=1000), [Part(picture(6))]
    for turn, (words, to) in enumerate([("draw it for me, please", "image"), ("what is on it, in your words?", "text"), ("again", "image")]):
        parts = [*parts, Part(words)]
        request = Request(parts, to, WARM, guidance=1.0, seed=turn, grid=(1, 1, 6) if to == "text" else None)
        fresh = run(GPT, [request])[0]
        with passes(monkeypatch) as (read, seen):
            found = engine.run([request])[0]
        assert found.ids == fresh.ids and abs(found.log_probability - fresh.log_probability) < 1e-4
        assert seen == ([1] if turn == 0 else [])
        if turn:  # the last ids of the answer before, the new words, and the answer
            assert sum(read) <= 2 + len(GPT.write([Part(words)])[1]) + 1 + len(found.ids)
        parts += found.parts
    assert sum(len(key) for key, _ in engine.prefixes.held.values()) <= 1000


def test_what_other_weights_have_read_is_not_used():
    gpt = tiny_gpt()
    engine, request = Engine(gpt, keep=1000), Request([picture(6), "what is on it, in so many words?"], grid=(1, 1, 4))
    engine.run([request])
    assert engine.prefixes.held
    with torch.no_grad():
        for p in gpt.decoder.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    fresh, found = run(gpt, [request])[0], engine.run([request])[0]
    assert found.ids == fresh.ids and abs(found.log_probability - fresh.log_probability) < 1e-5


def test_long_and_short_beginnings_in_one_pass():
    """What is known of two documents may differ by more than the cache has room for beside what is new."""
    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    start = [picture(1), "a beginning of so many words"]
    requests = [Request([*start, *words], grid=(1, 1, 4)) for words in ([long], [long, "?"], [long[::-1]])]
    assert [result.ids for result in run(GPT, requests)] == [run(GPT, [request])[0].ids for request in requests]


def test_an_error_in_the_midst_of_a_step_ends_all_rows_and_the_engine_goes_on(monkeypatch):
    engine = Engine(GPT)
    rows, wanted = [engine.submit(request) for request in pool()[:4]], run(GPT, [pool()[0]])[0].ids
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(GPT.decoder, "forward", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    assert all("ask again" in str(row.error) for row in rows) and not engine.rows and not engine.branches
    assert engine.run([pool()[0]])[0].ids == wanted


def test_what_documents_share():
    def key(*parts):
        return key_of(GPT.write([part if isinstance(part, Part) else Part(part) for part in parts]))

    a, b = key(picture(1), "a cat"), key(picture(1), "a dog")
    n = len(key(picture(1)))
    assert n < shared(a, b) < len(a) and shared(a, a) == len(a) and shared(key("a cat"), key("a dog")) < 4
    assert shared(a, key(picture(2), "a cat")) == 2  # the document's begin and the picture's: no part of the picture
    assert shared(key("a", picture(1)), key("b", picture(1))) == 1
    assert [cut(a, m) for m in range(n)] == [0, 1, 2, *[2] * (n - 4), n - 1]
    assert leaders([a, b, key("x"), a]) == [(-1, 0), (-1, 0), (-1, 0), (-1, 0)]  # too little to be worth it
    long = "many words that are the same in both, and then some more of them"
    c, d = key(long, "one"), key(long, "two")
    assert leaders([a, c, d, c]) == [(-1, 0), (-1, 0), (1, shared(c, d)), (1, len(c))]


@torch.no_grad()
def test_the_rest_of_a_document_is_read_as_in_the_whole():
    document = GPT.write([Part(picture(1)), Part("some words"), Part(picture(2), True, np.zeros((2, 4), int)), Part("more")])
    whole = vectors([document])[0]
    for n in [1, 2, 7, 9, 12, 20, len(whole) - 1]:
        n = cut(key_of(document), n)
        left, base, block = rest(document, n)
        cache = GPT.decoder.new_cache(1, len(whole))
        head = pack([document], {})
        assert sum(map(len, left)) == len(whole) - n
        first = head if n == len(whole) else lay([[document]], {}, len(whole))
        GPT(first, cache)
        cache.used_R[:] = n
        assert gap(GPT(lay([[left]], {}, len(whole) - n, [(base, block)]), cache)[0], whole[n:]) < 1e-5


def test_only_so_much_is_kept():
    held, kept = GPT.decoder.new_cache(1, 40), Prefixes(50)
    keys = [np.full((30, 5), n) for n in range(3)]
    for key in keys:
        kept.put(key, held.held(0, 30))
    assert len(kept.held) == 1 and kept.find(keys[2])[0] == 30 and kept.find(keys[0]) == (0, None)
    longer = np.concatenate([keys[2], keys[0][:5]])
    kept.put(longer, held.held(0, 35))
    assert len(kept.held) == 1 and kept.find(keys[2])[0] == 30
    kept.put(np.zeros((51, 5), int), held.held(0, 40))
    assert len(kept.held) == 1


# --- guidance and sampling ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_guidance_away_from_words_and_from_pictures(monkeypatch):
    """The first scores of each form, from whole passes: u + picture (w - u) + scale (c - w)."""
    parts = [Part(picture(1)), Part("make it red")]
    first = first_codes()

    def scores(sample):
        written = GPT.ports["image"].writes.script((1, 2, 4))
        forced = replace(written.write(np.full(8, first.start)), ids_N=written.first_N)
        h = GPT(pack([[*GPT.write(sample), forced]], {}))[0]
        return GPT.heads["image"].logits(h[len(h) - len(forced)][None])[0]

    c, w, u = scores(parts), scores([parts[0], Part("")]), scores([Part("")])
    n = scores([parts[0], Part("a blue dog")])
    for seed, (guidance, wanted) in enumerate([
        (Guidance(3.0), w + 3 * (c - w)),
        (Guidance(3.0, negative="a blue dog"), n + 3 * (c - n)),
        (Guidance(3.0, picture=2.0), u + 2 * (w - u) + 3 * (c - w)),
        (Guidance(3.0, interval=(0.5, 1.0)), c),
        (Guidance(3.0, rescale=1.0), (w + 3 * (c - w)) * c.std() / (w + 3 * (c - w)).std()),
    ]):  # fmt: skip
        with recorded(monkeypatch) as found:
            run(GPT, [Request(parts, "image", GREEDY, guidance, seed)])
        assert gap(found[seed][0], wanted) < 1e-4, guidance
    with recorded(monkeypatch) as found:  # the second half is guided
        run(GPT, [Request(parts, "image", GREEDY, Guidance(3.0, interval=(0.5, 1.0)), 1), Request(parts, "image", GREEDY, 1.0, 2)])
    same = [gap(a, b) < 1e-4 for a, b in zip(found[1], found[2], strict=True)]
    assert same[:3] == [True] * 3 and not all(same)


@torch.no_grad()
@pytest.mark.parametrize("asked", [Guidance(3.0), Guidance(3.0, negative="a blue dog"), Guidance(3.0, picture=2.0)])
def test_words_that_a_row_wrote_guide_what_comes_behind_them(asked, monkeypatch):
    """What guidance compares with has no words, given or written; alone, beside other rows, and in the last row of the cache."""
    given = [Part(picture(1)), Part("name:")]
    request = Request(given, ("text", "image"), GREEDY, asked, 1, grid=((1, 1, 3), None))
    others = [Request(["a cat"], "image", WARM, guidance=2.0, seed=2), Request(["a very long prompt of words"], "text", grid=(1, 1, 20), seed=3)]
    words, drawn = run(GPT, [replace(request, to=("text", "image"))])[0].parts

    def scores(sample):
        stream = pack([GPT.write([*sample, replace(drawn, learn=True)])], {})
        h, codes = GPT(stream)[0], stream.ids_BT[0] - first_codes().start
        at = [n for n, code in enumerate(codes.tolist()) if 0 <= code < len(first_codes())]
        return GPT.heads["image"].logits(h[[n - 1 for n in at]])

    c, w, u = scores([*given, words]), scores([given[0], Part(""), Part("")]), scores([Part(""), Part("")])
    n = scores([given[0], Part("a blue dog"), Part("")])
    wanted = n + 3 * (c - n) if asked.negative else u + 2 * (w - u) + 3 * (c - w) if asked.picture else w + 3 * (c - w)
    for together in ([request], [request, *others], [*others, request]):
        with recorded(monkeypatch) as found:
            run(GPT, together)
        assert gap(torch.stack(found[1][-len(wanted) :]), wanted) < 1e-4


def first_codes():
    return GPT.ports["image"].writes.ids


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": 101.0}, "guidance=101.0: use 0 to 100"),
        ({"scale": 2.0, "picture": -1.0}, "guidance of pictures=-1.0"),
        ({"scale": 2.0, "rescale": 2.0}, "rescale=2.0: use 0 to 1"),
        ({"scale": 2.0, "interval": (0.5, 0.5)}, "interval"),
    ],
)
def test_guidance_settings_out_of_range(wrong, message):
    with pytest.raises(GuidanceError, match=message):
        Guidance(**wrong)


def test_guidance_by_pictures_where_there_are_none():
    with pytest.raises(GuidanceError, match="nothing but words"):
        run(GPT, [Request(["a cat"], "image", guidance=Guidance(2.0, picture=2.0))])


def test_biases():
    forced = run(GPT, [Request(["a cat"], "image", Sampling(1.0, bias=((7, 500.0),)))])[0]
    assert set(forced.codes.flatten().tolist()) == {7}
    barred = run(GPT, [Request(["a cat"], "image", Sampling(1.0, bias=tuple((n, -1000.0) for n in range(15))), guidance=1.0)])[0]
    assert set(barred.codes.flatten().tolist()) == {15}
    for wrong in (((1, 2000.0),), ((-1, 1.0),)):
        with pytest.raises(InputError, match="bias="):
            Sampling(bias=wrong)


def test_rows_draw_their_own_numbers():
    """A row's noise is that of its own generator, whatever stands beside it."""
    logits, generators = torch.randn(4, 50), [torch.Generator().manual_seed(n) for n in range(4)]
    together = choose(logits, WARM, generators)
    alone = [choose(logits[n : n + 1], WARM, [torch.Generator().manual_seed(n)])[0] for n in range(4)]
    assert together.tolist() == [int(index) for index in alone]


# --- guesses --------------------------------------------------------------------------------------------------------------------------


def test_guessing_changes_nothing_but_the_number_of_steps(monkeypatch):
    """Whatever is asked for, alone and together; a text that repeats itself takes fewer passes."""
    plain, guessing = pool(), [replace(request, guess=3) for request in pool()]
    wanted = run(GPT, plain)
    for found in (run(GPT, guessing), [run(GPT, [request])[0] for request in guessing]):
        assert [result.ids for result in found] == [result.ids for result in wanted]
        assert max(abs(a.log_probability - b.log_probability) for a, b in zip(found, wanted, strict=True)) < 1e-3
    repeating, steps = Request(["a cat"], sampling=GREEDY, grid=(1, 1, 40)), []
    for guess in (0, 4):
        with passes(monkeypatch) as (read, _):
            steps.append(run(GPT, [replace(repeating, guess=guess)])[0].ids)
        steps.append(len(read))
    assert steps[0] == steps[2] and steps[3] < 0.6 * steps[1]
    assert [event.result.ids for event in Engine(GPT).stream(replace(repeating, guess=4)) if isinstance(event, Done)] == [steps[0]]


def test_how_it_went_on():
    assert went_on([1, 2, 3, 9, 1, 2, 3]) == [9, 1, 2, 3] and went_on([5, 1, 2, 7, 2]) == [7, 2] and went_on([1, 2, 3]) == []
    assert went_on([4, 4, 4]) == [4] and went_on([1]) == [] and went_on([]) == []
    with pytest.raises(InputError, match="guess=65"):
        Request(["a"], guess=65)


# --- beams ----------------------------------------------------------------------------------------------------------------------------


def likeliest(words: str, ids: list[int], limit: int) -> tuple[float, tuple[int, ...]]:
    """Of all texts of at most `limit` of these ids, an end behind the shorter ones, the one of the highest mean log-probability: tried one by one."""
    end, head, found = GPT.ports["text"].writes.end, GPT.heads["text"], []
    for count in range(limit + 1):
        for chosen in product(ids, repeat=count):
            text = [*chosen, end] if count < limit else list(chosen)
            written = GPT.ports["text"].writes.script((1, 1, limit)).write(np.array([*chosen, *[0] * (limit - count)]))
            h = GPT(pack([[*GPT.write([Part(words)]), written]], {}))[0][-len(written) - 1 :]
            log = head.logits(h).log_softmax(-1)
            score = sum(float(log[n, id - head.ids.start]) for n, id in enumerate(text))
            found.append((score / max(1, len(text)), tuple(text)))
    return max(found)


@torch.no_grad()
def test_beams_find_the_likeliest_text():
    """With as many beams as there are texts nothing is missed. The end is made likely, and all but two ids impossible."""
    two, end = [97, 110], GPT.ports["text"].writes.end
    bias = tuple((id, -1000.0) for id in range(len(GPT.heads["text"].ids)) if id not in (*two, end))
    plain = GPT.heads["text"].logits

    def narrow(h_ND, rows=None, /):
        logits = plain(h_ND, rows)
        return logits.index_add(-1, torch.tensor([id for id, _ in bias]), torch.full((len(h_ND), len(bias)), -1000.0))

    GPT.heads["text"].logits = narrow
    try:
        for words in ("a cat", "a red apple", "dog"):
            score, ids = likeliest(words, two, 3)
            found = run(GPT, [Request([words], grid=(1, 1, 3), beams=16)])[0]
            assert found.ids[: len(ids)] == ids and abs(found.log_probability / len(ids) - score) < 1e-4
    finally:
        del GPT.heads["text"].logits


def test_beams_of_the_wrong_kind():
    wrongs = [{"to": "image"}, {"guidance": 2.0}, {"stop": ("a",)}, {"to": ("text", "text")}, {"to": "any"}, {"sampling": WARM}, {"guess": 2}]
    for wrong in wrongs:
        engine = Engine(GPT)
        with pytest.raises(InputError, match="beams=3: beams follow one text"):
            engine.run([Request(["a"]), Request(["a cat"], **({"to": "text"} | wrong), beams=3)])
        assert not engine.waiting and not engine.rows
    for wrong in ({"beams": 2}, {"to": ("text", "text")}, {"to": "any"}):
        with pytest.raises(InputError, match="best_of=2 of"):
            Request(["a"], **wrong, best_of=2)
    for number in (0, 65):
        with pytest.raises(InputError, match=f"beams={number}"):
            Request(["a"], beams=number)
    with pytest.raises(InputError, match="use Engine.run"):
        Engine(GPT).submit(Request(["a"], beams=2))


# --- weights of few bits --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # torchao's own
@pytest.mark.parametrize(("weights", "bound"), [("int8", 0.03), ("int4", 0.5)])
def test_rounded_weights_are_nearly_as_good(weights, bound):
    """Scores within a share of the largest; what is written is whole."""
    pytest.importorskip("torchao")
    stream = pack([GPT.write([Part(picture(1)), Part("caption:"), Part("a cat")])], {})
    small = quantised(tiny_gpt(), weights)
    h, rounded = (gpt.heads["text"].logits(gpt(stream)[0]) for gpt in (GPT, small))
    assert 0 < gap(h, rounded) < bound * float(h.abs().max())
    assert run(small, [pool()[1]])[0].codes.shape == (1, 2, 4)
    assert [result.ids for result in run(small, pool()[:4])] == [run(small, [request])[0].ids for request in pool()[:4]]


def test_weights_that_cannot_be_rounded(monkeypatch):
    with pytest.raises(InputError, match="weights='int3': use one of int8, int4"):
        quantised(GPT, "int3")
    monkeypatch.setattr("mmgpt.generate.quantised.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs torchao.*mmgpt\[quant\]"):
        quantised(GPT, "int8")
    monkeypatch.undo()
    pytest.importorskip("torchao")
    with pytest.raises(InputError, match="reads 48 channels: int4 needs multiples of 32"):
        quantised(tiny_gpt(mlp_width=48), "int4")


# --- compiled -------------------------------------------------------------------------------------------------------------------------


COMPILED = """
import torch
from dataclasses import replace
from test_engine import GPT, pool
from mmgpt.generate import compiled
from mmgpt.generate.compiled import Kernels
from mmgpt.generate.engine import Engine
engine, plain = Engine(GPT, compile=True), Engine(GPT)
for some in ([0], [1], [3], [3], [0, 1, 2, 3], [4, 5, 6, 7, 8], list(range(12))):
    requests = [pool()[n] for n in some]
    for one, other in zip(engine.run(requests), plain.run(requests), strict=True):
        assert one.ids == other.ids and abs(one.log_probability - other.log_probability) < 1e-3, some
assert {("body", True), ("body", False)} < engine.advance.programs.keys()
compiled.packs = lambda *given: True  # several rows by copies of the weights, whatever is faster here
del engine.advance.programs["body", False]
for some in ([3], [4, 5, 6, 7, 8]):
    requests = [pool()[n] for n in some]
    before = engine.run(requests)
    for change in (lambda weight: weight.mul_(0.9), lambda weight: setattr(weight, "data", weight.data * 1.05)):
        with torch.no_grad():
            for weight in GPT.parameters():
                change(weight)
        for one, other, old in zip(engine.run(requests), plain.run(requests), before, strict=True):
            assert one.ids == other.ids and abs(one.log_probability - other.log_probability) < 1e-3, some
            assert one.log_probability != old.log_probability, some
assert engine.advance.programs["body", False].packed and not engine.advance.programs["body", True].packed
kernels = Kernels(engine.advance.body)  # what a GPU runs
engine.advance.programs.update({("body", one): kernels for one in (True, False)})
for some in ([3], [4, 5, 6, 7, 8]):
    requests = [pool()[n] for n in some]
    for one, other in zip(engine.run(requests), plain.run(requests), strict=True):
        assert one.ids == other.ids and abs(one.log_probability - other.log_probability) < 1e-3, some
assert len(kernels.seen) > 1
"""


@pytest.mark.long
def test_compiled_is_eager():
    """Row by row and together, and after the weights changed. In a process of its own: the shapes that tests check are not what is compiled."""
    here = Path(__file__).parent
    environment = os.environ | {"JAXTYPING_DISABLE": "1", "PYTHONPATH": f"{here}:{here.parent}"}
    subprocess.run([sys.executable, "-c", COMPILED], check=True, env=environment, timeout=900)
