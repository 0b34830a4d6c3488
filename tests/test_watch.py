"""What is said of an update: figures that are known beforehand, warnings that come once, and a run that does not change because it is watched."""

import json
import math
import sys
import time
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from test_train import QUICK, gpt_task, identical, state_of, tensors_of
from tiny import gap, picture, tiny_gpt

from mmgpt.errors import TrainingError
from mmgpt.pack import pack
from mmgpt.train.loop import Trainer, train
from mmgpt.train.settings import Settings
from mmgpt.train.watch import Board, Drift, Look, gradient_squares, parts_of, speed_of, stream_work
from mmgpt.types import Part


def drawings(gpt, count: int = 3):
    return pack([gpt.write([Part("a cat"), Part(picture(n), True)]) for n in range(count)], gpt.spans)


def test_every_weight_belongs_to_a_part():
    parts = parts_of(dict(tiny_gpt().named_parameters()))
    assert parts["table.weight"] == "table" and parts["decoder.norm.weight"] == "decoder"
    assert {part for name, part in parts.items() if name.startswith("encoders.image.")} == {"image"}
    assert parts_of(["heads.sound.out.weight", "tables.image.weight", "weight"]) == {
        "heads.sound.out.weight": "sound",
        "tables.image.weight": "image",
        "weight": "weight",
    }


def test_norms_of_parts_add_up():
    gpt = tiny_gpt()
    gpt.losses(drawings(gpt))["image"].mean().backward()
    weights = {name: p for name, p in gpt.named_parameters() if p.requires_grad}
    squares = gradient_squares(parts_of(weights), weights)
    assert squares["image"] == 0 and squares["decoder"] > 0  # no picture was read
    whole = torch.nn.utils.clip_grad_norm_(weights.values(), math.inf)
    assert math.sqrt(sum(squares.values())) == pytest.approx(float(whole), rel=1e-6)
    table = float(gpt.table.weight.grad.double().norm())
    assert math.sqrt(squares["table"]) == pytest.approx(table, rel=1e-6)


def test_the_work_of_a_step_is_what_torch_counts(monkeypatch):
    """Every product of matrices, forward and backward, as torch's own counter sees them; norms alone are no products."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.setattr("mmgpt.decoders.attention.FLASH", ())  # what it reads document by document it cannot count
    gpt = tiny_gpt(width=128, mlp_width=384)
    stream = pack([gpt.write([Part("0123456789" * 20, True)])], gpt.spans)  # long: a tenth of the work is attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        gpt.losses(stream)["text"].sum().backward()
    work = stream_work(gpt, [stream])
    assert work.positions == stream.ids_BT.numel() and work.empty == 0
    assert work.flops == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_padding_and_use_of_the_machine():
    assert speed_of({"flops": 6e9, "empty": 25, "positions": 100}, 2.0, 1e10) == {"padding": 0.25, "mfu": 0.3}
    assert speed_of({}, 2.0, 1e10) == {}
    gpt = tiny_gpt()
    long, short = (gpt.write([Part("a" * 5 * count, True)]) for count in (4, 1))
    work = stream_work(gpt, [pack([long, short], gpt.spans)])
    lengths = [sum(map(len, document)) for document in (long, short)]
    assert (work.empty, work.positions) == (lengths[0] - lengths[1], 2 * lengths[0])


def test_a_look_is_what_is_there():
    """Entropy and largest score are those of the head, at the targets; two looks add up; afterwards nobody looks."""
    gpt, stream = tiny_gpt(), drawings(tiny_gpt())
    with Look(gpt) as look, torch.no_grad():
        gpt.losses(stream)
    with torch.no_grad():
        at = stream.targets[0].slot_N
        scores = gpt.heads["image"].logits(gpt(stream).flatten(0, 1)[at])
    entropy = torch.distributions.Categorical(logits=scores).entropy()
    found = Look.figures([{"sums": look.sums, "tops": look.tops}])
    assert found.keys() == {"entropy/image", "logit/image", "attention"} and found["attention"] > 0
    assert found["entropy/image"] == pytest.approx(float(entropy.mean()), rel=1e-5)
    assert found["logit/image"] == pytest.approx(float(scores.abs().max()), rel=1e-5)
    other = {"sums": {"entropy/image": 0.0, "targets/image": len(at)}, "tops": {"attention": 1e9}}
    both = Look.figures([{"sums": look.sums, "tops": look.tops}, other])
    assert both["entropy/image"] == pytest.approx(found["entropy/image"] / 2) and both["attention"] == 1e9
    assert all(head.look is None for head in gpt.heads.values()) and not any(block.attention._forward_hooks for block in gpt.decoder.blocks)


def test_who_is_watched_does_not_change(tmp_path):
    """Every update looked at, or none: the same run, bit for bit. The log says what it should."""
    for name, every in (("seen", 1), ("unseen", 100)):
        train(gpt_task(), replace(QUICK, steps=3, log_every=every), tmp_path / name)
    assert identical(tensors_of(tmp_path / "seen"), tensors_of(tmp_path / "unseen"))
    *_, row = (json.loads(line) for line in (tmp_path / "seen" / "log.jsonl").read_text().splitlines())
    names = {f"{kind}/{head}" for kind in ("entropy", "logit") for head in ("text", "image")} | {f"norm/{p}" for p in ("decoder", "table", "image")}
    assert names <= row.keys() and row["skipped"] == 0 and 0 < row["padding"] < 1 and 0 < row["mfu"] and row["wait"] >= 0
    assert row["norm"] == pytest.approx(math.sqrt(sum(value**2 for name, value in row.items() if name.startswith("norm/"))))


def test_waiting_for_data_is_told():
    task = gpt_task()
    batch = task.batch
    task.batch = lambda step: time.sleep(0.2) or batch(step)
    assert Trainer(task, QUICK).update()["wait"] >= 0.2


def test_a_part_that_drifts_is_told_once():
    """Ten times the usual, either way, for five updates; not while it settles, and again only after it was back."""
    norms = [1.0, 1.2] * 50 + [900.0] * 4 + [1.0] * 3 + [900.0] * 8 + [1.0] * 40 + [0.0001] * 6
    drift, said = Drift(settle=50, stays=5), []
    for step, norm in enumerate(norms):
        said += [(step, line.split()[0]) for line in drift({"norm/image": norm, "norm/text": 1.0, "loss": norm})]
    assert said == [(111, "norm/image"), (159, "norm/image")]
    assert Drift(stays=1)({"norm/image": 1.0}) == Drift(stays=1)({"norm/image": 0.0}) == []
    early = Drift(settle=50, stays=1)
    assert not any(early({"norm/image": norm}) for norm in [1.0] * 5 + [1000.0])


@pytest.mark.long
def test_the_board_is_asked_for(tmp_path, monkeypatch):
    """Without the package one sentence; with it (here one that listens) all figures and the samples."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match="pip install tensorboard"):
        train(gpt_task(), replace(QUICK, steps=1, tensorboard=True), tmp_path / "none")
    heard = []

    class Listens:
        def __init__(self, folder):
            heard.append(folder)

        def __getattr__(self, name):
            return lambda *said: heard.append((name, *said))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Listens
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    train(gpt_task(), replace(QUICK, steps=2, log_every=1, sample_every=2, tensorboard=True), tmp_path / "run")
    assert heard[0] == str(tmp_path / "run" / "tensorboard") and heard[-1] == ("close",)
    assert {(said[1], said[3]) for said in heard[1:-1]} >= {("loss", 1), ("loss", 2), ("norm/image", 2), ("samples", 2)}
    shapes = [said[2].shape for said in heard[1:-1] if said[0] == "add_image"]
    assert len(shapes) == 1 and shapes[0][0] == 3
    with Board(tmp_path, False) as board:
        board.write(1, {"loss": 1.0})


# --- what is not learned ------------------------------------------------------------------------------------------------------------------


class Line:
    """Eight numbers -> their sum, with noise; batches of the steps `poisoned` ask for a hundred times that."""

    def __init__(self, poisoned=(), seed: int = 0):
        self.poisoned, self.seed, self.model = set(poisoned), seed, torch.nn.Linear(8, 1)
        with torch.no_grad():
            self.model.weight.fill_(0.5)
            self.model.bias.fill_(0)

    def batch(self, step):
        generator = torch.Generator().manual_seed(1000 * self.seed + step)
        x = torch.randn(16, 8, generator=generator)
        y = x.sum(1) + 0.3 * torch.randn(16, generator=generator)
        return x, 100 * y if step in self.poisoned else y

    def losses(self, batch):
        loss = (self.model(batch[0])[:, 0] - batch[1]).square().mean()
        return loss, {"line": float(loss.detach())}

    def size(self, batch):
        return len(batch[0])

    def sample(self, folder, step): ...

    def export(self, folder, weights): ...

    def compile(self): ...


GUARDED = Settings(steps=80, learning_rate=1e-3, warmup=0, spike=6.0, log_every=1, save_every=10, sample_every=0)


def run_of(task, avoid=(), settings=GUARDED) -> Trainer:
    trainer = Trainer(task, settings)
    trainer.guard.avoid = set(avoid)
    while trainer.progress < 1:
        trainer.update()
    return trainer


def test_poisoned_batches_are_not_learned():
    """Each is found at its own step, two in a row too, and the run is that which never saw them, bit for bit; clean runs have no alarms (T-14)."""
    poisoned, settings = (40, 41, 60, 70, 89), replace(GUARDED, steps=90, log_every=100)
    guarded, spared = run_of(Line(poisoned), (), settings), run_of(Line(poisoned), poisoned, settings)
    assert guarded.guard.skipped == spared.guard.skipped == 5
    for name, p in guarded.parameters.items():
        assert torch.equal(p, spared.parameters[name]), name
    without = run_of(Line(poisoned), settings=replace(settings, spike=0.0))
    assert gap(without.parameters["weight"], guarded.parameters["weight"]) > 1e-4
    assert [run_of(Line(seed=seed), (), settings).guard.skipped for seed in range(5)] == [0] * 5


def test_weights_that_were_spoiled_are_left_behind(tmp_path):
    """Three spikes in a row: back to the last state, and past the steps that led there; a run that knew goes the same way, bit for bit."""
    spoiled, said = [], []

    def spoil(trainer, figures):
        if trainer.step == 63 and not spoiled.append(1) and len(spoiled) == 1:
            with torch.no_grad():
                trainer.parameters["weight"].add_(10)

    trainer = train(Line(), GUARDED, tmp_path / "a", show=spoil)
    said = [row["warning"] for row in map(json.loads, (tmp_path / "a" / "log.jsonl").read_text().splitlines()) if "warning" in row]
    assert len(said) == 1 and "steps 63 to 65 were spikes: back at step 60, steps 60 to 65 are left out" in said[0]
    known = run_of(Line(), range(60, 66))
    assert trainer.guard.skipped == known.guard.skipped == 6
    assert all(torch.equal(p, known.parameters[name]) for name, p in trainer.parameters.items())
    again = Trainer(Line(), GUARDED)
    again.resume(state_of(tmp_path / "a"))
    assert again.guard.state() == trainer.guard.state() and again.guard.avoid == set(range(60, 66))


def test_what_is_spoiled_again_ends_the_run(tmp_path):
    once = []

    def spoil(trainer, figures):
        if (trainer.step == 63 and not once and not once.append(1)) or trainer.step == 68:
            with torch.no_grad():
                trainer.parameters["weight"].add_(10)

    with pytest.raises(TrainingError, match=r"3 updates in a row, at steps 68, 69, 70, were left out for a loss far above those before"):
        train(Line(), GUARDED, tmp_path, show=spoil)
    assert [one["faults"] for one in json.loads((tmp_path / "bad-batch.json").read_text())] == [["a spike"]] * 3
