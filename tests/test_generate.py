"""The engine: a row's vectors are the same alone, in any batch, cached or recomputed; what cannot be done is said before it is begun."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import any_gpt, gap, picture, tiny_gpt

from mmgpt.encoders.text import TextCodec
from mmgpt.errors import GuidanceError, InputError
from mmgpt.generate import best, engine, stretch
from mmgpt.generate.best import tries
from mmgpt.generate.engine import run
from mmgpt.generate.guidance import guide, unconditional_form, without_condition
from mmgpt.generate.request import Request
from mmgpt.generate.sampling import GREEDY, Sampling, choose, filtered, penalised
from mmgpt.model import Port
from mmgpt.pack import pack
from mmgpt.types import Part, Written

WARM = Sampling(temperature=1.0, top_p=0.95)
GPT = tiny_gpt()


def requests() -> list[Request]:
    """Words and pictures, guided or not, with prompts of all lengths. Each has a seed of its own."""
    return [
        Request([picture(1), "caption:"], "text", WARM, seed=11, grid=(1, 1, 9)),
        Request(["a red apple"], "image", WARM, guidance=3.0, seed=12),
        Request([Part("")], "image", seed=13, grid=(1, 1, 3)),
        Request(["a very long prompt, longer than all of the others, with many words"], "image", guidance=1.0, seed=14),
        Request([picture(2), "and", picture(3), "what is it?"], "text", GREEDY, seed=15, grid=(1, 1, 6)),
        Request([picture(2), "name"], "text", WARM, guidance=2.0, seed=16, grid=(1, 1, 7)),
        Request(["edit", picture(4), "to be green"], "image", WARM, guidance=0.5, seed=17),
        Request([Part("")], "text", Sampling(0.7, repetition_penalty=1.5), seed=18, grid=(1, 1, 1)),
    ]


@contextmanager
def recorded(monkeypatch):
    """The logits of every draw, by the request's seed."""
    found: dict[int, list[torch.Tensor]] = {}

    def noting(logits_RV, sampling, generators):
        for logits_V, generator in zip(logits_RV, generators, strict=True):
            found.setdefault(generator.initial_seed(), []).append(logits_V.clone())
        return choose(logits_RV, sampling, generators)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "choose", noting)
        patch.setattr(stretch, "choose", noting)
        yield found


def test_batched_is_alone(monkeypatch):
    with recorded(monkeypatch) as together:
        results = run(GPT, requests())
    with recorded(monkeypatch) as alone:
        singles = [run(GPT, [request])[0] for request in requests()]
    with recorded(monkeypatch) as backwards:
        turned = run(GPT, requests()[::-1])[::-1]
    for request, *found in zip(requests(), results, singles, turned, strict=True):
        one, two, three = (torch.cat(logits[request.seed]) for logits in (together, alone, backwards))
        assert gap(one, two) < 1e-5 and gap(three, two) < 1e-5, request
        assert len({result.ids for result in found}) == 1
        assert max(abs(result.log_probability - found[0].log_probability) for result in found) < 1e-4


def test_more_requests_than_a_batch_holds(monkeypatch):
    whole = run(GPT, requests())
    monkeypatch.setattr(engine, "BATCH", 3)
    done = []
    parts = run(GPT, requests(), progress=lambda n, of: done.append((n, of)))
    assert [result.ids for result in parts] == [result.ids for result in whole]
    assert done[-1] == (8, 8) and [n for n, _ in done] == sorted(n for n, _ in done)


@torch.no_grad()
def recomputed(request: Request, result) -> tuple[torch.Tensor, float]:
    """The logits of every draw, all in a row, and the ids' log-probability: from whole passes over what was read and written, without a cache."""
    port, head = GPT.ports[request.to], GPT.heads[request.to]
    script = port.writes.script(request.grid or port.grid)
    parts = [part if isinstance(part, Part) else Part(part) for part in request.parts]
    ids, n = np.array(result.ids), len(result.ids)
    written = Written(ids, np.zeros(n, bool), np.zeros(n, bool), script.place_N3[:n], 0)
    guidance = 1.0 if request.guidance is None else request.guidance
    vectors = []
    for given in (parts, without_condition(parts)) if guidance != 1 else (parts,):
        h_TD = GPT(pack([[*GPT.write(given), written]], {}))[0]
        vectors.append(h_TD[len(h_TD) - n - 1 : -1])  # the vectors that predict the ids
    steps, score = [], 0.0
    for slot in np.flatnonzero(script.open_N[:n]).tolist():
        logits = [head.logits(h[slot][None])[0] for h in vectors]
        steps.append(logits[0] if len(logits) == 1 else logits[1] + guidance * (logits[0] - logits[1]))
        score += float(steps[-1].log_softmax(-1)[ids[slot] - head.ids.start])
    return torch.cat(steps), score


def test_cached_is_recomputed(monkeypatch):
    with recorded(monkeypatch) as found:
        results = run(GPT, requests())
    for request, result in zip(requests(), results, strict=True):
        logits, score = recomputed(request, result)
        assert gap(torch.cat(found[request.seed]), logits) < 1e-4, request  # logits of 10 to 20
        assert abs(result.log_probability - score) < 1e-3


def test_a_result_says_what_it_wrote():
    words, drawn = run(GPT, [requests()[0], requests()[1]])
    end = GPT.ports["text"].writes.end
    assert isinstance(words.value, str) and words.ids[-1] == end and list(words.codes) == [id for id in words.ids if id != end]
    assert isinstance(drawn.value, Image.Image) and drawn.codes.shape == (1, 2, 4) and len(drawn.ids) == 10
    assert drawn.usage.written == {"image": 10} and sum(words.usage.read.values()) == 7 + len(GPT.write([Part("caption:")])[1])
    assert drawn.log_probability < 0


def test_another_size_is_written_when_asked_for():
    drawn, narrow = run(GPT, [Request(["a"], "image", grid=(1, 4, 6)), Request(["a"], "image", grid=(1, 1, 1))])
    assert drawn.value.size == (24, 32) and drawn.codes.shape == (1, 4, 6) and narrow.value.size == (4, 8)


def test_shortcuts():
    assert GPT.draw(["a cat", "a dog"], seed=5)[1].tobytes() == GPT.draw(["a dog"], seed=6)[0].tobytes()
    pictures = [picture(1), picture(2)]
    assert GPT.caption(pictures, grid=(1, 1, 4)) == [GPT.generate([p, "caption:"], grid=(1, 1, 4)) for p in pictures]


# --- the best of several ---------------------------------------------------------------------------------------------------------------


def read_back(image, words: str) -> float:
    """log p(words | picture), word for word, one document alone."""
    return -float(GPT.losses(pack([GPT.write([Part(image), Part("caption:"), Part(words, learn=True)])], GPT.spans))["text"].detach().sum())


def test_the_best_picture_is_the_one_whose_words_are_read_off_it_most_surely():
    asked = [Request(["a cat"], "image", seed=3, best_of=5), Request(["a red apple"], "image", seed=4), Request(["dog"], "image", seed=3, best_of=2)]
    found = run(GPT, asked)
    for request, result in zip(asked, found, strict=True):
        alone = run(GPT, [replace(one, best_of=1) for one in tries(request)])
        surest = max(alone, key=lambda one: read_back(one.value, request.parts[0]))
        assert result.ids == surest.ids and result.value.tobytes() == surest.value.tobytes()
        assert result.usage.written == {"image": 10 * request.best_of} and result.usage.read == surest.usage.read
    assert len({one.ids for one in run(GPT, tries(asked[0]))}) > 3


@pytest.mark.parametrize(("to", "asks"), [("audio", "transcribe:"), ("video", "describe:")])
def test_sounds_and_clips_are_read_back_as_their_port_asks(to, asks):
    gpt, request = any_gpt(), Request(["a red apple"], to, WARM, seed=3, best_of=4)
    alone = run(gpt, [replace(one, best_of=1) for one in tries(request)])
    read = [[Part(one.value), Part(asks), Part("a red apple", learn=True)] for one in alone]
    with torch.no_grad():
        losses = [float(gpt.losses(pack([gpt.write(sample)], gpt.spans))["text"].sum()) for sample in read]
    assert run(gpt, [request])[0].ids == alone[int(np.argmin(losses))].ids and len(set(losses)) == 4


def test_the_best_of_one_request_is_told_while_others_are_written(monkeypatch):
    """As soon as its own tries are there; and a request that fails ends no other, whatever their group."""
    short = Request([picture(1), "caption:"], "text", WARM, best_of=2, grid=(1, 1, 2))
    asked = [short, Request(["a dog"], "image", best_of=3), Request(["a cow"], "image", best_of=2)]
    told, steps = [], [0]
    wanted = [result.ids for result in run(GPT, asked)]
    engine.Engine(GPT).run(asked[:2], lambda done, of: steps.append(done), lambda number, result: told.append((number, steps[-1])))
    assert [number for number, _ in told] == [0, 1] and told[0][1] < 5

    def failing(some, came):
        if some[0].parts == ["a dog"]:
            raise InputError("none")
        return engine.Engine(GPT).run(some, None, came)

    monkeypatch.setattr(best, "AT_ONCE", 1)
    found = {}
    with pytest.raises(InputError, match="none"):
        best.best(GPT, asked, failing, lambda number, result: found.setdefault(number, result.ids))
    assert found == {0: wanted[0], 2: wanted[2]}


def test_scores_do_not_depend_on_what_is_scored_beside():
    request = Request(["a cat", Part("with a hat")], "image", seed=3)
    results = run(GPT, [replace(request, seed=n) for n in range(5)])
    together, alone = best.scores(GPT, request, results), [best.scores(GPT, request, [one])[0] for one in results]
    assert gap(together, torch.stack(alone)) < 1e-4 and len(set(together.tolist())) == 5


def test_what_cannot_be_read_back_is_compared_by_its_own_probability():
    for request in (Request([picture(1), "caption:"], sampling=WARM, seed=5, best_of=6, grid=(1, 1, 5)), Request([Part("")], "image", best_of=4)):
        likeliest = max(run(GPT, tries(request)), key=lambda one: one.log_probability)
        assert run(GPT, [request])[0].ids == likeliest.ids


@pytest.mark.parametrize("number", [0, -1, 1025])
def test_best_of_out_of_range(number):
    with pytest.raises(InputError, match=f"best_of={number}.*1 to"):
        Request(["a"], "image", best_of=number)


# --- seeds and state ------------------------------------------------------------------------------------------------------------------


def test_a_seed_decides_and_nothing_else_is_touched():
    def drawn(seed):
        return run(GPT, [Request(["a cat"], "image", seed=seed)])[0].ids

    before = torch.get_rng_state()
    GPT.train()
    first = drawn(1)
    assert GPT.training and torch.equal(before, torch.get_rng_state())
    GPT.eval()
    torch.manual_seed(99)
    assert drawn(1) == first and not GPT.training
    assert len({drawn(seed) for seed in [*range(6), 1 + 2**32, 1 + 2**40]}) == 8
    weights, fresh = GPT.state_dict(), tiny_gpt().state_dict()
    assert weights.keys() == fresh.keys() and all(torch.equal(weights[name], fresh[name]) for name in fresh)


def test_a_model_in_training_writes_as_if_it_were_not():
    """Without dropout; and every part is in its own mode again, the frozen ones in theirs."""
    gpt = tiny_gpt(dropout=0.5)
    alone = run(gpt, requests()[:2])
    gpt.decoder.blocks[0].requires_grad_(False)
    gpt.train()
    gpt.decoder.blocks[1].mlp.eval()
    modes = [part.training for part in gpt.modules()]
    assert [result.ids for result in run(gpt, requests()[:2])] == [result.ids for result in alone]
    assert [part.training for part in gpt.modules()] == modes
    assert gpt.training and gpt.decoder.blocks[1].training and not gpt.decoder.blocks[0].dropout.training and not gpt.codecs.training


def test_captions_have_seeds_of_their_own():
    four = GPT.caption([picture(1)] * 4, sampling=WARM, seed=9, grid=(1, 1, 6))
    assert len(set(four)) > 1 and four[2] == GPT.caption([picture(1)], sampling=WARM, seed=11, grid=(1, 1, 6))[0]


def test_training_mode_is_given_back_after_an_error():
    GPT.train()
    with pytest.raises(InputError):
        run(GPT, [Request(["a"], "smell")])
    assert GPT.training
    GPT.eval()


# --- guidance -------------------------------------------------------------------------------------------------------------------------


def test_guidance_formula():
    c, u = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([0.0, 4.0, 1.0])
    assert guide(c, u, 1.0).tolist() == c.tolist() and guide(c, u, 0.0).tolist() == u.tolist()
    assert guide(c, u, 3.0).tolist() == [3.0, -2.0, -5.0]


def test_guidance_of_zero_and_one(monkeypatch):
    """0 draws as if no word had been said, 1 is no guidance, whatever the sampling."""
    with recorded(monkeypatch) as found:
        run(GPT, [Request(["a cat"], "image", guidance=0.0, seed=1), Request([Part("")], "image", guidance=1.0, seed=2)])
        run(GPT, [Request(["a cat"], "image", guidance=1.0, seed=3), Request(["a cat"], "image", guidance=1.0 + 1e-6, seed=4)])
        run(GPT, [Request(["a cat"], "image", seed=5), Request(["a cat"], "image", guidance=3.0, seed=6)])
    first = {seed: logits[0] for seed, logits in found.items()}
    assert gap(first[1], first[2]) < 1e-5 and gap(first[3], first[4]) < 1e-4 and gap(first[5], first[6]) < 1e-5 and gap(first[1], first[3]) > 0.1


def test_what_is_left_out_is_given_text_only():
    sample = [Part("a"), Part(picture(1)), Part("b", learn=True), Part("")]
    bare = without_condition(sample)
    assert [part.value for part in bare] == ["", sample[1].value, "b", ""] and [part.learn for part in bare] == [False, False, True, False]
    assert unconditional_form(sample)[0].value == ""


@pytest.mark.parametrize("parts", [[Part("")], [picture(1)], [picture(1), ""], [Part("learned", learn=True)]])
def test_guidance_that_cannot_be_applied_is_refused(parts):
    with pytest.raises(GuidanceError, match="no words to leave out"):
        run(GPT, [Request(parts, "image", guidance=3.0)])
    assert run(GPT, [Request(parts, "image", grid=(1, 1, 1))])[0].log_probability == pytest.approx(
        run(GPT, [Request(parts, "image", guidance=1.0, grid=(1, 1, 1))])[0].log_probability
    )


@pytest.mark.parametrize("scale", [-0.1, 101.0, float("nan")])
def test_guidance_out_of_range(scale):
    with pytest.raises(GuidanceError, match=f"guidance={scale}"):
        run(GPT, [Request(["a"], "image", guidance=scale)])


# --- sampling -------------------------------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15]).log()


def kept(**changes) -> list[int]:
    return torch.isfinite(filtered(LOGITS[None], Sampling(**changes))[0]).nonzero().flatten().tolist()


def test_filters_on_a_known_distribution():
    assert kept() == [0, 1, 2, 3, 4]
    assert kept(top_k=2) == [1, 3] and kept(top_k=1) == [1] and kept(top_k=99) == [0, 1, 2, 3, 4]
    assert kept(top_p=0.3) == [1] and kept(top_p=0.5) == [1, 3] and kept(top_p=0.8) == [1, 3, 4] and kept(top_p=1e-9) == [1]
    assert kept(min_p=0.3) == [1, 3, 4] and kept(min_p=0.2) == [0, 1, 3, 4] and kept(min_p=0.99) == [1]
    assert kept(top_k=3, min_p=0.5) == [1, 3] and kept(top_k=3, top_p=0.3) == [1]
    assert gap(filtered(LOGITS[None], Sampling(top_k=2))[0, [1, 3]], LOGITS[[1, 3]]) == 0
    assert torch.isfinite(filtered(torch.zeros(1, 5), Sampling(top_k=2)))[0].tolist() == [True, True, False, False, False]  # of equals, the first


def test_what_was_written_is_penalised():
    """Greedy, step by step by hand: the ids of the row's own answer count as seen, those of the prompt do not."""
    request = Request(["a cat"], "image", Sampling(0.0, repetition_penalty=1e3), guidance=1.0)
    result = run(GPT, [request])[0]
    codes = result.codes.flatten().tolist()
    for n, logits_V in enumerate(recomputed(request, result)[0].view(len(codes), -1)):
        assert codes[n] == int(penalised(logits_V, Sampling(repetition_penalty=1e3), torch.tensor(codes[:n], dtype=torch.long)).argmax())
    assert len(set(codes)) > len(set(run(GPT, [replace(request, sampling=GREEDY)])[0].codes.flatten().tolist()))


def test_penalty_lowers_what_was_seen():
    logits = torch.tensor([2.0, -2.0, 4.0])
    seen, none = torch.tensor([0, 1, 0]), torch.tensor([], dtype=torch.long)
    assert penalised(logits, Sampling(repetition_penalty=2.0), seen).tolist() == [1.0, -4.0, 4.0]
    assert penalised(logits, Sampling(presence_penalty=0.5), seen).tolist() == [1.5, -2.5, 4.0]
    assert penalised(logits, Sampling(frequency_penalty=0.5), seen).tolist() == [1.0, -2.5, 4.0]
    assert penalised(logits, Sampling(repetition_penalty=2.0), none).tolist() == logits.tolist()


def frequencies(sampling: Sampling, draws: int = 2000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([choose(LOGITS[None], sampling, [generator]) for _ in range(draws)])
    return torch.bincount(drawn, minlength=5) / draws


def test_ids_are_drawn_as_often_as_they_are_likely():
    assert gap(frequencies(Sampling()), LOGITS.exp()) < 0.04
    assert gap(frequencies(Sampling(temperature=0.5)), (2 * LOGITS).softmax(-1)) < 0.04
    assert gap(frequencies(Sampling(top_k=2)), torch.tensor([0, 4 / 7, 0, 3 / 7, 0])) < 0.04


@pytest.mark.parametrize("temperature", [0.0, 1e-3, 1e-45, 1e-300])
def test_cold_is_greedy(temperature):
    assert frequencies(Sampling(temperature=temperature), 50)[1] == 1


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
    ],
)
def test_sampling_out_of_range(setting):
    ((name, value),) = setting.items()
    with pytest.raises(InputError, match=f"{name}={value}: use "):
        Sampling(**setting)


# --- bad input ------------------------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_said_before_anything_is_computed(monkeypatch):
    """Both numbers, and the good request beside it is not begun either."""
    monkeypatch.setattr(GPT.decoder, "forward", lambda *_: pytest.fail("something was computed"))
    short = tiny_gpt(max_length=20)
    monkeypatch.setattr(short.decoder, "forward", lambda *_: pytest.fail("something was computed"))
    words = "a very long prompt of many many words that are too many"
    count = 1 + len(short.write([Part(words)])[1]) + 10
    with pytest.raises(InputError, match=f"{count} positions to read and write, this model holds 20"):
        run(short, [Request(["a"], "image", guidance=1.0, grid=(1, 1, 1)), Request([words], "image")])
    for grid in [(1, 1, 10**12), (1, 10**6, 10**6)]:
        with pytest.raises(InputError, match=r"1000000000000 .*256"):
            run(GPT, [Request(["a"], "text" if grid[1] == 1 else "image", grid=grid)])
    with pytest.raises(InputError, match="1048576 characters, the limit is 100000"):
        run(GPT, [Request(["x" * 2**20], "text")])
    with pytest.raises(InputError, match="to='smell': this model writes text, image"):
        run(GPT, [Request(["a"], "smell")])
    for bad in (b"bytes", 7, None, "lone \ud800 surrogate"):
        with pytest.raises(InputError):
            run(GPT, [Request([bad], "text")])
    for to, grid in [("image", (1, 0, 4)), ("image", (1, 1, -3)), ("text", (1, 1, -3))]:
        with pytest.raises(InputError, match=r"-3|0x4"):
            run(GPT, [Request(["a"], to, grid=grid)])


def test_exactly_what_fits_is_written():
    need = 1 + len(GPT.write([Part("a cat")])[1]) + 10
    assert tiny_gpt(max_length=need).generate(["a cat"], to="image").size == (16, 16)
    with pytest.raises(InputError, match=f"{need} positions.*{need - 1}"):
        tiny_gpt(max_length=need - 1).generate(["a cat"], to="image")


def test_damaged_weights_are_noticed():
    for value in (float("nan"), float("inf")):
        gpt = tiny_gpt()
        gpt.decoder.norm.weight.data[3] = value
        for request in (Request(["a"], "text"), Request(["a"], "image", guidance=2.0)):
            with pytest.raises(InputError, match="the weights are damaged"):
                run(gpt, [request])


def test_a_picture_where_none_is_possible():
    gpt = tiny_gpt()
    words = gpt.ports["text"]
    from mmgpt.model import GPT as Model

    only_words = Model(gpt.decoder.config, {"text": words}, 400, 0)
    with pytest.raises(InputError, match="to='image': this model writes text"):
        run(only_words, [Request(["a"], "image")])
    with pytest.raises(InputError, match="type Image: this model takes text"):
        run(only_words, [Request([picture(1)], "text")])
    reading = Port(Image.Image, gpt.encoders["image"], gpt.ports["image"].reads)
    reader = Model(gpt.decoder.config, {"text": words, "image": reading}, 400, 0)
    with pytest.raises(InputError, match="image can be read but not written"):
        reader.write([Part(picture(1), learn=True)])


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        " ",
        "\x00",
        "<image>",
        "<|endoftext|>",
        "</s><s>[INST]",
        "\u202e\ufeff",
        "<0x0A>",
        "\udcff".encode("utf-8", "surrogatepass").decode("latin1"),
    ],
)
def test_words_that_spell_control_ids_stay_words(prompt):
    """Ordinary ids only, the same text back, and a generation that is well formed."""
    written = GPT.write([Part(prompt)])[1]
    codec: TextCodec = GPT.ports["text"].codec
    end = GPT.ports["text"].writes.end
    assert written.ids_N[-1] == end and all(0 <= id < codec.num_codes <= end for id in written.ids_N[:-1])
    assert codec.decode(written.ids_N[:-1]) == prompt.strip()
    assert isinstance(GPT.generate([Part(prompt)], to="text", grid=(1, 1, 2)), str)


def test_a_document_that_would_be_empty():
    """A model whose documents begin with no id has nothing to start from where there are no words, guided or not."""
    gpt = tiny_gpt()
    gpt.begin, text = None, gpt.ports["text"]
    gpt.ports["text"] = replace(text, writes=replace(text.writes, end_given=False))
    with pytest.raises(InputError, match="the request has 0 positions"):
        gpt.generate([Part("")])
    with pytest.raises(InputError, match="its unconditional form has 0 positions.*guidance=1"):
        gpt.generate(["a cat"], guidance=2.0)
    assert gpt.generate([Part("")], to="image").size == (16, 16)  # it begins with an id of its own


def test_names_are_no_pictures():
    for name in ("cat.png", Path("cat.png")):
        with pytest.raises(InputError, match="mmgpt.open_picture"):
            GPT.caption([name])
    with pytest.raises(InputError, match="mmgpt.open_picture"):
        GPT.generate([Path("cat.png"), "caption:"])


@pytest.mark.parametrize(
    "wrong", [{"guidance": "3"}, {"to": ["image"]}, {"stop": "end"}, {"sampling": 0.7}, {"grid": 8}, {"grid": [1, 1, 1]}, {"grid": (1, "a", 1)}]
)
def test_settings_of_the_wrong_kind(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Request.__post_init__(SimpleNamespace(**vars(Request(["a"])) | wrong))  # as where nothing checks the annotations


def test_nothing_to_read():
    """Nothing given is most likely a mistake, and said; an empty `Part` asks for what the model writes unasked."""
    for parts, message in [([], "at least one segment"), ("a cat", "pass a list"), ([""], "0 words to go by"), (["", " "], "0 words to go by")]:
        with pytest.raises(InputError, match=message):
            GPT.generate(parts, to="text")
    assert isinstance(GPT.generate([Part("")], to="text", grid=(1, 1, 3)), str) and run(GPT, []) == []
    for seed in (-1, 2**64):
        with pytest.raises(InputError, match=f"seed={seed}"):
            GPT.generate(["a"], to="text", seed=seed)
