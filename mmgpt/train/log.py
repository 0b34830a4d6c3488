"""Figures and warnings -> lines of a run's log.jsonl. While it is open, no other process trains in that folder."""

import errno
import json
import os
import sys
from pathlib import Path

from mmgpt.errors import TrainingError

NAME = "log.jsonl"


class Log:
    """`with Log(folder) as log: log.write({"step": 1})`. A full disk costs lines, never the run; a line that a stop cut in two spoils no other."""

    def __init__(self, folder: str | Path, writes: bool = True):
        self.path, self.handle, self.torn, self.broken = Path(folder) / NAME, None, False, False
        self.writes = writes  # of several processes that train together, the first

    def __enter__(self) -> "Log":
        if not self.writes:
            return self
        self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            reserve(self.handle, self.path.parent)
        except TrainingError:
            os.close(self.handle)
            raise
        size = os.fstat(self.handle).st_size
        self.torn = size > 0 and os.pread(self.handle, 1, size - 1) != b"\n"
        return self

    def __exit__(self, *_: object) -> None:
        if self.handle is not None:
            os.close(self.handle)

    def write(self, figures: dict) -> None:
        if self.handle is None:
            return
        line = ("\n" if self.torn else "") + json.dumps(figures) + "\n"
        try:
            self.torn = os.write(self.handle, line.encode()) < len(line.encode())
        except OSError as error:
            if not self.broken:
                tell(f"{self.path} takes no more lines ({error.strerror}); training goes on")
            self.broken = True

    def say(self, line: str) -> None:
        """Something that a person should know: on the screen, and in the log as {"warning": ...}."""
        tell(line)
        self.write({"warning": line})


def tell(line: str) -> None:
    print(f"mmgpt: {line}", file=sys.stderr, flush=True)


def reserve(handle: int, folder: Path) -> None:
    """A lock of this process on its log: the system takes it back when the process ends, however it does."""
    from fcntl import LOCK_EX, LOCK_NB, lockf

    try:
        lockf(handle, LOCK_EX | LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise TrainingError(f"another process trains in {folder}: wait for its end, or choose another folder") from None
        # some network disks have no locks: then nobody is kept out
