"""Faults while states are saved and read: crashes and failing disks at every call, damage, kills. Of hundreds in `make test-long`, few here."""

import errno
import os
import signal
import time
import warnings
from itertools import count
from pathlib import Path
from random import Random

import pytest
import torch
from faults import ERRORS, Killed, calls, content, failing, found, number_in, saved

from mmgpt.checkpoint import MANIFEST, read_folder, write_folder
from mmgpt.errors import CheckpointError
from mmgpt.train.saves import FILES, LEFT, Saves, begin, clean, name_of, newest_good, states

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
        assert all(path in states(folder) and read_folder(path) for path in folder.iterdir()), (at, seen[-1])
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
