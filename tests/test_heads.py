"""Heads: views of one table. A head learns from its own loss only, scores what may come next only, and is never fed nothing."""

import pytest
import torch
from tiny import gap, picture, tiny_gpt

from mmgpt.decoders import heads
from mmgpt.decoders.heads import TableHead
from mmgpt.encoders.codes import Table
from mmgpt.errors import TrainingError
from mmgpt.pack import pack
from mmgpt.script import Span
from mmgpt.train.loop import Settings, Trainer
from mmgpt.types import VECTOR, Part


def head_of(ids: Span, count: int = 20) -> tuple[TableHead, Table]:
    torch.manual_seed(0)
    table = Table(count, 8)
    table.weight.data.normal_()
    return TableHead(table, ids), table


@torch.no_grad()
def test_a_slice_is_the_full_head_masked():
    head, table = head_of(Span(4, 16))
    h_ND, full_NV = torch.randn(5, 8), torch.full((5, 20), -torch.inf)
    full_NV[:, 7:11] = (h_ND @ table.weight.T)[:, 7:11]
    part_NV = head.logits(h_ND, Span(7, 11))
    assert gap(part_NV, full_NV[:, 7:11]) < 1e-5
    assert gap(part_NV.softmax(-1), full_NV.softmax(-1)[:, 7:11]) < 1e-5
    assert gap(head.logits(h_ND), (h_ND @ table.weight.T)[:, 4:16]) < 1e-5
    assert head.logits(h_ND, Span(5, 5)).shape == (5, 0), "no rows are no rows, not all of them"


@torch.no_grad()
def test_loss_is_cross_entropy_among_the_heads_own_ids():
    head, table = head_of(Span(4, 16))
    h_ND, ids = torch.randn(3, 8), torch.tensor([4, 15, 9])
    own = (h_ND @ table.weight.T)[:, 4:16].log_softmax(-1)
    assert gap(head.loss(h_ND, ids), -own[range(3), ids - 4]) < 1e-5


def test_in_chunks_is_all_at_once(monkeypatch):
    head, table = head_of(Span(0, 20))
    h_ND, ids = torch.randn(10, 8, requires_grad=True), torch.randint(0, 20, (10,))
    found = []
    for chunk in (100, 3, 1):
        monkeypatch.setattr(heads, "CHUNK", chunk)
        loss_N = head.loss(h_ND, ids)
        found.append((loss_N.detach(), *torch.autograd.grad(loss_N.sum(), [h_ND, table.weight])))
    assert all(gap(one, other) < 1e-5 for chunked in found[1:] for one, other in zip(found[0], chunked, strict=True))


def scored(head, monkeypatch) -> list[int]:
    """How many vectors were scored at a time, in either form."""
    sizes, logits, fused = [], head.logits, heads.linear_cross_entropy
    monkeypatch.setattr(head, "logits", lambda h: sizes.append(len(h)) or logits(h))
    monkeypatch.setattr(heads, "linear_cross_entropy", lambda h, *rest: sizes.append(len(h)) or fused(h, *rest))
    return sizes


def test_logits_of_many_positions_are_never_held_at_once(monkeypatch):
    head, _ = head_of(Span(0, 20))
    monkeypatch.setattr(heads, "CHUNK", 3)
    sizes = scored(head, monkeypatch)
    head.loss(torch.randn(10, 8), torch.zeros(10, dtype=torch.long))
    assert sizes == [3, 3, 3, 1]


def test_beyond_a_limit_scores_are_computed_again(monkeypatch):
    """The same losses and gradients, each chunk scored twice; without gradients once."""
    head, table = head_of(Span(0, 20))
    monkeypatch.setattr(heads, "CHUNK", 3)
    h_ND, ids, found, sizes = torch.randn(10, 8, requires_grad=True), torch.randint(0, 20, (10,)), [], scored(head, monkeypatch)
    for held in (200, 199):
        monkeypatch.setattr(heads, "HELD", held)
        loss_N = head.loss(h_ND, ids, 0.1)
        found.append((loss_N.detach(), *torch.autograd.grad(loss_N.sum(), [h_ND, table.weight])))
    assert all(gap(one, other) < 1e-6 for one, other in zip(*found, strict=True)) and len(sizes) == 4 + 8
    with torch.no_grad():
        head.loss(h_ND, ids)
    assert len(sizes) == 4 + 8 + 4


def test_z_loss_is_the_squared_log_of_the_normaliser():
    head, _ = head_of(Span(4, 16))
    h_ND, ids = torch.randn(5, 8), torch.randint(4, 16, (5,))
    wanted = head.loss(h_ND, ids) + 0.25 * head.logits(h_ND).logsumexp(-1) ** 2
    assert gap(head.loss(h_ND, ids, 0.25), wanted) < 1e-5
    gpt = tiny_gpt()
    stream = pack([gpt.write([Part("draw:", True), Part(picture(), True)])], gpt.spans)
    plain, more = gpt.losses(stream), gpt.losses(stream, z_loss=0.25)
    assert all((more[name] > plain[name]).all() for name in plain)


def test_every_head_learns_from_its_own_loss_only():
    """A row of the table gets a gradient where its head scores it, or where its id stands in the stream: no other."""
    gpt = tiny_gpt()
    sample = [Part("draw:", True), Part(picture(), True)]
    stream = pack([gpt.write(sample)], gpt.spans)
    losses = gpt.losses(stream)
    assert losses.keys() == gpt.heads.keys() == {"text", "image"}
    standing = set(stream.ids_BT[stream.ids_BT != VECTOR].tolist())
    for name, loss_N in losses.items():
        (gradient,) = torch.autograd.grad(loss_N.mean(), gpt.table.weight, retain_graph=True)
        touched = set(gradient.abs().sum(-1).nonzero().flatten().tolist())
        own = set(range(gpt.spans[name].start, gpt.spans[name].stop))
        assert own <= touched <= own | standing, name


def test_every_part_of_the_model_learns():
    """Both directions together reach every weight but the frozen codec's."""
    gpt = tiny_gpt()
    samples = [[Part(picture()), Part("caption:"), Part("a cat", True)], [Part("a cat"), Part(picture(), True)]]
    losses = gpt.losses(pack([gpt.write(sample) for sample in samples], gpt.spans))
    sum(loss_N.mean() for loss_N in losses.values()).backward()
    still = [name for name, p in gpt.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still and all(name.startswith("codecs.") for name in still)


class Given:
    """A task whose loss is what it was given, times a weight of 1."""

    def __init__(self, loss: float, gradient: float = 1.0):
        self.loss, self.gradient, self.model = loss, gradient, torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(self.model.weight)

    def batch(self, step):
        return step

    def losses(self, batch):
        weight = self.model.weight.sum()
        weight.register_hook(lambda g: g * self.gradient)
        return weight * self.loss, {"given": self.loss}

    def size(self, batch):
        return 1

    def sample(self, folder, step): ...

    def export(self, folder, weights): ...

    def compile(self): ...


@pytest.mark.parametrize(("loss", "gradient", "found"), [("inf", 1, "given"), ("-inf", 1, "given"), ("nan", 1, "given"), (1, "inf", "norm/weight")])
def test_a_loss_or_gradient_that_is_not_finite_is_left_out(loss, gradient, found):
    """Before anything is changed; the third time in a row is the last."""
    trainer = Trainer(Given(float(loss), float(gradient)), Settings(steps=9))
    for skipped in (1, 2):
        assert trainer.update()["skipped"] == trainer.step == skipped and found in trainer.guard.bad[-1]["faults"]
    trainer.task.loss, kept, trainer.task.gradient = 1.0, (trainer.task.loss, trainer.task.gradient), 1.0
    before = trainer.task.model.weight.item()
    assert before == 1 and not any(o.state for o in trainer.optimizers) and trainer.update()["loss"] == 1 and trainer.guard.bad == []
    assert trainer.task.model.weight.item() != before
    trainer.task.loss, trainer.task.gradient = kept
    before = trainer.task.model.weight.item()
    with pytest.raises(TrainingError, match=rf"3 updates in a row, at steps 3, 4, 5, .*{found}.*lower learning_rate"):
        for _ in range(3):
            trainer.update()
    assert trainer.task.model.weight.item() == before and trainer.guard.skipped == 5 and trainer.step == 6
