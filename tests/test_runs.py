"""A run and its folder: it goes on through full disks, stops and damage, and whoever starts it again gets what an unbroken run would have."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import nn

from mmgpt.checkpoint import MANIFEST
from mmgpt.errors import CheckpointError, TrainingError, VersionError
from mmgpt.train.log import Log
from mmgpt.train.loop import Trainer, train
from mmgpt.train.saves import State, name_of, newest_good, states
from mmgpt.train.settings import Settings

OLD = Path(__file__).parent / "data" / "format-1"
SHORT = Settings(steps=8, learning_rate=0.01, warmup=2, save_every=2, sample_every=0, log_every=1)


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.zeros(3))


class LineTask:
    """Nine weights."""

    def __init__(self):
        self.model = Line()

    def batch(self, step):
        return torch.full((4, 2), float(step + 1))

    def losses(self, batch):
        loss = ((batch @ self.model.w + self.model.b) ** 2).mean()
        return loss, {"line": float(loss.detach())}

    def size(self, batch):
        return len(batch)

    def export(self, folder, weights):
        folder.mkdir(exist_ok=True)

    def sample(self, folder, step): ...

    def compile(self): ...


class StreamTask(LineTask):
    """Its batches are no function of the step, but of what was drawn before."""

    def __init__(self):
        super().__init__()
        self.drawn = 0

    def batch(self, step):
        self.drawn += 3
        return torch.full((4, 2), float(self.drawn % 7))

    def data_state(self):
        return {"drawn": self.drawn}

    def load_data_state(self, state):
        self.drawn = state["drawn"]


def end_of(folder: Path) -> dict[str, list]:
    state, skipped = newest_good(folder)
    assert not skipped and json.loads(state.texts["run.json"])["step"] == 8
    return {f"{file} {name}": tensor.flatten().tolist() for file, named in state.tensors.items() for name, tensor in named.items()}


def warnings_of(folder: Path) -> list[str]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["warning"] for line in lines if "warning" in line]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, list]:
    """Where an unbroken run ends."""
    folder = tmp_path_factory.mktemp("whole")
    train(LineTask(), SHORT, folder)
    assert [path.name for path in states(folder)] == [name_of(8), name_of(6)]
    return end_of(folder)


def stopped_at(step: int):
    def show(trainer, figures):
        if trainer.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return show


def test_auto_begins_and_goes_on(tmp_path, whole, capsys):
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3, saved in"):
        train(LineTask(), SHORT, tmp_path, resume="auto", show=stopped_at(3))
    assert [path.name for path in states(tmp_path)] == [name_of(3), name_of(2)] and not capsys.readouterr().err
    train(LineTask(), SHORT, tmp_path, resume="auto")
    assert end_of(tmp_path) == whole and f"going on from {tmp_path / name_of(3)}" in capsys.readouterr().err


def test_damage_costs_the_steps_since_the_state_before(tmp_path, whole, capsys):
    """What was skipped is said, in one line, on the screen and in the log; the end is that of an unbroken run, bit for bit."""
    with pytest.raises(KeyboardInterrupt):
        train(LineTask(), SHORT, tmp_path, show=stopped_at(5))
    path = tmp_path / name_of(5) / "average.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    train(LineTask(), SHORT, tmp_path, resume=True)
    said = capsys.readouterr().err.splitlines()
    assert "skipped step-0000005" in said[0] and "average.safetensors was changed: SHA-256" in said[0] and "going on from" in said[1]
    assert [line.removeprefix("mmgpt: ") for line in said] == warnings_of(tmp_path) and end_of(tmp_path) == whole


def test_a_full_disk_does_not_end_a_run(tmp_path, whole, monkeypatch, capsys):
    """Two saves of four fail. What was saved before stays, the next save works, and the updates are those of any other run."""
    fsync, room = os.fsync, {2: True, 4: False, 6: False, 8: True}

    def maybe(handle):
        if not room[now[0]]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    now, seen = [2], []

    def show(trainer, figures):
        if trainer.step % 2:
            wait_for(lambda: len(warnings_of(tmp_path)) == {1: 0, 3: 0, 5: 1, 7: 2}[trainer.step])  # the thread has had its turn
            wait_for(lambda: trainer.step != 3 or states(tmp_path))
            now[0] = trainer.step + 1
            seen.append([path.name for path in states(tmp_path)])

    monkeypatch.setattr(os, "fsync", maybe)
    train(LineTask(), SHORT, tmp_path, show=show)
    said, shown = warnings_of(tmp_path), capsys.readouterr().err
    assert seen == [[], *[[name_of(2)]] * 3] and end_of(tmp_path) == whole and len(said) == 2
    for step, line in zip((4, 6), said, strict=True):
        assert f"step {step} is not saved" in line and "No space left on device" in line and "step-0000002 stays the newest" in line
        assert "the next save tries again" in line and line in shown


def wait_for(done) -> None:
    for _ in range(1000):
        if done():
            return
        time.sleep(0.01)
    pytest.fail("it took too long")


def test_a_run_whose_last_state_is_not_saved_says_so(tmp_path, monkeypatch):
    """An error, at the end and after SIGTERM; what was saved before stays."""
    fsync, broken = os.fsync, []

    def maybe(handle):
        if broken:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        fsync(handle)

    def show(trainer, figures):
        if trainer.step == 3:
            wait_for(lambda: states(tmp_path))
            broken.append(1)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(os, "fsync", maybe)
    with pytest.raises(CheckpointError, match="step 3 is not saved: .*Read-only file system.*step-0000002 stays the newest"):
        train(LineTask(), SHORT, tmp_path, show=show)
    with pytest.raises(CheckpointError, match="step 8 is not saved"):
        train(LineTask(), SHORT, tmp_path, resume=True)
    assert [path.name for path in states(tmp_path)] == [name_of(2)]


def test_training_goes_on_while_a_state_is_written(tmp_path, whole, monkeypatch):
    """A disk that hangs holds nobody up until the next save; SIGTERM meanwhile waits for both."""
    fsync, slow, steps = os.fsync, Event(), []

    def show(trainer, figures):
        steps.append((trainer.step, len(states(tmp_path))))
        if trainer.step == 3:
            slow.set()
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(os, "fsync", lambda handle: (slow.wait(30), fsync(handle)))
    with pytest.raises(KeyboardInterrupt):
        train(LineTask(), SHORT, tmp_path, show=show)
    assert steps[:3] == [(1, 0), (2, 0), (3, 0)] and [path.name for path in states(tmp_path)] == [name_of(3), name_of(2)]
    monkeypatch.undo()
    train(LineTask(), SHORT, tmp_path, resume="auto")
    assert end_of(tmp_path) == whole


def test_streams_go_on_where_they_were(tmp_path):
    """A task's own data state is saved with the rest; without it, or with a task that has none, the run does not go on."""
    train(StreamTask(), SHORT, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(StreamTask(), SHORT, tmp_path / "parts", show=stopped_at(3))
    assert json.loads(newest_good(tmp_path / "parts")[0].texts["data.json"]) == {"drawn": 9}
    with pytest.raises(CheckpointError, match="holds the place in a stream of data"):
        train(LineTask(), SHORT, tmp_path / "parts", resume=True)
    train(StreamTask(), SHORT, tmp_path / "parts", resume=True)
    assert end_of(tmp_path / "parts") == end_of(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(LineTask(), SHORT, tmp_path / "line", show=stopped_at(3))
    with pytest.raises(CheckpointError, match="lacks the place in a stream of data"):
        train(StreamTask(), SHORT, tmp_path / "line", resume=True)


def test_one_run_a_folder(tmp_path):
    """A second process is kept out until the first has ended, however it ends."""
    program = f"import sys, time; from mmgpt.train.log import Log; Log({str(tmp_path)!r}).__enter__(); print('in', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"in\n"
        with pytest.raises(TrainingError, match="another process trains in"):
            train(LineTask(), SHORT, tmp_path)
        first.kill()
    train(LineTask(), SHORT, tmp_path)


def test_a_log_survives_stops_and_full_disks(tmp_path, monkeypatch, capsys):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"ste')
    with Log(tmp_path) as log:
        log.write({"step": 2})
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda handle, data: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
            log.write({"step": 3})
            log.write({"step": 4})
        log.write({"step": 5})
    assert (tmp_path / "log.jsonl").read_text().splitlines() == ['{"step": 1}', '{"ste', '{"step": 2}', '{"step": 5}']
    assert capsys.readouterr().err.count("takes no more lines (full); training goes on") == 1


# --- T-16: older, newer and damaged states ------------------------------------------------------------------------------------------------


def old_run(folder: Path) -> Path:
    from shutil import copytree

    return copytree(OLD / "run", folder / "run")


def test_a_run_of_format_1_goes_on(tmp_path):
    """Its state was in `last`, which is left alone until there are as many newer ones as are kept; its end is what that version computed."""
    folder = old_run(tmp_path)
    trainer = train(LineTask(), Settings(steps=6, learning_rate=0.01, warmup=2, save_every=2, sample_every=0), folder, resume=True)
    wanted = json.loads((OLD / "expected.json").read_text())["run"]
    found = {f"{file} {name}": value.flatten().tolist() for file, named in trainer.state()[0].items() for name, value in named.items()}
    assert found.keys() == wanted.keys() and all(found[name] == pytest.approx(wanted[name], rel=1e-5) for name in wanted)
    assert [path.name for path in states(folder)] == [name_of(6), name_of(4)] and trainer.step == 6


def test_a_run_of_a_newer_version_is_left_alone(tmp_path):
    path = old_run(tmp_path) / "last" / MANIFEST
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(VersionError, match="has format 99, this mmgpt reads up to 1: upgrade mmgpt"):
        train(LineTask(), SHORT, path.parents[1], resume="auto")
    assert {entry.name for entry in path.parents[1].iterdir()} == {"last", "log.jsonl"}


ABOUT = {"step": 3, "spent": 0.1, "settings": {"seed": 0, "steps": 8, "minutes": 0.0}}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"step": 1}', "[" * 100_000, '{"step": 1, "step": 2}']
    + [json.dumps(ABOUT | change) for change in ({"step": -1}, {"step": "3"}, {"step": True}, {"spent": None}, {"settings": 7}, {"settings": {}})],
)
def test_a_state_without_its_facts(text):
    tensors = {file: dict(LineTask().model.named_parameters()) for file in ("weights.safetensors", "average.safetensors")}
    trainer = Trainer(LineTask(), SHORT)
    with pytest.raises(CheckpointError, match="run.json (lacks|is no JSON object)"):
        trainer.resume(State(Path("here"), tensors | {"optimizer.safetensors": {}}, {"run.json": text}))
    for wrong in ({}, {"weights.safetensors": {}}, tensors | {"optimizer.safetensors": {"other:step": torch.ones(1)}}):
        with pytest.raises(CheckpointError, match="here holds another model"):
            trainer.resume(State(Path("here"), wrong, {"run.json": json.dumps(ABOUT)}))
    assert trainer.step == 0
