"""Saved states of a run: written while training goes on, few are kept, the newest good one is found and whatever is skipped is named."""

import errno
import os
from threading import Event

import pytest
from faults import calls, content, found, number_in, saved

from mmgpt.checkpoint import MANIFEST
from mmgpt.errors import TrainingError, VersionError
from mmgpt.train.saves import Saves, begin, laid_over, name_of, newest_good, states

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


# --- finding and beginning --------------------------------------------------------------------------------------------------------------


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
