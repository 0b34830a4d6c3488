"""Several processes train what one would have trained: the same batches, losses and weights; and none of them waits for ever."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_train import QUICK, gpt_task, tensors_of
from tiny import gap, picture, tiny_gpt

from mmgpt.checkpoint import read_folder
from mmgpt.errors import TrainingError
from mmgpt.pack import pack
from mmgpt.train.loop import Trainer, train
from mmgpt.train.ranks import Ranks, joined, local
from mmgpt.train.settings import Settings
from mmgpt.train.task import introduce, pieces
from mmgpt.types import Part

ROOT = Path(__file__).parents[1]
FEW = replace(QUICK, steps=4, log_every=1, timeout=100)


def together(world: int, work, wait: float = 300.0, mourn: float = 60.0) -> list[int | None]:
    """Runs `work(rank)` in `world` processes, as torchrun would start them; their exit codes, None of one that had to be killed.

    That is done `mourn` seconds after one of them has failed: torchrun does it, too.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def child(rank: int) -> None:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
        os.environ.update({name: str(value) for name, value in names.items()})
        torch.set_num_threads(1)
        code = 1
        try:
            work(rank)
            code = 0
        except (TrainingError, KeyboardInterrupt) as error:
            print(f"rank {rank}:", error, file=sys.stderr, flush=True)
            code = 2
        except BaseException:  # which nobody above would see
            traceback.print_exc()
        finally:
            os._exit(code)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=child, args=(rank,)) for rank in range(world)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks where threads are
        for process in processes:
            process.start()
    until = time.monotonic() + wait
    while any(process.exitcode is None for process in processes) and time.monotonic() < until:
        if any(process.exitcode for process in processes):
            until = min(until, time.monotonic() + mourn)
            mourn = wait
        time.sleep(0.02)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def alike(one: Path, other: Path) -> float:
    """Losses and norms of two runs agree to 1e-6 of their size; how far their states are apart at the end."""
    for a, b in zip(log_of(one), log_of(other), strict=True):
        for name in ("loss", "text", "image", "norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-6), (a["step"], name)
    a, b = tensors_of(one), tensors_of(other)
    assert a.keys() == b.keys()
    return max(gap(a[name], b[name]) for name in a)


# --- one batch in parts -----------------------------------------------------------------------------------------------------------------


def ids_of(streams) -> list[tuple]:
    """Each document's ids, and the patches that are read, whatever row they stand in."""
    rows = [tuple(ids[document > 0].tolist()) for stream in streams for ids, document in zip(stream.ids_BT, stream.document_BT, strict=True)]
    patches = [tuple(row.tolist()) for stream in streams for given in stream.inputs for row in given.prepared.values_NF.flatten(1)]
    return sorted(rows) + sorted(patches)


def test_parts_are_the_whole():
    """Also with distorted pictures and hidden codes: 2 parts of 2 are 4 of 4 are the batch; none is empty."""
    task = gpt_task(captions=5, draws=6, augment=True, hide=1.0)
    for step in (0, 7):
        wanted = ids_of(task.batch(step))
        for of in (2, 4):
            parts = [task.share(step, number, of) for number in range(of)]
            assert all(len(part) == 2 for part in parts) and ids_of([stream for part in parts for stream in part]) == wanted
            counted = [task.counts(part) for part in parts]
            assert {head: sum(one[head] for one in counted) for head in counted[0]} == task.counts(task.batch(step))
    with pytest.raises(TrainingError, match=r"captions=5, draws=6 in 6 parts .*at least 6"):
        task.share(0, 0, 6)


def test_packed_parts_hide_the_same_codes():
    """What is hidden belongs to a document, wherever packing puts it."""
    bare, packed = (gpt_task(captions=0, draws=12, hide=1.0, row_length=length).batch(2)[0] for length in (0, 128))
    assert len(packed.ids_BT) < 6

    def documents(stream):
        numbered = stream.document_BT + 100 * torch.arange(len(stream.ids_BT))[:, None]
        return sorted(tuple(stream.ids_BT[numbered == n].tolist()) for n in numbered[stream.document_BT > 0].unique())

    assert documents(bare) == documents(packed)


def test_accumulated_gradients_are_those_of_the_whole(tmp_path):
    """8 documents of each direction at once, in twos, in fours."""
    for accumulate in (1, 2, 4):
        train(gpt_task(captions=8, draws=8), replace(FEW, steps=3, ema=0.5, accumulate=accumulate), tmp_path / str(accumulate))
    assert alike(tmp_path / "1", tmp_path / "2") < 1e-5 and alike(tmp_path / "1", tmp_path / "4") < 1e-5


class Bare:
    """A task that makes batches for one process."""

    def __init__(self):
        self.model = tiny_gpt().train()

    def batch(self, step):
        return f"batch {step}"

    def losses(self, batch): ...

    def size(self, batch):
        return 1

    def sample(self, folder, step): ...

    def export(self, folder, weights): ...

    def compile(self): ...


def test_a_task_that_makes_batches_for_one_is_refused():
    """But not one that knows of ranks, and whose batches follow each other."""
    task = Bare()
    with pytest.raises(TrainingError, match=r"2 ranks, and Bare makes batches for 1: give it share"):
        introduce(task, Ranks(1, 2), 1)
    introduce(task, Ranks(), 3)
    assert pieces(task, 5, 3) == ["batch 15", "batch 16", "batch 17"]
    task.world = task.rank = None
    introduce(task, Ranks(1, 2), 1)
    assert (task.rank, task.world) == (1, 2)
    with pytest.raises(TrainingError, match=r"captions=4, draws=4 in 6 parts"):
        introduce(gpt_task(), Ranks(1, 2), 3)


def test_which_part_goes_to_whom():
    """3 ranks with 2 parts each: the same 6 parts that one rank would have."""
    task = Bare()
    task.share = lambda step, number, of: f"{step}: {number} of {of}"
    made = [pieces(task, 5, 2, Ranks(rank, 3)) for rank in range(3)]
    assert made == [[f"5: {rank} of 6", f"5: {rank + 3} of 6"] for rank in range(3)]
    assert pieces(task, 5) == ["batch 5"]


# --- two processes ----------------------------------------------------------------------------------------------------------------------


def test_two_ranks_learn_what_one_learns(tmp_path):
    """The first alone writes; samples are drawn by both, and change nothing."""
    settings = replace(FEW, ema=0.5, steps=3)
    train(gpt_task(), settings, tmp_path / "1")

    def work(rank):
        task = gpt_task()
        task.sample = lambda folder, step: (folder / f"{step}.txt").write_text(f"{task.model.draw(['a cat'])[0].size}")
        train(task, replace(settings, sample_every=2), tmp_path / "2")

    assert together(2, work) == [0, 0]
    assert alike(tmp_path / "1", tmp_path / "2") < 3e-5  # AdamW's first steps are as large for rounding as for a gradient
    a, b = (read_folder(tmp_path / name / "final")[0]["model.safetensors"] for name in "12")
    assert a.keys() == b.keys() and max(gap(a[name].float(), b[name].float()) for name in a) < 2e-3
    assert {path.name for path in (tmp_path / "2" / "samples").iterdir()} == {"2.txt"}


@pytest.mark.long
def test_a_run_changes_its_number_of_ranks(tmp_path, capfd):
    """Two ranks stop when one is told to; one goes on. Muon, whose updates need whole weights, with parts of batches."""
    settings = replace(FEW, muon=True)
    train(gpt_task(), settings, tmp_path / "whole")

    def stop(trainer, figures):
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    assert together(2, lambda rank: train(gpt_task(), settings, tmp_path / "parts", show=stop)) == [2, 2]  # the first alone is told
    assert capfd.readouterr().err.count("stopped after step 2") == 2
    assert tensors_of(tmp_path / "parts")["step"] == 2
    train(gpt_task(), replace(settings, accumulate=2), tmp_path / "parts", resume=True)
    assert alike(tmp_path / "whole", tmp_path / "parts") < 1e-4


class Uneven(Bare):
    """One rank reads a picture, the other only words; both write words."""

    def share(self, step, number, of):
        samples = [[Part(picture(step)), Part("a cat", True)], [Part("draw: a"), Part("a small cat", True)]]
        return pack([self.model.write(sample) for sample in samples[number::of]], self.model.spans)

    def batch(self, step):
        return self.share(step, 0, 1)

    def counts(self, batch):
        return {target.head: len(target.id_N) for target in batch.targets}

    def losses(self, batch, counts):
        loss = self.model.losses(batch)["text"].sum() / counts["text"]
        return loss, {"text": float(loss.detach()), "image": 0.0}


def test_a_rank_without_pictures_waits_for_nobody(tmp_path):
    """What another rank's loss reaches and its own does not is learned all the same; what none reaches has no moments."""
    settings = replace(FEW, steps=2)
    train(Uneven(), settings, tmp_path / "1")
    assert together(2, lambda rank: train(Uneven(), settings, tmp_path / "2")) == [0, 0]
    assert alike(tmp_path / "1", tmp_path / "2") < 1e-5
    names = tensors_of(tmp_path / "2")
    assert any("encoders.image" in name and "exp_avg" in name for name in names)


# --- what is not finite -----------------------------------------------------------------------------------------------------------------

KINDS = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
PLACES = ("loss", "gradient", "rank", "modality", "part")


def faulty(task, rank: int, fault):
    """The task with what `fault(step)` says, (place, kind), put into its losses: on all ranks, but where the place says less."""
    losses, calls = task.losses, []

    def spoiled(part, counts):
        step, number = divmod(len(calls), 2)  # two parts an update
        calls.append(1)
        loss, figures = losses(part, counts)
        place, kind = fault(step) or ("", "")
        if place == "gradient":
            row = task.model.table.weight[:1] * 1.0
            row.register_hook(lambda g: torch.full_like(g, KINDS[kind]))
            return loss + 0 * row.sum(), figures
        if place == "loss" or (place == "rank" and rank == 1) or (place == "part" and number == 1 and rank == 0):
            return loss + KINDS[kind], figures
        if place == "modality":
            return loss + 0 * KINDS[kind], figures | {"image": figures["image"] * KINDS[kind]}
        return loss, figures

    task.losses = spoiled
    return task


FAULTS = {n + n // 2: (place, kind) for n, (place, kind) in enumerate((place, kind) for place in PLACES for kind in KINDS)}
UPDATES = max(FAULTS) + 2


def spoiled_run(folder: Path, rank: int, ranks: Ranks) -> None:
    """Two of three updates are spoiled; each rank notes after which updates its weights were others."""
    trainer, moved = Trainer(faulty(gpt_task(), rank, FAULTS.get), Settings(accumulate=2, warmup=0), ranks), []
    for _ in range(UPDATES):
        before = [local(t).clone() for held in (trainer.parameters, trainer.average) for t in held.values()]
        figures = trainer.update()
        after = [local(t) for held in (trainer.parameters, trainer.average) for t in held.values()]
        moved.append(not all(torch.equal(one, other) for one, other in zip(before, after, strict=True)))
    finite = all(bool(torch.isfinite(local(p)).all()) for p in trainer.parameters.values())
    (folder / f"{rank}.json").write_text(json.dumps({"moved": moved, "skipped": figures["skipped"], "finite": finite}))


def test_what_is_not_finite_is_learned_on_no_rank(tmp_path):
    """NaN and both infinities, in the loss, one gradient, one rank, one modality, one part of two: T-13."""

    def work(rank):
        with joined(torch.device("cpu"), 60) as ranks:
            spoiled_run(tmp_path, rank, ranks)

    assert together(2, work) == [0, 0]
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == {"moved": [step not in FAULTS for step in range(UPDATES)], "skipped": len(FAULTS), "finite": True}


def test_three_in_a_row_stop_all_ranks(tmp_path):
    """One rank is spoiled; the report names the batches of both."""

    def work(rank):
        task = faulty(gpt_task(), rank, lambda step: ("rank", "nan") if step >= 1 else None)
        task.ids = lambda part: f"{len(part)} streams of rank {rank}"
        train(task, replace(FEW, steps=9, accumulate=2), tmp_path)

    assert together(2, work) == [2, 2]
    said = json.loads((tmp_path / "bad-batch.json").read_text())
    assert [one["step"] for one in said] == [1, 2, 3] and said[0]["batches"] == [[f"2 streams of rank {rank}"] * 2 for rank in (0, 1)]
    assert tensors_of(tmp_path)["step"] == 4


# --- ranks that are lost ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)])
def test_a_rank_that_is_lost_ends_the_run(how, tmp_path, capfd):
    """Killed or hanging: the other says so in one line and ends within the timeout; what was saved is whole."""

    def work(rank):
        task, steps = gpt_task(), []
        losses = task.losses
        task.losses = lambda *given: os.kill(os.getpid(), how) if steps.append(1) or (rank == 1 and len(steps) == 3) else losses(*given)
        train(task, replace(FEW, save_every=1, timeout=8), tmp_path)

    begin = time.monotonic()
    codes = together(2, work, 100, mourn=60 if how == signal.SIGKILL else 0)
    assert codes[0] == 2 and codes[1] in (None, -how) and time.monotonic() - begin < 90
    assert "rank 0 of 2 has lost the others" in capfd.readouterr().err and tensors_of(tmp_path)["step"] == 2


# --- long -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_elastic_two_one_four(tmp_path):
    """T-9: 2, then 1, then 4 ranks see the batches that 1 sees throughout."""
    settings = replace(FEW, steps=9)
    train(gpt_task(), settings, tmp_path / "whole")

    def until(last):
        def stop(trainer, figures):
            if trainer.step == last:
                os.kill(os.getpid(), signal.SIGTERM)

        return stop

    folder = tmp_path / "parts"
    assert together(2, lambda rank: train(gpt_task(), settings, folder, show=until(3))) == [2, 2]
    with pytest.raises(KeyboardInterrupt):
        train(gpt_task(), settings, folder, resume=True, show=until(6))
    assert together(4, lambda rank: train(gpt_task(), settings, folder, resume=True)) == [0] * 4
    assert alike(tmp_path / "whole", folder) < 1e-4


@pytest.mark.long
def test_torchrun_on_the_command_line(tmp_path, emoji40):
    """torchrun --nproc-per-node 2 -m mmgpt train ...: the codec, then the model, on forty pictures."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mmgpt", "train"]
    codec = ["emoji-codec", "width=16", "blocks=1", "levels=4,4", "stride=8,8", "batch_size=4", f"out={tmp_path}/codec"]
    model = ["emoji", "depth=2", "width=64", "conv_stem=0", "captions=2", "draws=2", f"codec={tmp_path}/codec/final", f"out={tmp_path}/model"]
    for words in (codec, model):
        done = subprocess.run(
            [*run, *words, f"data={emoji40}", "steps=2", "log_every=1", "sample_every=0"], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("final after 2 steps") == 1
    assert [row["step"] for row in log_of(tmp_path / "model")] == [1, 2]
