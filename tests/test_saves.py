"""A run's saved states under faults: crashes at every call, full disks, damage, kills. The newest good one is found, whatever happens."""

import errno
import json
import os
import signal
import time
import warnings
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from random import Random
from threading import Event

import pytest
import torch

from mmgpt.checkpoint import MANIFEST, write_folder
from mmgpt.errors import CheckpointError, TrainingError, VersionError
from mmgpt.train.saves import FILES, LEFT, Saves, begin, clean, laid_over, name_of, newest_good, states

IO = ("open", "write", "fsync", "close", "replace", "mkdir", "unlink", "rmdir", "scandir")  # all that a save asks of the system


def content(number: int, size: int = 300) -> tuple[dict, dict]:
    """A state of which every tensor and text says the number."""
    return {file: {"a": torch.full((size,), float(number)), "b": torch.tensor([number])} for file in FILES}, {
        "run.json": json.dumps({"step": number})
    }


def number_in(state) -> int:
    """The number; all parts must say the same."""
    said = {float(x) for named in state.tensors.values() for tensor in named.values() for x in tensor.unique()}
    assert said == {json.loads(state.texts["run.json"])["step"]} and set(state.tensors) == set(FILES)
    return int(said.pop())


def saved(folder: Path, *numbers: int) -> Path:
    folder.mkdir(exist_ok=True)
    with calls():
        for number in numbers:
            write_folder(folder / name_of(number), *content(number))
    return folder


def found(folder: Path) -> int:
    """The newest good state's number, of a folder without damage."""
    state, skipped = newest_good(folder)
    assert not skipped, skipped
    return number_in(state)


class Killed(BaseException):
    """A stop after which the process does nothing more."""


@contextmanager
def calls(at: int = -1, act=None, forever: bool = False):
    """Counts the calls of `IO`; number `at` (`forever`: and all behind it) is `act(name, function, *args)` instead. Nothing waits for a disk."""
    seen: list[str] = []

    def hooked(name, function):
        def wrapped(*args, **settings):
            seen.append(name)
            hit = len(seen) - 1 == at or (forever and len(seen) > at >= 0)
            return act(name, function, *args, **settings) if hit else function(*args, **settings)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for name in IO:
            patch.setattr(os, name, hooked(name, (lambda handle: None) if name == "fsync" else getattr(os, name)))
        yield seen


def failing(number: int):
    def act(name, function, *args, **settings):
        if name == "close":
            function(*args)  # the system gives a handle back even where it reports an error
        raise OSError(number, os.strerror(number))

    return act


# --- saves that go well -----------------------------------------------------------------------------------------------------------------


def test_a_state_is_what_it_was_when_it_was_saved(tmp_path):
    """Training goes on while the disk is slow: what it changes meanwhile is in no state; the next save waits."""
    slow, fsync = Event(), os.fsync
    tensors, texts = content(1)
    with pytest.MonkeyPatch.context() as patch, Saves(tmp_path) as saves:
        patch.setattr(os, "fsync", lambda handle: (slow.wait(10), fsync(handle)))
        saves.save(1, tensors, texts)
        for named in tensors.values():
            named["a"].fill_(7)
        assert saves.thread.is_alive() and not states(tmp_path)
        slow.set()
        saves.save(2, *content(2))
        assert found(tmp_path) == 1 or states(tmp_path)[0].name == name_of(2)
    assert found(tmp_path) == 2 and [path.name for path in states(tmp_path)] == [name_of(2), name_of(1)]


@pytest.mark.parametrize(("last", "every", "kept"), [(1, 0, [9]), (3, 0, [9, 8, 7]), (2, 4, [9, 8, 4]), (1, 3, [9, 6, 3])])
def test_what_is_kept(tmp_path, last, every, kept):
    with calls(), Saves(tmp_path, last, every) as saves:
        for step in range(1, 10):
            saves.save(step, *content(step))
    assert [path.name for path in states(tmp_path)] == [name_of(step) for step in kept]
    assert len(list(tmp_path.iterdir())) == len(kept)


def test_what_is_not_removed(tmp_path):
    """A state with somebody's notes, a state of a later step, and what is no state."""
    saved(tmp_path, 1, 2, 9)
    (tmp_path / name_of(1) / "notes.txt").write_text("mine")
    (tmp_path / "step-of-mine").mkdir()
    with calls(), Saves(tmp_path, 1) as saves:
        saves.save(3, *content(3))
    assert {path.name for path in tmp_path.iterdir()} == {name_of(1), name_of(3), name_of(9), "step-of-mine"}


# --- T-2: crashes -----------------------------------------------------------------------------------------------------------------------


def die(name, function, *args, **settings):
    raise Killed


def half(name, function, *args, **settings):
    """As `die`, but of what was being written a half is on the disk."""
    if name == "write":
        function(args[0], args[1][: len(args[1]) // 2])
    raise Killed


@pytest.mark.parametrize("act", [die, half])
@pytest.mark.parametrize("new", [4, 3], ids=["a new step", "the same step"])
def test_a_crash_at_every_call(tmp_path, new, act):
    """T-2. The old state or the new one is found, never neither; nothing half written is taken for a state; the next start cleans up."""
    ends = set()
    for at in count():
        folder, said = saved(tmp_path / str(at), 2, 3), []
        tensors, texts = content(40)
        with calls(at, act, forever=True) as seen:
            try:
                Saves(folder, 2).write(new, tensors, texts)
            except Killed:
                pass
        over = len(seen) <= at
        state = begin(folder, "auto", said.append)
        ends.add(number_in(state))
        assert number_in(state) in (3, 40) and not any("skipped" in line for line in said), (at, seen[-1], said)
        assert all(path in states(folder) for path in folder.iterdir()), (at, seen[-1])
        with calls():
            Saves(folder, 2).write(5, *content(5))
        assert found(folder) == 5 and len(states(folder)) == 2
        if over:
            break
    assert ends == {3, 40} and at > 40, at
    print(f"T-2: {at} calls, each crashed at ({act.__name__})")


def test_the_order_in_which_a_save_reaches_the_disk(tmp_path):
    """Power may fail: every file, then the folder they are in, then the new name, then the folder that has it. (No kill can show that.)"""
    saved(tmp_path, 1)
    log, opened = [], {}
    with pytest.MonkeyPatch.context() as patch:
        open_, fsync, replace, write = os.open, os.fsync, os.replace, os.write

        def opens(path, *args, **settings):
            handle = open_(path, *args, **settings)
            opened[handle] = Path(path).name.partition(".new-")[0] if "dir_fd" not in settings else ""
            return handle

        patch.setattr(os, "open", opens)
        patch.setattr(os, "fsync", lambda handle: (log.append(("disk", opened[handle])), fsync(handle)))
        patch.setattr(os, "write", lambda handle, data: (log.append(("write", opened[handle])), write(handle, data))[1])
        patch.setattr(os, "replace", lambda a, b: (log.append(("name", Path(b).name)), replace(a, b)))
        write_folder(tmp_path / name_of(2), *content(2))
    order = [one for n, one in enumerate(log) if one[0] != "write" or log[n + 1] != one]
    files = [(what, name) for name in (*FILES, "run.json", MANIFEST) for what in ("write", "disk")]
    assert order == [*files, ("disk", name_of(2)), ("name", name_of(2)), ("disk", tmp_path.name)]


# --- T-4: disks that fail ---------------------------------------------------------------------------------------------------------------

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EINTR)


@pytest.mark.parametrize("forever", [False, True], ids=["once", "from then on"])
def test_a_disk_that_fails_at_every_call(tmp_path, forever):
    """T-4. The run is told, not ended; what was saved stays; the next save works. Here each call fails with one of the errors, in turn."""
    failed_everywhere(tmp_path, ERRORS, forever)


@pytest.mark.long
@pytest.mark.parametrize("forever", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
def test_a_disk_that_fails_at_every_call_with_every_error(tmp_path, number, forever):
    failed_everywhere(tmp_path, (number,), forever)


def failed_everywhere(place: Path, numbers: tuple[int, ...], forever: bool) -> None:
    failures = 0
    for at in count():
        number, said = numbers[at % len(numbers)], []
        folder = saved(place / str(at), 2)
        saves = Saves(folder, 1, say=said.append)
        with calls(at, failing(number), forever) as seen:
            saves.save(3, *content(3))
            saves.wait()
        if len(seen) <= at:
            break
        good = (2, 3) if forever else (2,)  # where even taking the new name back fails it stays; it is whole
        assert found(folder) in (good if saves.failure else (3,)), at
        if saves.failure:
            assert os.strerror(number) in said[0] and "step 3 is not saved" in said[0] and "nothing was changed" in said[0], said
            with pytest.raises(CheckpointError, match="step 3 is not saved"):
                saves.close()
            failures += 1
        with calls(), saves:
            saves.save(4, *content(4))
        assert found(folder) == 4
    assert failures > 20 and not said
    errors = ", ".join(errno.errorcode[number] for number in numbers)
    print(f"T-4: {errors}, {'from then on' if forever else 'once'}, at each of {at} calls: {failures} saves failed, 0 runs")


@pytest.mark.parametrize("piece", [1, 7, 4096])
def test_a_disk_that_takes_little_at_a_time(tmp_path, piece):
    write = os.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: write(handle, data[:piece]))
        saved(tmp_path, 1)
    assert found(tmp_path) == 1


def test_a_disk_that_takes_nothing(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: 0)
        with pytest.raises(CheckpointError, match="takes 0 bytes.*nothing was changed"):
            saved(tmp_path, 1)


# --- T-5: damage ------------------------------------------------------------------------------------------------------------------------


def flip(data: bytearray, random: Random) -> None:
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def zero(data: bytearray, random: Random) -> None:
    page = random.randrange(0, len(data), 4096)
    data[page : page + 4096] = bytes(len(data[page : page + 4096]))


def cut(data: bytearray, random: Random) -> None:
    del data[random.randrange(len(data)) :]


def damaged(folder: Path, act, times: int, seed: int = 0) -> None:
    """`times` damages of a file of the newest state: each is seen, and the state before it is taken instead."""
    random, newest = Random(seed), folder / name_of(2)
    files, seen = sorted(newest.iterdir()), 0
    for _ in range(times):
        path = random.choices(files, [file.stat().st_size for file in files])[0]
        whole = path.read_bytes()
        data = bytearray(whole)
        act(data, random)
        path.write_bytes(data)
        state, skipped = newest_good(folder)
        assert number_in(state) == 1 and [one for one, _ in skipped] == [newest], (path, act)
        seen += 1
        path.write_bytes(whole)
    assert found(folder) == 2
    print(f"T-5: {act.__name__}: {seen} of {times} seen before use")


TIMES = [(flip, 100, 1000), (zero, 30, 300), (cut, 30, 300)]


@pytest.mark.parametrize(("act", "times"), [(act, few) for act, few, _ in TIMES], ids=lambda x: getattr(x, "__name__", x))
def test_damage_is_seen(tmp_path, act, times):
    """T-5."""
    damaged(two_states(tmp_path), act, times)


@pytest.mark.long
@pytest.mark.parametrize(("act", "times"), [(act, many) for act, _, many in TIMES], ids=lambda x: getattr(x, "__name__", x))
def test_much_damage_is_seen(tmp_path, act, times):
    damaged(two_states(tmp_path), act, times, seed=1)


def two_states(folder: Path) -> Path:
    for number in (1, 2):
        write_folder(folder / name_of(number), *content(number, 5000))
    return folder


@pytest.mark.parametrize("name", [*FILES, "run.json", MANIFEST])
def test_a_file_that_is_missing_or_of_another_state(tmp_path, name):
    folder = two_states(tmp_path)
    here, other = folder / name_of(2) / name, folder / name_of(1) / name
    whole = here.read_bytes()
    for damage in (lambda: here.write_bytes(other.read_bytes()), here.unlink):
        damage()
        state, skipped = newest_good(folder)
        assert number_in(state) == 1 and len(skipped) == 1 and "\n" not in skipped[0][1]
        here.write_bytes(whole)


def test_a_file_too_many_is_named_and_not_read(tmp_path):
    folder, said = two_states(tmp_path), []
    (folder / name_of(2) / "more.safetensors").write_bytes(b"x")
    assert number_in(begin(folder, True, said.append)) == 2
    assert [line for line in said if "more.safetensors is not in the manifest: it is not read" in line]


def test_what_is_damaged_is_put_aside(tmp_path):
    """It is named in one line, kept, and in nobody's way; with nothing good left, `auto` begins anew and `true` does not."""
    folder, said = saved(tmp_path, 1, 2, 3), []
    for number in (2, 3):
        (folder / name_of(number) / "run.json").write_text("{}")
    assert number_in(begin(folder, "auto", said.append)) == 1
    assert [line.partition(":")[0] for line in said[:2]] == ["skipped step-0000003", "skipped step-0000002"] and "\n" not in "".join(said)
    assert "is kept as step-0000003.damaged-" in said[0] and str(folder / name_of(1)) in said[2]
    assert len(list(folder.glob("*.damaged-*"))) == 2 and found(folder) == 1
    (folder / name_of(1) / MANIFEST).write_text("{}")
    with pytest.raises(TrainingError, match="holds 0 good saved states to go on from, 1 damaged; .*manifest.json is damaged"):
        begin(folder, True, said.append)
    assert begin(folder, "auto", said.append) is None and "beginning anew" in said[-1]


def test_a_state_of_a_newer_version_is_no_damage(tmp_path):
    """Whoever goes back to an older mmgpt is told so, and nothing is done over again or put aside."""
    path = saved(tmp_path, 1, 2) / name_of(2) / MANIFEST
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    for how in (True, "auto"):
        with pytest.raises(VersionError, match="step-0000002 has format 2, this mmgpt reads up to 1: upgrade mmgpt"):
            begin(tmp_path, how)
    assert {entry.name for entry in tmp_path.iterdir()} == {name_of(1), name_of(2)}


def test_how_to_begin(tmp_path):
    assert begin(tmp_path, False) is None and begin(tmp_path, "auto") is None
    with pytest.raises(TrainingError, match="0 good saved states"):
        begin(tmp_path, "true")
    saved(tmp_path, 1)
    with pytest.raises(TrainingError, match="step-0000001 exists: pass resume=true"):
        begin(tmp_path)
    with pytest.raises(TrainingError, match="resume=perhaps: use true"):
        begin(tmp_path, "perhaps")
    assert number_in(begin(tmp_path, "true")) == number_in(begin(tmp_path, "auto", lambda line: None)) == 1


def test_permissions_are_no_damage(tmp_path, monkeypatch):
    saved(tmp_path, 1, 2)

    def denied(number):
        def read(path):
            raise OSError(number, os.strerror(number), str(path)) if path.name == name_of(2) else AssertionError

        return read

    monkeypatch.setattr("mmgpt.train.saves.read_folder", denied(errno.EACCES))
    with pytest.raises(PermissionError):
        newest_good(tmp_path)
    monkeypatch.undo()
    assert found(tmp_path) == 2


def test_states_of_ranks_are_laid_over_each_other():
    assert laid_over({"seed": 7, "lanes": {"0": [1]}}, {"seed": 7, "lanes": {"1": [2]}}) == {"seed": 7, "lanes": {"0": [1], "1": [2]}}
    with pytest.raises(TrainingError, match=r"lanes\.0 is 1 on one rank, 2 on another"):
        laid_over({"lanes": {"0": 1}}, {"lanes": {"0": 2}})


# --- T-1: kills -------------------------------------------------------------------------------------------------------------------------


def save_until_killed(folder: Path, start: int, told: int, same: bool) -> None:
    """In a child: saves step after step and says over a pipe which are on the disk; by a thread, or over the same `last` again and again."""
    torch.set_num_threads(1)
    saves = Saves(folder, 2, 5)
    for step in count(start):
        if same:
            write_folder(folder / "last", *content(step, 100_000))
        else:
            saves.save(step, *content(step, 100_000))
            saves.wait()
            assert saves.failure is None
        os.write(told, step.to_bytes(4, "big"))


def kill_one(folder: Path, start: int, same: bool, seconds: float) -> int:
    """Starts a child, kills it after a while; the last step that it said it had saved."""
    read, told = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside torch's threads: the child only copies and writes
        child = os.fork()
    if child == 0:
        try:
            save_until_killed(folder, start, told, same)
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    os.close(told)
    with os.fdopen(read, "rb") as pipe:
        return int.from_bytes(pipe.read()[-4:], "big")


def killed(folder: Path, times: int, same: bool, seed: int) -> None:
    """After each kill: a good state, of one step, none older than the last that was told; what was left lying is cleaned."""
    random, during, step = Random(seed), 0, 1
    saved(folder, 1)
    if same:
        (folder / name_of(1)).rename(folder / "last")
    begun = time.perf_counter()
    for number in range(times):
        told = kill_one(folder, step + 1, same, random.uniform(0, 0.5))
        during += any(LEFT.fullmatch(path.name) for path in folder.iterdir())
        clean(folder)
        assert all(path in states(folder) for path in folder.iterdir()), number
        assert found(folder) >= max(told, step), (number, seed)
        step = found(folder)
    print(f"T-1: {times} kills, {during} in the midst of a save, {step} saves, 0 lost, 0 unreadable, 0 mixed, 0 older than told; ", end="")
    print(f"{'same folder' if same else 'thread, new folders'}, {time.perf_counter() - begun:.0f} s")


@pytest.mark.parametrize("same", [False, True], ids=["thread", "same folder"])
def test_kills(tmp_path, same):
    """T-1."""
    killed(tmp_path, 4, same, seed=0)


@pytest.mark.long
@pytest.mark.parametrize("same", [False, True], ids=["thread", "same folder"])
def test_many_kills(tmp_path, same):
    killed(tmp_path, 100, same, seed=1)
