"""A mixture and some of its lanes -> batch after batch of packed rows, made here or ahead in other processes; the rows are the same.

The state is that of the rows that were handed out, whatever has been made ahead of them.
"""

import json
import os
import queue
import resource
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection

from mmgpt.data.lane import Lane, Packed
from mmgpt.data.mixture import Mixture
from mmgpt.data.wire import from_bytes, to_bytes
from mmgpt.errors import DataError

BEAT = b""  # what a worker says that is busy and has no row yet
BEATS = 0.5  # seconds between two of them


class Feed:
    """`next(feed)` is the next row of each lane, in order of `lanes`; `close` ends the processes, as does leaving `with`.

    Rank r of R takes the lanes `range(r, mixture.lanes, R)`: the global batches are the same for every R.
    `prefetch` batches are made ahead by `workers` processes. A worker that ends, or gives no sign for `patience` seconds, is an error;
    `memory` bytes are what each may take on top of what it starts with.
    """

    def __init__(
        self,
        mixture: Mixture,
        lanes: Sequence[int] | None = None,
        state: Mapping | None = None,
        workers: int = 0,
        prefetch: int = 2,
        patience: float = 25.0,
        memory: int = 4 * 2**30,
    ):
        self.mixture, self.lanes = mixture, list(range(mixture.lanes) if lanes is None else lanes)
        if not self.lanes or workers < 0 or prefetch < 0 or not patience > 0:
            raise DataError(
                f"{len(self.lanes)} lanes, workers={workers}, prefetch={prefetch}, patience={patience}: use at least 1 lane, the rest from 0"
            )
        self.states = {lane: states_of(mixture, state).get(str(lane)) for lane in self.lanes}
        workers = min(workers, len(self.lanes))
        self.workers = [Worker(mixture, {lane: self.states[lane] for lane in self.lanes[n::workers]}, patience, memory) for n in range(workers)]
        for worker in self.workers:  # threads after all forks
            worker.listen(max(1, prefetch * len(worker.lanes)))
        self.local = {} if workers else {lane: Lane(mixture, lane, self.states[lane]) for lane in self.lanes}

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> list[Packed]:
        found = [next(self.local[lane]) if self.local else self.workers[n % len(self.workers)].next() for n, lane in enumerate(self.lanes)]
        self.states = {lane: packed.state for lane, packed in zip(self.lanes, found, strict=True)}
        return found

    def state(self) -> dict[str, object]:
        """For JSON; `joined` makes one of those of all ranks."""
        lanes = {str(lane): state for lane, state in self.states.items() if state is not None}
        return {"mixture": self.mixture.stamp, "lanes": lanes}

    def close(self) -> None:
        for worker in self.workers:
            worker.close()

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def states_of(mixture: Mixture, state: Mapping | None) -> Mapping:
    """The lanes of a state, if it is of this mixture."""
    if not state:
        return {}
    now, then = json.loads(json.dumps(mixture.stamp)), state["mixture"]
    changed = [name for name in now if now[name] != then.get(name)]
    if changed:
        asked = "; ".join(f"{name} was {str(then.get(name))[:200]} and is {str(now[name])[:200]}" for name in changed)
        raise DataError(f"the saved place in the data is of another stream ({asked}): repeat the words of the first start, with the same files")
    if state["lanes"] and len(state["lanes"]) != mixture.lanes:
        raise DataError(f"the saved place in the data has {len(state['lanes'])} of {mixture.lanes} lanes: join the states of all ranks before")
    return state["lanes"]


def joined(states: Sequence[Mapping]) -> dict[str, object]:
    """The states of all ranks as one, which any number of ranks can go on from."""
    return {"mixture": states[0]["mixture"], "lanes": {lane: one for state in states for lane, one in state["lanes"].items()}}


class Worker:
    """A process that makes the rows of some lanes in turn, and a thread here that fetches them."""

    def __init__(self, mixture: Mixture, states: Mapping[int, Mapping | None], patience: float, memory: int):
        self.lanes, self.patience, self.heard, self.closed = list(states), patience, time.monotonic(), False
        fork = get_context("fork")  # sources and codecs are there already, nothing is copied or sent
        self.ears, mouth = fork.Pipe(duplex=False)
        self.process = fork.Process(target=work, args=(mixture, states, self.ears, mouth, memory), daemon=True)
        self.process.start()
        mouth.close()

    def listen(self, ahead: int) -> None:
        self.ready: queue.Queue = queue.Queue(ahead)
        self.thread = threading.Thread(target=self.fetch, daemon=True)
        self.thread.start()

    def fetch(self) -> None:
        try:
            while not self.closed:
                named = self.ears.recv_bytes()
                self.heard = time.monotonic()
                if named != BEAT:
                    self.put((named, self.ears.recv_bytes()))
        except (EOFError, OSError):
            self.put(None)

    def put(self, message: tuple[bytes, bytes] | None) -> None:
        while not self.closed:
            try:
                return self.ready.put(message, timeout=0.2)
            except queue.Full:
                self.heard = time.monotonic()  # nobody asked for more

    def next(self) -> Packed:
        begun = time.monotonic()
        while True:
            try:
                message = self.ready.get(timeout=0.1)
                break
            except queue.Empty:
                silent = time.monotonic() - max(begun, self.heard)
                if silent > self.patience:
                    self.close()
                    raise DataError(
                        f"a worker of the data gave no sign for {silent:.0f} seconds, at most {self.patience:g} are allowed: a decoder or "
                        f"the disk hangs; resume from the last checkpoint, or raise patience (lanes {self.lanes})"
                    ) from None
        if message is None:
            self.process.join(1)
            code = self.process.exitcode
            self.close()
            raise DataError(
                f"a worker of the data ended with exit code {code} (killed, or out of memory), the others cannot go on without it; "
                f"resume from the last checkpoint, with fewer workers (lanes {self.lanes})"
            )
        named, counted = message
        if not counted:
            self.close()
            raise DataError(json.loads(named)["error"])
        return from_bytes(named, counted)

    def close(self) -> None:
        self.closed = True
        self.process.kill()  # it holds nothing that could be lost
        self.process.join(5)
        if hasattr(self, "thread"):
            self.thread.join(5)
        self.ears.close()


def work(mixture: Mixture, states: Mapping[int, Mapping | None], ears: Connection, mouth: Connection, memory: int) -> None:
    """What a worker does: one row of each of its lanes in turn, for ever. An error is the last thing that it says."""
    import torch

    ears.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    bound(memory)
    last = time.monotonic()

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last > BEATS:
            last = time.monotonic()
            mouth.send_bytes(BEAT)

    try:
        lanes = [Lane(mixture, lane, state, beat) for lane, state in states.items()]
        while True:
            for lane in lanes:
                for message in to_bytes(next(lane)):
                    mouth.send_bytes(message)
    except (BrokenPipeError, ConnectionError):
        return  # nobody listens any more
    except Exception as error:
        reason = (
            str(error)
            if isinstance(error, DataError)
            else f"a worker of the data failed ({type(error).__name__}: {error}); use workers=0 to see where"
        )
        for message in (json.dumps({"error": reason}).encode(), b""):
            mouth.send_bytes(message)


def bound(memory: int) -> None:
    """At most so many bytes of address space on top of what the process has; where the system does not say, no limit."""
    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (now + memory if hard == resource.RLIM_INFINITY else min(now + memory, hard), hard))
    except OSError:
        return
