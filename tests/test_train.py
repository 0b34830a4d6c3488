"""The loop: the loss falls, a run that was stopped is a run that was not, and what decides the next update is saved or a function of the step."""

import json
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import gap, picture, tiny_gpt

from mmgpt import native
from mmgpt.checkpoint import read_folder
from mmgpt.data.emoji import load_emoji
from mmgpt.decoders.image_codec import ImageCodec, ImageCodecConfig, PictureCodec, codebook_usage, factors, fold, reconstruction_loss, unfold
from mmgpt.errors import CheckpointError, InputError, TrainingError
from mmgpt.pack import length
from mmgpt.train.codec import CodecTask, load_codec
from mmgpt.train.gpt import GPTTask, Item, Mix, distortion
from mmgpt.train.loop import Interruption, Trainer, train
from mmgpt.train.muon import Muon, matrices, orthogonal
from mmgpt.train.recipe import pixels, split
from mmgpt.train.recipes import RECIPES, CodecOptions
from mmgpt.train.saves import newest_good
from mmgpt.train.settings import Settings, override
from mmgpt.train.task import batches

NAMES = ("red apple", "small cat", "green apple", "big dog", "caption", "draw")
PICTURES = torch.from_numpy(np.stack([np.array(picture(seed)) for seed in range(len(NAMES))])).permute(0, 3, 1, 2).contiguous()
QUICK = Settings(steps=6, learning_rate=3e-3, warmup=2, log_every=2, save_every=0)


def gpt_task(seed: int = 0, dropout: float = 0.0, **mix) -> GPTTask:
    items = [Item((f"a {name}", f"draw: {name}"), (("caption:", name), ("what is it?", f"a {name}"))) for name in NAMES]
    mix = {"captions": 4, "draws": 4, "augment": False} | mix
    return GPTTask(tiny_gpt(dropout=dropout).train(), PICTURES, items, Mix(**mix), seed)


def small_codec(stride=(8, 4), levels=(4, 4), seed: int = 0) -> ImageCodec:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ImageCodec(ImageCodecConfig(stride, levels, 16, 1))


def tensors_of(folder) -> dict[str, torch.Tensor]:
    """All that a run goes on from, but its clock: of its newest state."""
    files, texts = state_of(folder).tensors, state_of(folder).texts
    return {f"{file} {name}": value for file, named in files.items() for name, value in named.items()} | {
        "step": torch.tensor(json.loads(texts["run.json"])["step"])
    }


def state_of(run):
    """The newest state; the first one may still be written while training goes on."""
    for _ in range(1000):
        if state := newest_good(run)[0]:
            return state
        time.sleep(0.01)
    pytest.fail(f"no state in {run}")


def identical(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- the loop -------------------------------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_the_result_can_be_used(tmp_path):
    """Six names learned by heart, in both directions; what is exported is the average of the weights."""
    shown = []
    trainer = train(
        gpt_task(),
        Settings(steps=40, learning_rate=5e-3, warmup=5, ema=0.5, log_every=1, sample_every=20),
        tmp_path,
        show=lambda _, f: shown.append(f),
    )
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(log) == len(shown) == 40 and log[-1]["step"] == 40 and log[0]["loss"] == shown[0]["loss"]
    for head in ("text", "image"):
        assert np.mean([row[head] for row in log[-5:]]) < 0.6 * np.mean([row[head] for row in log[:3]]), head
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {f"{step:07d}.{kind}" for step in (20, 40) for kind in ("png", "txt")}
    made = native.load(tmp_path / "final")
    assert gap(made.table.weight, trainer.average["table.weight"].half()) == 0 and isinstance(made.caption([picture()])[0], str)


@pytest.mark.parametrize("more", [{}, {"muon": True}, {"accumulate": 2, "workers": 2, "ema": 0.9}], ids=["plain", "muon", "parts"])
def test_resumed_is_uninterrupted(more, tmp_path):
    """Stopped after 1, 2 and 5 updates: weights, average, optimizer, batches and dropout are those of a run that was never stopped, bit for bit."""
    quick = replace(QUICK, **more)
    whole = train(gpt_task(dropout=0.2), quick, tmp_path / "whole")
    wanted = tensors_of(tmp_path / "whole")
    assert wanted["step"] == 6 and sum("exp_avg_sq" in name or ":momentum" in name for name in wanted) == len(whole.parameters)
    for stop in (1, 2, 5):
        folder = tmp_path / str(stop)

        def interrupt(trainer, figures, stop=stop):
            if trainer.step == stop:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt, match=f"stopped after step {stop}"):
            train(gpt_task(dropout=0.2), quick, folder, show=interrupt)
        assert tensors_of(folder)["step"] == stop and not (folder / "final").exists()
        torch.manual_seed(stop)  # whatever the process drew meanwhile
        train(gpt_task(dropout=0.2), quick, folder, resume=True)
        assert identical(tensors_of(folder), wanted), stop
        assert identical(read_folder(folder / "final")[0]["model.safetensors"], read_folder(tmp_path / "whole" / "final")[0]["model.safetensors"])


@pytest.mark.long
def test_resumed_is_uninterrupted_at_every_step(tmp_path):
    """60 steps with workers, packed rows, hidden codes, distortion, dropout, parts, warm-up and average: stopped after each of them (T-7)."""
    settings = replace(QUICK, steps=60, warmup=10, ema=0.9, accumulate=2, workers=2)

    def task():
        return gpt_task(dropout=0.2, augment=True, hide=1.0, row_length=128)

    train(task(), replace(settings, save_every=1, keep_last=60), tmp_path / "whole")
    wanted = tensors_of(tmp_path / "whole")
    for stop in range(1, 60):
        folder = tmp_path / str(stop)
        folder.mkdir()
        os.rename(tmp_path / "whole" / f"step-{stop:07d}", folder / f"step-{stop:07d}")
        train(task(), settings, folder, resume=True)
        assert identical(tensors_of(folder), wanted), stop


def test_a_run_keeps_its_optimizer(tmp_path):
    train(gpt_task(), replace(QUICK, steps=1, muon=True), tmp_path)
    trainer = Trainer(gpt_task(), QUICK)
    with pytest.raises(TrainingError, match="muon=True, not False"):
        trainer.resume(state_of(tmp_path))
    assert trainer.step == 0


def test_muon_updates_as_torch_does():
    """Three updates of a tall, a wide and a convolutional weight, as by torch's own in bfloat16; torch knows no convolutions."""
    torch.manual_seed(0)
    shapes, settings = [(48, 16), (16, 48), (16, 48), (12, 4, 2, 2)], {"lr": 0.1, "weight_decay": 0.1}
    mine = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone().flatten(1)) for p in mine]
    both = Muon(mine, momentum=0.95, **settings), torch.optim.Muon(theirs, momentum=0.95, adjust_lr_fn="match_rms_adamw", **settings)
    for _ in range(3):
        for p, q in zip(mine, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.flatten(1)
        for optimizer in both:
            optimizer.step()
    moved = max(gap(p.flatten(1), q) for p, q in zip(mine, theirs, strict=True))
    assert moved < 0.02, moved


def test_an_orthogonal_update_has_one_size_in_all_directions():
    torch.manual_seed(0)
    x = torch.randn(3, 20, 8) @ torch.diag(torch.logspace(-1, 1, 8))
    made = orthogonal(x)
    assert 0.5 < float(torch.linalg.svdvals(made).min()) and float(torch.linalg.svdvals(made).max()) < 1.3
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    assert gap(made.flatten() @ (u @ v).flatten() / made.norm() / (u @ v).norm(), 1.0) < 0.03


def test_muon_is_for_layers():
    """Not for tables, norms and biases, nor for the codec, which is not trained."""
    task = gpt_task()
    names = {name for name, p in task.model.named_parameters() if p in matrices(task.model)}
    assert "table.weight" not in names and all(name.endswith("weight") and "norm" not in name and "codec" not in name for name in names)
    assert {name.split(".")[0] for name in names} == {"decoder", "encoders"}


def test_a_run_is_its_seed(tmp_path):
    first, again, other = (train(gpt_task(seed), QUICK, tmp_path / name) for seed, name in [(0, "a"), (0, "b"), (1, "c")])
    assert identical(tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b"))
    assert gap(first.average["table.weight"], other.average["table.weight"]) > 1e-4 and first.step == again.step == 6


def test_one_direction_alone_resumes(tmp_path):
    """Where the picture encoder gets no gradient it has no moments to save, nor to load."""
    train(gpt_task(captions=0), QUICK, tmp_path / "whole")
    train(gpt_task(captions=0), Settings(**vars(QUICK) | {"steps": 3}), tmp_path / "parts")
    assert not any("encoders" in name and "exp_avg" in name for name in tensors_of(tmp_path / "parts"))
    trainer = Trainer(gpt_task(captions=0), QUICK)
    trainer.resume(state_of(tmp_path / "parts"))
    assert trainer.step == 3
    trainer = Trainer(gpt_task(), QUICK)
    trainer.update()  # moments of its own, which a state without them must not leave there
    trainer.resume(state_of(tmp_path / "parts"))
    assert not any(optimizer.state.get(p) for optimizer in trainer.optimizers for name, p in trainer.parameters.items() if "encoders" in name)


def test_the_average_follows_the_weights():
    """ema * average + (1 - ema) * weights; at the start it follows faster."""
    trainer = Trainer(gpt_task(), Settings(ema=0.9, warmup=1))
    wanted = trainer.average["table.weight"].clone()
    for step in range(1, 4):
        trainer.update()
        weight = min(0.9, step / (step + 10))
        wanted = weight * wanted + (1 - weight) * trainer.parameters["table.weight"].detach()
        assert gap(trainer.average["table.weight"], wanted) < 1e-6


def test_samples_are_of_the_average_and_leave_the_run_alone(tmp_path):
    """With and without them the run is the same; while they are made, the model holds the average, and does not train."""
    seen = []
    for name, every in (("with", 2), ("without", 0)):
        task = gpt_task(dropout=0.1)
        task.sample = lambda folder, step, model=task.model: seen.append((model.table.weight.detach().clone(), model.training, torch.rand(1)))
        averages = []
        train(
            task,
            Settings(**vars(QUICK) | {"sample_every": every}),
            tmp_path / name,
            show=lambda t, _, to=averages: to.append(t.average["table.weight"].clone()),
        )
        if every:
            assert [gap(weight, averages[at]) for (weight, _, _), at in zip(seen, (1, 3, 5), strict=True)] == [0, 0, 0]
            assert not any(training for _, training, _ in seen) and task.model.training
    assert identical(tensors_of(tmp_path / "with"), tensors_of(tmp_path / "without"))


def test_the_rate_rises_stays_and_falls():
    trainer = Trainer(gpt_task(), Settings(steps=100, learning_rate=1.0, warmup=10, decay=0.5))
    rates = []
    for step in range(101):
        trainer.step = step
        rates.append(trainer.rate())
    assert rates[0] == pytest.approx(0.1) and rates[4] == pytest.approx(0.5) and rates[9:51] == [pytest.approx(1.0)] * 42
    assert rates[75] == pytest.approx(0.51) and rates[100] == pytest.approx(0.02) and rates[51:] == sorted(rates[51:], reverse=True)


def test_a_run_is_not_overwritten(tmp_path):
    train(gpt_task(), Settings(**vars(QUICK) | {"steps": 1}), tmp_path)
    with pytest.raises(TrainingError, match="resume=true"):
        train(gpt_task(), QUICK, tmp_path)
    other = gpt_task()
    other.model = tiny_gpt(width=96)
    with pytest.raises(CheckpointError, match=r"has shape .* use the same recipe"):
        train(other, QUICK, tmp_path, resume=True)
    other.model = tiny_gpt(depth=3)
    with pytest.raises(CheckpointError, match="holds another model"):
        train(other, QUICK, tmp_path, resume=True)
    assert tensors_of(tmp_path)["step"] == 1


def test_a_loss_that_explodes_leaves_the_weights_alone(tmp_path):
    """Three updates in a row are left out, then the run stops, says at which steps, and keeps what was learned before them."""
    task, steps, kept = gpt_task(), [], []
    losses = task.losses
    task.losses = lambda *given: losses(*given) if steps.append(1) or len(steps) < 4 else (losses(*given)[0] * torch.inf, {})
    with pytest.raises(TrainingError, match=r"3 updates in a row, at steps 3, 4, 5, .*the last loss was inf.*lower learning_rate"):
        train(task, replace(QUICK, save_every=3), tmp_path, show=lambda t, _: kept.append(tensors_of(tmp_path)) if t.step == 4 else None)
    last = tensors_of(tmp_path)
    assert kept[0].pop("step") == 3 and last.pop("step") == 6 and identical(kept[0], last) and not (tmp_path / "final").exists()
    assert [one["step"] for one in json.loads((tmp_path / "bad-batch.json").read_text())] == [3, 4, 5]
    assert [json.loads(line)["skipped"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [0, 1, 2]


def test_a_second_interruption_ends_at_once():
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.asked
        with pytest.raises(KeyboardInterrupt, match="in the middle"):
            os.kill(os.getpid(), signal.SIGINT)


# --- settings -------------------------------------------------------------------------------------------------------------------------


def test_words_become_settings():
    found = override(Settings(), {"steps": "7", "learning_rate": "2e-4", "compile": "true", "betas": "0.8,0.95"})
    assert (found.steps, found.learning_rate, found.compile, found.betas) == (7, 2e-4, True, (0.8, 0.95))
    options, settings = split(CodecOptions(), Settings(), {"stride": "(8, 8)", "steps": "3"})
    assert options.stride == (8, 8) and settings.steps == 3


def test_an_unknown_word_lists_the_known_ones():
    with pytest.raises(TrainingError, match="unknown setting 'step': known are steps, minutes, learning_rate"):
        override(Settings(), {"step": "7"})
    with pytest.raises(TrainingError, match="unknown setting 'colour': known are accumulate, batch_size, .*levels.* warmup"):
        RECIPES["emoji-codec"]({"colour": "red"})
    for words in ({"steps": "many"}, {"compile": "perhaps"}, {"betas": "a,b"}):
        with pytest.raises(TrainingError, match="expected"):
            override(Settings(), words)


@pytest.mark.parametrize(
    "setting",
    [{"steps": 0}, {"ema": 1.0}, {"decay": 0.0}, {"minutes": -1.0}, *[{"learning_rate": x} for x in (0.0, -1.0, float("nan"), float("inf"))]],
)
def test_settings_out_of_range(setting):
    ((name, value),) = setting.items()
    with pytest.raises(TrainingError, match=f"{name}={value}"):
        Settings(**setting)


# --- the task of pictures and words -----------------------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_and_step():
    """Also with distorted pictures, whatever was drawn before; and nothing else loses its random numbers to it."""
    task, before = gpt_task(augment=True), torch.get_rng_state()
    batch = task.batch(5)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(123)
    for _ in range(2):
        task.batch(4)
    again, next_one, other = task.batch(5), task.batch(6), gpt_task(1, augment=True).batch(5)
    for one, two in zip(batch, again, strict=True):
        assert torch.equal(one.ids_BT, two.ids_BT) and [t.slot_N.tolist() for t in one.targets] == [t.slot_N.tolist() for t in two.targets]
    assert gap(batch[0].inputs[0].prepared.values_NF, again[0].inputs[0].prepared.values_NF) == 0
    for different in (next_one, other):
        assert batch[1].ids_BT.shape != different[1].ids_BT.shape or not torch.equal(batch[1].ids_BT, different[1].ids_BT)


def test_what_a_batch_holds():
    """Captions read patches and learn words, drawings read words and learn codes; with `drop` 1 they read nothing."""
    task = gpt_task(captions=5, draws=3)
    captions, drawings = task.batch(0)
    assert len(captions.ids_BT) == 5 and len(drawings.ids_BT) == 3
    assert [t.head for t in captions.targets] == ["text"] and [i.encoder for i in captions.inputs] == ["image"]
    assert [t.head for t in drawings.targets] == ["image"] and not drawings.inputs and len(drawings.targets[0].id_N) == 3 * 8
    bare = gpt_task(captions=0, drop=1.0).batch(0)[0]
    assert bare.ids_BT.shape[1] == 1 + 1 + 10 and (bare.ids_BT[:, 1] == task.model.ports["text"].writes.end).all()
    assert task.size((captions, drawings)) == int((captions.document_BT > 0).sum() + (drawings.document_BT > 0).sum())


def test_stronger_distortion():
    """The stronger, the less a picture looks like itself, but for its white; a function of torch's generator alone."""
    plain = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    plain[:, 8:40, 8:40] = torch.tensor([200, 30, 30], dtype=torch.uint8)[:, None, None]
    far = []
    for strength in (0.5, 1.0, 2.0):
        torch.manual_seed(0)
        distort = distortion(strength)
        made = torch.stack([distort(plain) for _ in range(16)])
        torch.manual_seed(0)
        assert torch.equal(made, torch.stack([distort(plain) for _ in range(16)])) and made.dtype == torch.uint8
        assert ((made > 250).all(1).float().flatten(1).mean(1) > 0.4).all()  # white paper stays white
        far.append(float((made.float() - plain).abs().mean()))
    assert far[0] < far[1] < far[2]
    for wrong in (0.0, 4.0):
        with pytest.raises(TrainingError, match=f"strength={wrong}"):
            Mix(strength=wrong)


def test_hidden_codes_are_learned_but_not_shown():
    """Half of the drawings are whole; in the others codes, and nothing else, show the id that opens documents. Targets are those of the codes."""
    task, plain = gpt_task(captions=2, draws=64, hide=1.0), gpt_task(captions=2, draws=64)
    (captions, hidden), (same, whole) = task.batch(3), plain.batch(3)
    assert torch.equal(captions.ids_BT, same.ids_BT) and torch.equal(hidden.targets[0].id_N, whole.targets[0].id_N)
    changed_BT, codes = hidden.ids_BT != whole.ids_BT, task.model.spans["image"]
    assert (hidden.ids_BT[changed_BT] == task.model.begin).all()
    assert ((whole.ids_BT[changed_BT] >= codes.start) & (whole.ids_BT[changed_BT] < codes.stop)).all()
    share_B = changed_BT.sum(1) / 8
    assert 0.3 < float((share_B == 0).float().mean()) < 0.75 and float(share_B.max()) > 0.8
    assert torch.equal(hidden.ids_BT, task.batch(3)[1].ids_BT) and not torch.equal(hidden.ids_BT[:, -9:], task.batch(4)[1].ids_BT[:, -9:])
    packed = gpt_task(captions=2, draws=64, hide=1.0, row_length=128).batch(3)[1]
    assert len(packed.ids_BT) < 32 and torch.equal(packed.targets[0].id_N.sort().values, whole.targets[0].id_N.sort().values)


@pytest.mark.parametrize("row_length", [0, 128])
def test_swapped_codes_are_those_of_another_drawing(row_length):
    """Of the share that is swapped half is another's up to a code; what is learned stays, and hidden drawings are none of these."""
    of = {"captions": 2, "draws": 64, "row_length": row_length}
    found, whole = gpt_task(**of, swap=0.4).batch(3)[1], gpt_task(**of).batch(3)[1]
    assert torch.equal(found.targets[0].id_N, whole.targets[0].id_N)
    slot_NC = (whole.targets[0].slot_N.sort().values + 1).view(64, 8)
    changed_NC = (found.ids_BT != whole.ids_BT).flatten()[slot_NC]
    assert int(changed_NC.sum()) == int((found.ids_BT != whole.ids_BT).sum())  # codes, and nothing else
    touched_N = changed_NC.any(1)
    assert 0.2 < float(touched_N.float().mean()) < 0.6
    shown_NC, own_NC = (stream.ids_BT.flatten()[slot_NC] for stream in (found, whole))
    for n in touched_N.nonzero()[:, 0].tolist():
        assert any((shown_NC[n][changed_NC[n]] == other_C[changed_NC[n]]).all() for other_C in own_NC)
    both = gpt_task(**of, swap=0.4, hide=1.0).batch(3)[1]
    assert torch.equal(both.ids_BT.flatten()[slot_NC][touched_N], shown_NC[touched_N])
    parts = gpt_task(captions=2, draws=64, swap=0.4)
    halves = [parts.share(3, n, 2)[1].ids_BT for n in (0, 1)]
    assert torch.equal(torch.stack(halves, 1).flatten(0, 1), parts.batch(3)[1].ids_BT)
    with pytest.raises(TrainingError, match="swap=0.6"):
        Mix(swap=0.6)


def test_what_is_trained_is_what_is_generated():
    """The documents of training are those that the engine continues: the same ids up to where the answer begins."""
    task, item = gpt_task(), Item(("a red apple",), (("caption:", "red apple"),))
    task.items = [item] * len(NAMES)
    model = task.model
    for document, given in [(task.caption(0, [0, 0]), [picture(0), "caption:"]), (task.draw(0, [0, 1]), ["a red apple"])]:
        from mmgpt.types import Part

        prompt = model.write([Part(value) for value in given])
        assert [w.ids_N.tolist() for w in document[:-1]] == [w.ids_N.tolist() for w in prompt] and document[-1].learn
        for one, two in zip(document, prompt, strict=False):
            assert one.prepared is None or gap(one.prepared.values_NF, two.prepared.values_NF) < 1e-6
    assert length(task.draw(0, [0, 1])) == length(prompt) + 10


def test_packed_batches_have_the_same_losses():
    """Rows of 128 instead of a row a document: the same figures."""
    found = []
    for row_length in (0, 128):
        task = gpt_task(row_length=row_length)
        task.model.eval()
        with torch.no_grad():
            found.append(task.losses(task.batch(3))[1])
    assert found[0].keys() == found[1].keys() == {"text", "image"} and all(abs(found[0][k] - found[1][k]) < 1e-5 for k in found[0])


def test_losses_are_weighted_means():
    task = gpt_task(text_weight=2.0, image_weight=0.5)
    loss, figures = task.losses(task.batch(0))
    assert float(loss.detach()) == pytest.approx(2 * figures["text"] + 0.5 * figures["image"], rel=1e-5)


def test_pictures_without_words_are_refused():
    with pytest.raises(TrainingError, match="6 pictures and 1 descriptions"):
        GPTTask(tiny_gpt(), PICTURES, [Item(("a",), (("b", "c"),))], Mix())
    with pytest.raises(TrainingError, match="0 pictures"):
        GPTTask(tiny_gpt(), PICTURES[:0], [], Mix())


# --- the image codec --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "steps"), [((4, 4), []), ((8, 4), [(2, 1)]), ((16, 8), [(2, 2), (2, 1)]), ((4, 16), [(1, 2), (1, 2)])])
def test_codec_shapes(stride, steps):
    codec, pixels = small_codec(stride), torch.rand(2, 3, 32, 48) * 2 - 1
    assert factors(stride) == steps
    codes = codec.encode(pixels)
    assert codes.shape == (2, 32 // stride[0], 48 // stride[1]) and codes.dtype == torch.long and 0 <= codes.min() <= codes.max() < 16
    back = codec.decode(codes)
    assert back.shape == pixels.shape and back.abs().max() <= 1
    ours, same = codec(pixels)
    assert torch.equal(same.long(), codes) and gap(ours.detach().clamp(-1, 1), back) < 1e-5


def test_pixels_fold_and_unfold():
    pixels = torch.arange(2 * 3 * 8 * 12.0).view(2, 3, 8, 12)
    assert fold(pixels, 4, 2).shape == (2, 24, 2, 6) and torch.equal(unfold(fold(pixels, 4, 2), 4, 2), pixels)
    assert fold(pixels, 4, 2)[0, :8, 1, 2].tolist() == pixels[0, 0, 4:8, 4:6].flatten().tolist()


def test_what_the_codec_cannot_do():
    codec = small_codec()
    for stride in ((6, 4), (2, 4), (0, 4)):
        with pytest.raises(InputError, match=rf"stride \({stride[0]}, 4\): use .*powers of two of at least 4"):
            small_codec(stride)
    for size in ((12, 16), (16, 6), (0, 8)):
        with pytest.raises(InputError, match=f"{size[0]} rows x {size[1]} columns"):
            codec.encode(torch.zeros(1, 3, *size))
    for code in (-1, 16):
        with pytest.raises(InputError, match=f"codes .*{code}.* of a codec with 16 codes"):
            codec.decode(torch.tensor([[[3, code]]]))


def test_codebook_usage():
    assert codebook_usage(torch.tensor([[0, 1], [2, 3]]), 4) == pytest.approx((1.0, 1.0))
    assert codebook_usage(torch.tensor([0, 0, 0]), 4) == pytest.approx((0.25, 0.25))
    assert codebook_usage(torch.tensor([0, 0, 1, 1]), 8) == pytest.approx((0.25, 0.25))
    used, perplexity = codebook_usage(torch.tensor([0, 0, 0, 1]), 2)
    assert used == 1 and perplexity == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)) / 2)


def test_reconstruction_loss_looks_at_edges():
    flat = torch.zeros(1, 3, 16, 16)
    edges = (torch.arange(16) % 2 * 2 - 1).float().expand(1, 3, 16, 16)
    assert reconstruction_loss(flat, flat) == 0
    assert reconstruction_loss(flat, flat + 1) == pytest.approx(1) and reconstruction_loss(flat, edges) == pytest.approx(1 + 0.5 * 2)


def test_a_picture_codec_takes_pictures_of_any_size():
    codec = PictureCodec(small_codec(), 16)
    assert codec.encode(picture(0)).shape == codec.encode(picture(0, 50)).shape == (2, 4)
    assert codec.decode(codec.encode(picture(0))[None]).size == (16, 16) and codec.num_codes == 16


def test_the_codec_task_learns_the_fixture(tmp_path, emoji40):
    """Its batches are a function of (seed, step); the loss falls; the exported codec is the average and reconstructs better than a new one."""
    pictures = pixels(load_emoji(emoji40)[:12])
    codec = small_codec((8, 8), (8, 8))
    task = CodecTask(codec, pictures, 4)
    assert pictures.shape == (12, 3, 64, 64) and torch.equal(task.batch(3), task.batch(3)) and not torch.equal(task.batch(3), task.batch(4))
    assert task.batch(0).shape == (4, 3, 64, 64) and -1 <= task.batch(0).min() < 0 < task.batch(0).max() <= 1
    figures = []
    train(
        task, Settings(steps=25, learning_rate=5e-3, warmup=3, ema=0.5, sample_every=25, save_every=0), tmp_path, show=lambda _, f: figures.append(f)
    )
    assert (
        np.mean([f["loss"] for f in figures[-5:]]) < 0.75 * figures[0]["loss"]
        and figures[-1]["psnr"] > figures[0]["psnr"]
        and 0 < figures[-1]["used"] <= 1
    )
    trained, batch = load_codec(tmp_path / "final"), task.batch(99)
    assert reconstruction_loss(trained.decode(trained.encode(batch)), batch) < 0.9 * reconstruction_loss(
        small_codec((8, 8), (8, 8)).decode(trained.encode(batch)), batch
    )
    assert (tmp_path / "samples" / "0000025.png").is_file()


def test_workers_make_the_same_batches():
    """Two processes ahead of the loop, or none: the same batches in the same order, from any step on."""
    task = gpt_task()
    alone, ahead = (batches(task, 3, workers) for workers in (0, 2))
    for _ in range(5):
        for here, there in zip(*next(alone), *next(ahead), strict=True):
            assert torch.equal(here.ids_BT, there.ids_BT) and torch.equal(here.position_BT3, there.position_BT3)
            assert all(torch.equal(a.prepared.values_NF, b.prepared.values_NF) for a, b in zip(here.inputs, there.inputs, strict=True))


def test_an_artist_whom_the_start_has_seen_cannot_be_left_out(tmp_path, emoji40):
    """A model that goes on from one which saw everybody is no test of an unseen artist."""
    native.save(tiny_gpt(), tmp_path / "start")
    with pytest.raises(TrainingError, match="trained without nobody, not without emojione"):
        RECIPES["emoji"]({"data": str(emoji40), "init": str(tmp_path / "start"), "leave_out": "emojione"})
