"""Recall: names by least squares, with every group's own examples left out of what its examples are shown."""

import pytest
import torch
from tiny import gap, tiny_gpt

from mmgpt.interop.recall import Recall

NAMES = ["a cat", "a red apple", "a small cat"]


@pytest.fixture
def examples(monkeypatch):
    """24 examples of three names by four groups: a direction a name, bent by each group.

    Few as they are, they are trusted more and told apart less sharply.
    """
    monkeypatch.setattr("mmgpt.interop.recall.RIDGE", 1.0)
    monkeypatch.setattr("mmgpt.interop.recall.SHARP", 3.0)
    torch.manual_seed(0)
    name_B, group_B = torch.arange(24) % 3, torch.arange(24) // 6
    feature_BF = 4 * torch.eye(3, 8)[name_B] + torch.randn(4, 8)[group_B] + 0.1 * torch.randn(24, 8)
    return feature_BF, name_B, group_B


def recall_of(gpt) -> Recall:
    return Recall(gpt, NAMES, width=8, length=4)


@torch.no_grad()
def test_what_a_group_is_shown_is_what_the_others_know(examples):
    """Fitting anew on all but the group gives the same words for it."""
    gpt, (feature_BF, name_B, group_B) = tiny_gpt(), examples
    shown = recall_of(gpt).fit(*examples)
    for group in range(4):
        mine, anew = group_B == group, recall_of(gpt)
        anew.fit(feature_BF[~mine], name_B[~mine], group_B[~mine])
        assert gap(shown[mine], anew(feature_BF[mine])) < 1e-5
    whole = recall_of(gpt)
    assert gap(whole.fit(*examples), whole(feature_BF)) > 1e-2  # what was seen is known better than what was not


@torch.no_grad()
def test_words_are_rows_of_the_table_by_their_share(examples, monkeypatch):
    monkeypatch.setattr("mmgpt.interop.recall.SHARP", 60.0)
    gpt, (feature_BF, name_B, _) = tiny_gpt(), examples
    recall, spelled = recall_of(gpt), torch.zeros(3, 4, 64)
    for k, name in enumerate(NAMES):
        ids = torch.as_tensor(gpt.ports["text"].codec.encode(name))[:4]
        spelled[k, : len(ids)] = gpt.table.weight[ids]
    assert gap(recall(feature_BF[:1]), spelled.mean(0, keepdim=True)) < 1e-4  # before fit: equal shares
    recall.fit(*examples)
    assert gap(recall(feature_BF), spelled[name_B]) < 1e-2  # sharp scores: one name each, and the right one
