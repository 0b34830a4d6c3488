"""Gradients written by hand: those of the plain forms, and of finite differences; and the plain forms where they are as good."""

import pytest
import torch
from tiny import gap, picture, tiny_gpt
from torch.autograd import gradcheck

from mmgpt.decoders import fused, heads, rope
from mmgpt.decoders.fused import CrossEntropyFunction, GateFunction, NormFunction, RMSNorm, RotateFunction, gated, plain
from mmgpt.decoders.heads import Head, TableHead, rows_of
from mmgpt.decoders.rope import rotate, rotation
from mmgpt.pack import pack
from mmgpt.script import Span
from mmgpt.types import Part


def plainly(monkeypatch) -> None:
    for module in (fused, heads, rope):
        monkeypatch.setattr(module, "plain", lambda *tensors: True)


def double(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.double, requires_grad=True)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    cos, sin = (t.double() for t in rotation(torch.arange(5)[None, :, None].expand(2, -1, 3), 8, 10.0, 3))
    target_N = torch.tensor([3, 0, 6, 3])
    assert gradcheck(lambda x, weight: NormFunction.apply(x, weight, 1e-2), (double(3, 2, 6), double(6)))
    assert gradcheck(lambda x: RotateFunction.apply(x, cos, sin), (double(2, 3, 5, 8),))
    assert gradcheck(GateFunction.apply, (double(3, 2, 8),))
    for z_loss in (0.0, 0.3):
        assert gradcheck(lambda h, weight, z=z_loss: CrossEntropyFunction.apply(h, weight, target_N, z), (double(4, 5), double(7, 5)))


def values_and_gradients(function, *inputs: torch.Tensor) -> list[torch.Tensor]:
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = function(*inputs)
    (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    return [y, *(x.grad for x in inputs)]


@pytest.mark.parametrize("what", ["norm", "rotation", "gate", "cross-entropy"])
def test_fused_is_plain(what, monkeypatch):
    torch.manual_seed(0)
    norm, angles = RMSNorm(24, 1e-5), rotation(torch.arange(5)[None, :, None].expand(2, -1, 3), 16, 1e4, 3)
    torch.nn.init.normal_(norm.weight)
    table, target_N = torch.nn.Embedding(30, 8), torch.tensor([4, 9, 20])
    head = TableHead(table, Span(4, 24))
    function, *inputs = {
        "norm": (norm, torch.randn(2, 5, 24)),
        "rotation": (lambda x: rotate(x, *angles), torch.randn(2, 3, 5, 16).transpose(1, 2).contiguous().transpose(1, 2)),
        "gate": (gated, torch.randn(2, 5, 24)),
        "cross-entropy": (lambda h: head.loss(h, target_N, 0.01), torch.randn(3, 8)),
    }[what]
    with monkeypatch.context() as patch:
        plainly(patch)
        wanted = values_and_gradients(function, *inputs)
        wanted += [p.grad.clone() for p in (*norm.parameters(), *table.parameters()) if p.grad is not None]
        norm.zero_grad(), table.zero_grad()
    found = values_and_gradients(function, *inputs)
    found += [p.grad for p in (*norm.parameters(), *table.parameters()) if p.grad is not None]
    assert len(found) == len(wanted) and all(gap(a, b) < 2e-6 for a, b in zip(found, wanted, strict=True))
    assert "Function" in str(function(*(x.requires_grad_() for x in inputs)).grad_fn) or what == "cross-entropy"


def test_a_whole_model_learns_the_same(monkeypatch):
    samples = [[Part(picture(1)), Part("caption:"), Part("a small cat", learn=True)], [Part("draw: a cat"), Part(picture(2), learn=True)]]
    found = []
    for turn in range(2):
        if turn:
            plainly(monkeypatch)
        gpt = tiny_gpt().train()
        losses = gpt.losses(pack([gpt.write(sample) for sample in samples], gpt.spans))
        sum(loss.sum() for loss in losses.values()).backward()
        found.append([torch.cat(list(losses.values())).detach(), *(p.grad for p in gpt.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) and all(gap(a, b) < 1e-4 * (1 + float(b.abs().max())) for a, b in zip(*found, strict=True))


def test_the_plain_forms_are_taken_where_they_are_as_good(monkeypatch):
    x = torch.randn(2, 8, requires_grad=True)
    assert not plain(x, x.detach())
    with torch.autocast("cpu", torch.bfloat16):
        assert plain(x)
    assert plain(x.bfloat16()) and plain(x, x.detach().double())
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert plain(x)


def test_with_and_without_gradients_the_numbers_are_the_same():
    gpt, found = tiny_gpt(), []
    stream = pack([gpt.write([Part(picture(1)), Part("caption:"), Part("a small cat", learn=True)])], gpt.spans)
    for grads in (True, False):
        with torch.set_grad_enabled(grads):
            found.append(gpt.losses(stream)["text"].detach())
    assert torch.equal(*found)


@pytest.mark.parametrize("first", [11, 8])
def test_heads_of_one_table_write_its_gradient_once(first):
    """Also where some rows are both heads'."""
    torch.manual_seed(0)
    table, h_ND = torch.nn.Embedding(20, 8), torch.randn(4, 8)
    words, codes = TableHead(table, Span(first, 17)), TableHead(table, Span(2, 9))
    ids = {words: torch.tensor([11, 16, 12, 12]), codes: torch.tensor([2, 8, 8, 5])}
    found = []
    for rows in ([None, None], rows_of([words, codes])):
        table.zero_grad()
        sum(head.loss(h_ND, ids[head], 0.0, r).sum() for head, r in zip(ids, rows, strict=True)).backward()
        found.append(table.weight.grad.clone())
    assert gap(*found) < 1e-6 and float(found[0].abs().max()) > 0.1
    assert torch.equal(rows_of([words, codes])[0], table.weight[first:17]) and torch.equal(rows_of([words, codes])[1], table.weight[2:9])
    assert rows_of([words, TableHead(table, Span(0, 12), Span(3, 4))])[1] is None  # a hole, cut by itself
    assert rows_of([words, TableHead(torch.nn.Embedding(20, 8), Span(2, 9))]) == [None, None]  # two tables
    assert rows_of([Head(), Head()]) == [None, None] and rows_of([]) == []
