"""Recall: names by least squares, and what they become in a decoder's table."""

import pytest
import torch
from tiny import gap, tiny_gpt

from mmgpt.interop.recall import Recall

NAMES = ["a cat", "a red apple", "a small cat"]


@pytest.fixture
def examples(monkeypatch):
    """24 examples of three names: a direction a name. Few as they are, they are trusted more."""
    monkeypatch.setattr("mmgpt.interop.recall.RIDGE", 1.0)
    torch.manual_seed(0)
    name_B = torch.arange(24) % 3
    return 4 * torch.eye(3, 8)[name_B] + torch.randn(24, 8), name_B


def recall_of(gpt) -> Recall:
    return Recall(gpt, NAMES, width=8, length=4)


def test_scores_are_the_least_squares(examples):
    """Where the squares are least, their slope is zero."""
    feature_BF, name_B = examples
    recall = recall_of(tiny_gpt())
    recall.fit(*examples)
    scores_FK = recall.scores_FK.clone().requires_grad_()
    wanted_BK = torch.nn.functional.one_hot(name_B, len(NAMES)).float()
    squares = (feature_BF @ scores_FK - wanted_BK).square().sum() + scores_FK.square().sum()
    assert gap(torch.autograd.grad(squares, scores_FK)[0], torch.zeros(8, 3)) < 1e-4


@torch.no_grad()
def test_words_are_rows_of_the_table_by_their_share(examples, monkeypatch):
    monkeypatch.setattr("mmgpt.interop.recall.SHARP", 60.0)
    gpt, (feature_BF, name_B) = tiny_gpt(), examples
    recall, spelled = recall_of(gpt), torch.zeros(3, 4, 64)
    for k, name in enumerate(NAMES):
        ids = torch.as_tensor(gpt.ports["text"].codec.encode(name))[:4]
        spelled[k, : len(ids)] = gpt.table.weight[ids]
    assert gap(recall(feature_BF[:1]), spelled.mean(0, keepdim=True)) < 1e-4  # before fit: equal shares
    recall.fit(*examples)
    assert gap(recall(feature_BF), spelled[name_B]) < 1e-2  # sharp scores: one name each, and the right one
