"""States that say who they are, and a system whose every call can fail: what the tests of faults share."""

import errno
import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mmgpt.checkpoint import write_folder
from mmgpt.train.saves import FILES, name_of, newest_good

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EINTR)
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
