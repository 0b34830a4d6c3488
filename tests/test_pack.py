"""Packing: many documents in one row are, vector for vector and loss for loss, what each is alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import gap, picture, tiny_gpt

from mmgpt.errors import InputError, TrainingError
from mmgpt.layout import TextLayout
from mmgpt.pack import assign, length, pack
from mmgpt.script import Span
from mmgpt.types import Part, Written

GPT = tiny_gpt(position_axes=3)
SAMPLES = [
    [Part(picture(1)), Part("caption:"), Part("a red apple", learn=True)],
    [Part("a green cat"), Part(picture(2), learn=True)],
    [Part("words only", learn=True)],
    [Part("before"), Part(picture(3)), Part("between"), Part(picture(4)), Part("and"), Part(picture(5), learn=True), Part("after", learn=True)],
    [Part(picture(6), learn=True)],
]


def where(documents, row_length) -> list[tuple[int, int]]:
    """(row, first column) of each document."""
    lengths = [length(document) for document in documents]
    rows = [[i] for i in range(len(documents))] if row_length is None else assign(lengths, row_length)
    return [next((r, sum(lengths[i] for i in row[: row.index(d)])) for r, row in enumerate(rows) if d in row) for d in range(len(documents))]


@torch.no_grad()
def outcome(documents, row_length=None):
    """Of each document: its vectors; its losses by head."""
    stream = pack(documents, GPT.spans, row_length)
    h_BTD, losses = GPT(stream), GPT.losses(stream)
    vectors, by_head = [], []
    for document, (row, column) in zip(documents, where(documents, row_length), strict=True):
        flat = row * stream.ids_BT.shape[1] + column
        vectors.append(h_BTD[row, column : column + length(document)])
        mine = {t.head: (t.slot_N >= flat) & (t.slot_N < flat + length(document)) for t in stream.targets}
        by_head.append({head: losses[head][mask] for head, mask in mine.items() if mask.any()})
    return vectors, by_head


@pytest.mark.parametrize("row_length", [None, 64, 97, 256])
def test_packed_is_padded(row_length):
    documents = [GPT.write(sample) for sample in SAMPLES]
    vectors, losses = outcome(documents, row_length)
    for document, vectors_TD, by_head in zip(documents, vectors, losses, strict=True):
        (alone_TD,), (alone,) = outcome([document])
        assert gap(vectors_TD, alone_TD) < 1e-5
        assert by_head.keys() == alone.keys() and all(gap(by_head[head], alone[head]) < 1e-5 for head in alone)


def test_documents_never_see_each_other():
    """One document of a row gets another picture. Its vectors change, its neighbours' stay, bit for bit."""
    others = [[Part(picture(9)), *SAMPLES[0][1:]], *SAMPLES[1:]]
    before, after = (outcome([GPT.write(sample) for sample in samples], 256)[0] for samples in (SAMPLES, others))
    assert gap(before[0], after[0]) > 0.1
    for mine, theirs in zip(before[1:], after[1:], strict=True):
        assert gap(mine, theirs) == 0


# --- golden ---------------------------------------------------------------------------------------------------------------------------


def slots(ids, choice=True, whole=False, span=None, learn=False) -> Written:
    n = len(ids)
    places = np.repeat(np.arange(n)[:, None], 3, axis=1)
    return Written(np.array(ids, np.int64), np.full(n, choice), np.full(n, whole), places, n if span is None else span, learn)


def test_golden_columns():
    """Two documents in a row of eight, one in the next: numbers, blocks, positions and ids; the tail is document 0."""
    long = [slots([1, 2]), slots([3, 4, 5], whole=True, span=9), slots([6])]
    stream = pack([[slots([7, 8])], long, [slots([9] * 5)]], {}, 8)
    assert stream.ids_BT.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8], [9, 9, 9, 9, 9, 0, 0, 0]]
    assert stream.document_BT.tolist() == [[1, 1, 1, 1, 1, 1, 2, 2], [1, 1, 1, 1, 1, 0, 0, 0]]
    assert stream.block_BT.tolist() == [[0, 1, 2, 2, 2, 3, 0, 1], [0, 1, 2, 3, 4, 0, 0, 0]]
    assert stream.position_BT3[0, :, 0].tolist() == [0, 1, 2, 3, 4, 11, 0, 1]
    assert stream.fill == 13 / 16


def test_golden_blocks_of_neighbours():
    """Two pictures side by side are two blocks, even where nothing stands between them."""
    both = [slots([1, 2], whole=True), slots([3, 4], whole=True), slots([5])]
    assert pack([both], {}).block_BT[0].tolist() == [0, 0, 1, 1, 2]


def test_golden_targets():
    """A target stands one position before its id, in the head that has the id; given and forced ids are none, nor is a document's first."""
    heads = {"low": Span(0, 10), "high": Span(10, 20)}
    forced = slots([4], choice=False, learn=True)
    learned = slots([5, 15, 6], learn=True)
    stream = pack([[slots([1, 2]), forced, learned], [slots([7, 17], learn=True)]], heads, 8)
    found = {t.head: (t.slot_N.tolist(), t.id_N.tolist()) for t in stream.targets}
    assert found == {"low": ([2, 4], [5, 6]), "high": ([3, 6], [15, 17])}
    assert pack([[slots([1, 2])]], heads).targets == ()


def test_targets_go_to_the_head_of_the_segment():
    """Two heads over the same ids: each learns what its own segment wrote."""
    words = slots([1, 2], learn=True)
    documents = [[slots([7]), replace(words, head="second"), replace(words, head="first")]]
    stream = pack(documents, {"first": Span(0, 10), "second": Span(0, 10)})
    found = {target.head: target.slot_N.tolist() for target in stream.targets}
    assert found == {"second": [0, 1], "first": [2, 3]}


def test_targets_across_rows():
    """The first id of a row is no target of the last position of the row before it."""
    layout = TextLayout(Span(0, 10), 9)
    stream = pack([[layout.write(np.array([1, 2]), learn=True)]] * 2, {"text": layout.ids}, 3)
    assert stream.targets[0].slot_N.tolist() == [0, 1, 3, 4] and stream.targets[0].id_N.tolist() == [2, 9, 2, 9]


# --- fill, errors ---------------------------------------------------------------------------------------------------------------------


def test_rows_are_nearly_full():
    """Captions and drawings of 20 to 90 positions and one long document in fifty, in rows of 1,024: at least 97% of all positions hold something."""
    random = np.random.default_rng(0)
    lengths = [*random.integers(20, 91, 1000).tolist(), *random.integers(200, 1025, 20).tolist()]
    rows = assign(lengths, 1024)
    assert sorted(sum(rows, [])) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 1024 for row in rows)
    assert sum(lengths) / (1024 * len(rows)) >= 0.97


def test_documents_that_cannot_be_packed():
    with pytest.raises(InputError, match="a document of 9 positions in rows of 8"):
        pack([[slots([1])], [slots([1] * 9)]], {}, 8)
    with pytest.raises(InputError, match="0 documents"):
        pack([], {})
    for empty in ([], [slots([])]):
        with pytest.raises(InputError, match="2 documents, the shortest of 0"):
            pack([[slots([1])], empty], {})


def test_a_stream_without_targets_is_refused():
    with pytest.raises(TrainingError, match="0 targets"):
        GPT.losses(pack([GPT.write([Part("nothing to learn")])], GPT.spans))


def test_a_stream_moves_as_a_whole():
    here = pack([GPT.write(SAMPLES[0])], GPT.spans)
    stream = here.to("meta")
    read, target = stream.inputs[0], stream.targets[0]
    tensors = [stream.ids_BT, stream.document_BT, stream.block_BT, stream.position_BT3, target.slot_N, target.id_N]
    tensors += [read.slot_N, read.prepared.values_NF, read.prepared.place_N3]
    assert all(tensor.is_meta for tensor in tensors) and stream.inputs[0].prepared.grid == here.inputs[0].prepared.grid
