"""Packed streams: nothing but the mixture, the lane and its state decides a row; what is stopped goes on as if it had not been."""

import itertools
import json
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from streams import lines, mixture, png, same, three_sources, words, write
from tiny import gap, picture, tiny_gpt

from mmgpt.data.chance import permuted
from mmgpt.data.feed import Feed, joined
from mmgpt.data.fill import fullest, pieces
from mmgpt.data.lane import Lane
from mmgpt.data.mixture import Draws
from mmgpt.data.sources import open_source
from mmgpt.data.wire import from_bytes, to_bytes
from mmgpt.errors import DataError, InputError
from mmgpt.pack import length, pack, stack
from mmgpt.types import Part


def take(lane, count: int) -> list:
    return list(itertools.islice(lane, count))


def saved(state):
    """As a checkpoint holds it."""
    return json.loads(json.dumps(state))


# --- order ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 100])
def test_a_permutation_needs_no_memory(count):
    orders = [tuple(permuted(place, count, key) for place in range(count)) for key in range(4)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert count < 16 or len(set(orders)) == 4


@pytest.mark.parametrize("which, lanes, window", [(0, 1, 2), (0, 4, 1), (1, 3, 2), (1, 8, 2), (2, 1, 2), (2, 3, 1), (2, 5, 4)])
def test_an_epoch_holds_every_sample_once(tmp_path, which, lanes, window):
    """Lines, row groups and tars, by fewer lanes than blocks and by more; and the second epoch is in another order."""
    source = three_sources(tmp_path)[which]
    found = {epoch: [] for epoch in range(2)}
    for lane in range(lanes):
        draws = Draws(mixture([source], lanes=lanes, window=window), 0, lane, {})
        while (address := draws.next())[0] < 2 * draws.num:
            found[address[0] // draws.num].append(draws.where(*address))
    assert len(found[0]) == len(set(found[0])) == (12, 13, 9)[which] and sorted(found[0]) == sorted(found[1]) and found[0] != found[1]


def test_resumed_is_uninterrupted(tmp_path):
    """Stopped behind every one of 18 rows: in the midst of a pack, of a block, of a split document, and across the ends of epochs."""
    shared = mixture(three_sources(tmp_path), lanes=2)
    rows = take(Lane(shared, 1), 20)
    epochs = [max(place for place, _ in s["open"]) for s in rows[17].state["sources"] if s["open"]]
    assert rows[17].state["counts"]["split"] and max(epochs) > 2 * 13 and any(s["open"][0][1] for s in rows[7].state["sources"] if s["open"])
    for stop in range(18):
        again = take(Lane(shared, 1, saved(rows[stop].state)), 2)
        assert all(same(a, b) for a, b in zip(again, rows[stop + 1 :], strict=False)), stop


def test_lanes_and_seeds_differ(tmp_path):
    shared = mixture(three_sources(tmp_path), lanes=2)
    rows = [take(lane, 2) for lane in (Lane(shared, 0), Lane(shared, 1), Lane(replace(shared, seed=1), 0))]
    assert not any(same(a[1], b[1]) for a, b in itertools.combinations(rows, 2))


@pytest.mark.parametrize("workers, prefetch", [(1, 1), (2, 0), (2, 4)])
def test_workers_make_the_same_rows(tmp_path, workers, prefetch):
    """And the state is that of what was handed out, not of what was made ahead."""
    shared = mixture(three_sources(tmp_path), lanes=4)
    alone = Feed(shared)
    with Feed(shared, workers=workers, prefetch=prefetch) as ahead:
        for _ in range(3):
            assert all(same(a, b) for a, b in zip(next(alone), next(ahead), strict=True))
        state = saved(ahead.state())
    assert state == saved(alone.state())
    with Feed(shared, state=state, workers=3 - workers) as again:
        assert all(same(a, b) for a, b in zip(next(alone), next(again), strict=True))


def test_ranks_share_one_global_batch(tmp_path):
    """1, 2 and 4 ranks have the same rows, also where one number of ranks goes on from another's state."""
    shared = mixture(three_sources(tmp_path), lanes=4)
    whole = Feed(shared)
    batches = [next(whole) for _ in range(4)]
    state = None
    for number, world in enumerate([1, 4, 2, 1]):
        feeds = [Feed(shared, range(rank, 4, world), state) for rank in range(world)]
        made = [next(feed) for feed in feeds]
        assert all(same(made[lane % world][lane // world], batches[number][lane]) for lane in range(4))
        state = saved(joined([feed.state() for feed in feeds]))


def test_a_state_of_another_stream_is_refused(tmp_path):
    shared = mixture(three_sources(tmp_path), lanes=2)
    feed = Feed(shared)
    next(feed)
    with pytest.raises(DataError, match="row_length was 96 and is 80"):
        Feed(replace(shared, row_length=80), state=saved(feed.state()))
    lines(tmp_path / "texts.jsonl", [{"text": words(n)} for n in range(12)])
    with pytest.raises(DataError, match="sources was"):
        Feed(replace(shared, sources=(open_source(str(tmp_path / "texts.jsonl")), *shared.sources[1:])), state=feed.state())
    with pytest.raises(DataError, match="1 of 2 lanes"):
        Feed(shared, state=joined([Feed(shared, [0], feed.state()).state()]))


# --- mixture --------------------------------------------------------------------------------------------------------------------------


def test_weights_and_temperature(tmp_path):
    sources = three_sources(tmp_path)[:2]  # 12 lines and 13 rows
    assert mixture(sources).shares == pytest.approx([12 / 25, 13 / 25])
    assert mixture(sources, weights=(1.0, 9.0)).shares == pytest.approx([0.1, 0.9])
    assert mixture(sources, weights=(1.0, 9.0), temperature=2.0).shares == pytest.approx([0.25, 0.75])
    lane = Lane(mixture(sources, weights=(1.0, 9.0)), 0)
    for _ in range(300):
        lane.draw()
    drawn = [draws.drawn for draws in lane.draws]
    assert sum(drawn) == 300 and 15 <= drawn[0] <= 50


@pytest.mark.parametrize(
    "change, message", [({"weights": (1.0,)}, "2 sources with weights"), ({"temperature": 0.0}, "temperature=0.0"), ({"long": "cut"}, "'cut'")]
)
def test_mixtures_that_make_no_sense(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        mixture(three_sources(tmp_path)[:2], **change)


# --- packing --------------------------------------------------------------------------------------------------------------------------


def test_fullest_is_the_best_of_all():
    random = np.random.default_rng(0)
    for _ in range(100):
        lengths = random.integers(1, 30, random.integers(1, 8)).tolist()
        room = int(random.integers(max(lengths), 60))
        chosen = fullest(lengths, room)
        sums = [sum(some) for n in range(len(lengths)) for some in itertools.combinations(lengths[1:], n)]
        assert (
            chosen[0] == 0
            and len(set(chosen)) == len(chosen)
            and sum(lengths[i] for i in chosen) == lengths[0] + max(s for s in sums if s <= room - lengths[0])
        )


def test_rows_are_nearly_full(tmp_path):
    """Pairs of 20 to 90 positions and one document in fifty of up to 1,024, in rows of 1,024: at least 97% of all positions hold something."""
    random = np.random.default_rng(0)
    lengths = np.where(random.random(400) < 0.02, random.integers(200, 1025, 400), random.integers(20, 91, 400))
    source = open_source(str(lines(tmp_path / "mix.jsonl", [{"text": "x" * (int(n) - 2)} for n in lengths])))
    lane = Lane(mixture([source], row_length=1024, waiting=48), 0)
    rows = take(lane, 20)
    assert np.mean([row.stream.fill for row in rows]) >= 0.97
    assert lane.counts["refused"] == lane.counts["split"] == lane.counts["bad"] == 0


def test_long_documents_are_split_or_refused_and_counted(tmp_path):
    """Every id of a split document stands in one of its rows, in order; refused ones are named."""
    long = {"parts": [{"text": "a" * 30}, {"text": "b" * 70, "learn": False}, {"text": "c" * 200}]}
    source = open_source(str(lines(tmp_path / "a.jsonl", [{"text": "short"}, long])))
    lane = Lane(mixture([source], row_length=96), 0)
    rows = take(lane, 12)
    assert lane.counts["split"] > 0 == lane.counts["refused"]
    shown = "".join(chr(id) for row in rows for id in row.stream.ids_BT[0].tolist() if id < 256).replace("short", "")
    times = shown.count("a") // 30
    assert times >= 3 and abs(shown.count("b") - 70 * times) <= 140 and abs(shown.count("c") - 200 * times) <= 400  # some still wait
    refusing = Lane(mixture([source], row_length=96, long="refuse"), 0)
    bad = [bad for row in take(refusing, 12) for bad in row.bad]
    assert refusing.counts["split"] == refusing.counts["bad"] == 0 < refusing.counts["refused"] == len(bad) + len(refusing.noted)
    assert {(b.shard, b.index) for b in bad} == {("a.jsonl", 2)} and "304 positions in rows of 96" in bad[0].reason


def test_pieces_hold_the_whole_document():
    document = write([Part("a" * 20, True), Part("b" * 50, True), Part("c" * 5)])
    found = pieces(document, 24, 1)
    assert all(length(piece) <= 24 and piece[0] is document[0] for piece in found)
    parts = [written for piece in found for written in piece[1:]]
    for column in ("ids_N", "choice_N", "whole_N"):
        assert np.array_equal(np.concatenate([getattr(w, column) for w in parts]), np.concatenate([getattr(w, column) for w in document[1:]]))
    assert all((w.place_N3[:, 0] == np.arange(len(w))).all() and w.span == len(w) for w in parts)
    assert pieces(document, 200, 1) == [document]
    with pytest.raises(InputError, match="a segment of 6 positions in rows of 4"):
        pieces(write([Part(picture(1), True)]), 5, 1)


@torch.no_grad()
def test_a_packed_row_has_the_losses_of_its_documents_alone(tmp_path):
    """Through a real model, a lane, a pipe's bytes and a batch of two lanes: every document's losses are what they are alone, to 1e-5."""
    gpt = tiny_gpt()
    (tmp_path / "a.png").write_bytes(png(1, 16))
    page = {"parts": [{"text": "a red"}, {"image": "a.png"}, {"text": "apple", "learn": False}, {"image": "a.png", "learn": True}]}
    rows = [
        page,
        {"text": "a small cat"},
        {"image": "a.png", "text": "a cat"},
        {"messages": [{"role": "user", "content": "draw"}, {"role": "assistant", "content": "a cat"}]},
    ]
    source = open_source(str(lines(tmp_path / "a.jsonl", rows)))
    shared = replace(mixture([source], lanes=2, row_length=64, waiting=4), write=gpt.write, heads=gpt.spans)
    packed = [from_bytes(*to_bytes(row)) for row in next(Feed(shared))]
    losses = gpt.losses(stack([row.stream for row in packed]))
    alone: dict[str, list] = {}
    for lane in (Lane(shared, 0), Lane(shared, 1)):
        for _ in range(4):
            lane.draw()
        documents = [w.document for w in lane.waiting]
        for index in fullest([length(d) for d in documents], 64):
            for head, loss_N in gpt.losses(pack([documents[index]], gpt.spans)).items():
                alone.setdefault(head, []).append(loss_N)
    assert losses.keys() == alone.keys() == {"text", "image"}
    assert all(gap(losses[head], torch.cat(alone[head])) < 1e-5 for head in losses)


# --- what goes wrong ------------------------------------------------------------------------------------------------------------------

GOOD = png(3)
FAULTS = [  # a line of a.jsonl that cannot be used
    b"{", b"\xff\xfe", b"[1, 2]", b'"words"', b"{}", b"[" * 3000,
    b'{"text": ""}', b'{"text": " \\n"}', b'{"text": 3}', b'{"text": "a\\ud800"}',
    b'{"image": "no.png", "text": "a"}', b'{"image": "empty.png", "text": "a"}', b'{"image": "cut.png", "text": "a"}',
    b'{"image": "bomb.png", "text": "a"}', b'{"image": "noise.png", "text": "a"}', b'{"image": "sound.wav", "text": "a"}',
    b'{"audio": "a.png", "text": "a"}', b'{"image": 3, "text": "a"}',
    b'{"parts": []}', b'{"parts": [{}]}', b'{"parts": [{"text": "a", "image": "a.png"}]}', b'{"parts": [{"text": "a", "learn": "no"}]}',
    b'{"parts": [{"text": "a", "learn": false}]}', b'{"parts": 3}',
    b'{"messages": [{"role": "user", "content": "a"}]}', b'{"messages": [{"content": "a"}]}',
]  # fmt: skip


def faulty(folder, count: int, rate: float):
    """Lines of which a share is broken, one kind after the other -> the source, the numbers of its broken lines."""
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    files = {"a.png": GOOD, "empty.png": b"", "cut.png": GOOD[:60], "bomb.png": bomb, "noise.png": os.urandom(500), "sound.wav": b"RIFF\0\0"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    broken = np.sort(np.random.default_rng(1).choice(count, round(count * rate), replace=False))
    rows: list = [{"text": words(n, 20)} if n % 5 else {"image": "a.png", "text": words(n, 20)} for n in range(count)]
    for kind, line in zip(itertools.cycle(FAULTS), broken, strict=False):
        rows[line] = kind
    return open_source(str(lines(folder / "a.jsonl", rows))), {int(line) + 1 for line in broken}


MANY = [pytest.param(10_000, rate, marks=pytest.mark.long) for rate in (0.01, 0.1)]


@pytest.mark.parametrize(("count", "rate"), [(300, 0.01), (300, 0.1), *MANY])
def test_bad_samples_are_counted_exactly_and_the_others_keep_their_order(tmp_path, count, rate):
    """One epoch with 26 kinds of faults, stopped and gone on in its midst: each is named once, the good ones come as without them (T-11)."""
    source, broken = faulty(tmp_path, count, rate)
    shared = mixture([source], max_bad=1.0, waiting=1)
    lane, seen, bad = Lane(shared, 0), [], []
    while lane.counts["samples"] < count:
        row = next(lane)
        seen += row.names
        bad += row.bad
        if lane.counts["rows"] == 9:
            lane = Lane(shared, 0, saved(row.state))
    first = [b for b in bad if b.draw < count]
    assert {b.index for b in first} == broken and len(first) == len(broken) == round(count * rate)
    assert lane.counts["bad"] == len(bad) + len(lane.noted)
    draws = Draws(shared, 0, 0, {})
    order = [draws.where(*draws.next())[1] for _ in range(count)]
    good = [f"{source.name}: a.jsonl, sample {index}" for index in order if index not in broken]
    assert seen[: len(good) - 1] == good[: len(seen)][: len(good) - 1]


def test_too_many_bad_samples_stop_the_run(tmp_path):
    source, _ = faulty(tmp_path, 300, 0.3)
    with pytest.raises(DataError, match=r"51 of the last \d+ samples of lane 0 are bad, at most 5.0% of 1000 .* a.jsonl, sample \d+"):
        take(Lane(mixture([source]), 0), 1000)
    with Feed(mixture([source]), workers=1) as feed, pytest.raises(DataError, match="51 of the last"):
        for _ in range(1000):
            next(feed)


def slow(sample):
    while True:
        pass


def hungry(sample):
    return write(sample) if len(sample[0].value) % 2 else [bytes(8 * 2**30)]


def test_a_decoder_that_never_ends_is_a_bad_sample(tmp_path):
    source = open_source(str(lines(tmp_path / "a.jsonl", [{"text": "a"}])))
    with pytest.raises(DataError, match="3 of the last 3 .* more than 0.05 seconds of the processor"):
        next(Lane(replace(mixture([source], max_bad=0.002, seconds=0.05), write=slow), 0))


def test_a_worker_that_needs_too_much_memory_leaves_the_sample_out(tmp_path):
    source = open_source(str(lines(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "ab"}])))
    with Feed(replace(mixture([source]), write=hungry), workers=1, memory=2**30) as feed:
        (row,) = next(feed)
    assert {bad.index for bad in row.bad} == {2} and "MemoryError" in row.bad[0].reason


@pytest.mark.parametrize("number, message", [(signal.SIGKILL, "ended with exit code -9"), (signal.SIGSTOP, "gave no sign for")])
def test_a_worker_that_ends_or_hangs_ends_the_run(tmp_path, number, message):
    with Feed(mixture(three_sources(tmp_path), lanes=2), workers=2, prefetch=1, patience=1.0) as feed:
        next(feed)
        os.kill(feed.workers[1].process.pid, number)
        begun = time.monotonic()
        with pytest.raises(DataError, match=message):
            for _ in range(10):
                next(feed)
        assert time.monotonic() - begun < 15
    assert not any(worker.process.is_alive() for worker in feed.workers)
