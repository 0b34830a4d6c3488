"""The flow, step by step: sample -> document -> stream -> vectors -> heads -> ids -> values. Read this test first."""

import numpy as np
import torch
from PIL import Image
from tiny import picture, tiny_gpt

from mmgpt.generate.sampling import GREEDY
from mmgpt.pack import pack
from mmgpt.script import parse
from mmgpt.types import VECTOR, Part


def test_from_a_picture_and_words_to_new_words():
    gpt = tiny_gpt()
    end = gpt.ports["text"].writes.end

    # A sample is a list of segments in reading order. `learn` marks what the model is to write, the rest is given.
    sample = [Part(picture()), Part("caption:"), Part("a red apple", learn=True)]

    # Written, each segment is a row of slots: an id each, or a place where an encoder's vector goes. A slot that is forced teaches nothing.
    begin, read, question, answer = document = gpt.write(sample)
    words = gpt.ports["text"].codec.encode("a red apple").tolist()
    layout = gpt.ports["image"].reads
    assert begin.ids_N.tolist() == [gpt.begin]
    assert read.ids_N.tolist() == [layout.begin, VECTOR, VECTOR, VECTOR, VECTOR, layout.end]  # 16 x 16 pixels in patches of 8 x 8
    assert answer.ids_N.tolist() == [*words, end] and answer.choice_N.all() and answer.learn and not question.learn

    # Packed, documents become one stream. The picture's four vectors share a block: they read each other. All else reads backwards only.
    stream = pack([document], gpt.spans)
    first = len(question) + 7  # where the answer begins
    assert stream.ids_BT.shape == (1, first + len(answer)) and stream.fill == 1
    assert stream.block_BT[0, :9].tolist() == [0, 1, 2, 2, 2, 2, 3, 4, 5]
    assert stream.position_BT3[0, 1:8].tolist() == [[1] * 3, [2, 2, 2], [2, 2, 3], [2, 3, 2], [2, 3, 3], [4] * 3, [5] * 3]

    # Inputs say what the encoders put where; targets, which head predicts what from which position: always the one before.
    (given,), (target,) = stream.inputs, stream.targets
    assert given.encoder == "image" and given.slot_N.tolist() == [2, 3, 4, 5] and given.prepared.values_NF.shape == (4, 8 * 8 * 3)
    assert target.head == "text" and target.id_N.tolist() == [*words, end]
    assert target.slot_N.tolist() == list(range(first - 1, first + len(answer) - 1))

    # The shared decoder turns the stream into one vector a position; a head scores the ids of its own modality only.
    h_BTD = gpt(stream)
    logits_NV = gpt.heads["text"].logits(h_BTD[0, target.slot_N])
    assert h_BTD.shape == (*stream.ids_BT.shape, 64) and logits_NV.shape == (len(answer), end + 1)
    loss_N = gpt.losses(stream)["text"]
    assert torch.allclose(loss_N, -logits_NV.log_softmax(-1)[range(len(answer)), target.id_N], atol=1e-5)

    # Generation walks the same layout: it asks the head where there is a choice, and the codec turns the codes into a value.
    said = gpt.generate([picture(), "caption:"], to="text", grid=(1, 1, 5), sampling=GREEDY)
    likeliest = int(logits_NV[0].argmax())
    assert isinstance(said, str) and (likeliest == end or said.startswith(gpt.ports["text"].codec.decode(np.array([likeliest]))))


def test_from_words_to_a_new_picture():
    gpt = tiny_gpt()

    # The same model, the other way: the picture to learn is written as codes in reading order, framed by two forced ids.
    document = gpt.write([Part("a red apple"), Part(picture(), learn=True)])
    written, layout = document[-1], gpt.ports["image"].writes
    assert written.choice_N.tolist() == [False, *[True] * 8, False]
    assert pack([document], gpt.spans).targets[0].head == "image"

    # The layout reads back what it wrote, and the codec makes pixels of it.
    ids, script = parse(written.ids_N, [layout.script((1, 2, 4))])
    codes = layout.codes(ids, script.grid)
    assert (codes[0] == gpt.ports["image"].codec.encode(picture())).all()
    assert gpt.ports["image"].codec.decode(codes).size == (16, 16)

    drawn = gpt.generate(["a red apple"], to="image", guidance=3.0, seed=7)
    assert isinstance(drawn, Image.Image) and drawn.size == (16, 16)
