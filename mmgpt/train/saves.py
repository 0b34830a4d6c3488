"""A run's folder: its states are saved while training goes on, few are kept, and the newest good one is found again.

out/step-0000500/   all that decides the next update, one complete hashed folder a state        out/log.jsonl   a line now and then
out/final/          the finished model              out/last/   the one state of runs of an older mmgpt: it is read, never written
"""

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from threading import Thread

import torch
from torch import Tensor

from mmgpt.checkpoint import MANIFEST, parsed, read_folder, read_manifest, write_folder
from mmgpt.errors import CheckpointError, MmgptError, TrainingError, VersionError
from mmgpt.tensorfile import AGAIN
from mmgpt.train.log import tell
from mmgpt.train.ranks import ALONE, Ranks

STEP = re.compile(r"step-(\d{7,})")
LAST = "last"
LEFT = re.compile(r"(?P<name>step-\d{7,}|last|final)\.(?P<how>new|old|gone)-[0-9a-f]{8}")
WORDS = {"true": True, "1": True, "false": False, "0": False, "auto": "auto"}


@dataclass(frozen=True)
class State:
    """What was saved, and where."""

    path: Path
    tensors: Mapping[str, Mapping[str, Tensor]]
    texts: Mapping[str, str]


# --- writing --------------------------------------------------------------------------------------------------------------------------


class Saves:
    """`with Saves(folder) as saves: saves.save(step, tensors, texts)`: copied at once, written by a thread, one at a time.

    A save that fails (a full disk) does not end the run: it is told, what was saved before stays, and the next save tries again.
    Leaving the `with` waits; it raises if the last save failed. There is room needed for one state more than is kept.
    """

    def __init__(self, folder: str | Path, keep_last: int = 2, keep_every: int = 0, say: Callable[[str], None] = tell):
        self.folder, self.keep_last, self.keep_every, self.say = Path(folder), keep_last, keep_every, say
        self.thread: Thread | None = None
        self.failure: CheckpointError | None = None  # of the last save
        self.newest: Path | None = None  # that this process has written

    def __enter__(self) -> "Saves":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.wait()
        if kind is None:
            self.close()

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], texts: Mapping[str, str]) -> None:
        """Returns when all tensors are copied to memory; what they become afterwards does not matter. Waits for a save under way."""
        self.wait()
        held = {file: {name: copied(tensor) for name, tensor in named.items()} for file, named in tensors.items()}
        self.thread = Thread(target=self.write, args=(step, held, dict(texts)), name=f"save of step {step}")
        self.thread.start()

    def wait(self) -> None:
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def close(self) -> None:
        """Waits, and raises what the last save could not do."""
        self.wait()
        if self.failure is not None:
            raise self.failure

    def write(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], texts: Mapping[str, str]) -> None:
        """In the thread: nothing that happens here may end the run, nor go unsaid."""
        try:
            self.newest, self.failure = write_folder(self.folder / name_of(step), tensors, texts), None
        except Exception as error:
            self.failure = CheckpointError(f"step {step} is not saved: {error}{f'; {self.newest.name} stays the newest' if self.newest else ''}")
            self.say(f"{self.failure}; training goes on, the next save tries again")
            return
        try:
            self.prune(step)
        except Exception as error:
            self.say(f"states before step {step} could not be removed ({error}): the next save tries again")

    def prune(self, step: int) -> None:
        """Keeps the last few, and those at every so many steps; a state with files that nobody knows is kept, too."""
        found = [path for path in states(self.folder) if path.name == LAST or step_of(path) <= step]
        for path in found[self.keep_last :]:
            if path.name != LAST and self.keep_every and step_of(path) % self.keep_every == 0:
                continue
            if not strangers(path):
                gone = path.with_name(f"{path.name}.gone-{uuid.uuid4().hex[:8]}")
                os.replace(path, gone)  # first: what is half removed must not look like a state
                shutil.rmtree(gone)


def copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


# --- finding --------------------------------------------------------------------------------------------------------------------------


def name_of(step: int) -> str:
    return f"step-{step:07d}"


def step_of(path: Path) -> int:
    return int(STEP.fullmatch(path.name)[1])


def states(folder: Path) -> list[Path]:
    """What looks like a saved state, the newest first; an older mmgpt's `last` comes behind all others."""
    steps = [path for path in folder.glob("step-*") if STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(steps, key=step_of, reverse=True) + [path for path in [folder / LAST] if path.is_dir()]


def newest_step(folder: Path) -> int:
    """The step of the newest saved state, -1 where there is none."""
    return next((step_of(path) for path in states(folder) if path.name != LAST), -1)


def newest_good(folder: str | Path) -> tuple[State | None, list[tuple[Path, str]]]:
    """The newest state whose every byte is as its manifest says, read; and those that were skipped, each with the reason.

    A state of a newer version of mmgpt is no damage: it is an error, or the work in it would be done again.
    """
    skipped = []
    for path in states(Path(folder)):
        try:
            return State(path, *read_folder(path)), skipped
        except VersionError:
            raise
        except CheckpointError as error:
            skipped.append((path, str(error)))
        except OSError as error:
            if error.errno != errno.EIO:  # a disk that cannot read it is damage; permissions, memory and the rest are for the user to mend
                raise
            skipped.append((path, f"{error.filename or path} cannot be read ({error.strerror})"))
    return None, skipped


def strangers(path: Path) -> list[str]:
    """Files of a saved state that its manifest does not name. They are never read."""
    try:
        known = {MANIFEST, *read_manifest(path)["files"]}
    except CheckpointError:
        return []  # damaged: nobody can say
    return sorted(entry.name for entry in path.iterdir() if entry.name not in known)


def clean(folder: Path) -> None:
    """Removes what a stop has left half written or half removed; puts back what it left between two renames."""
    left = sorted((path.stat().st_mtime, path) for path in folder.glob("*.*-*") if LEFT.fullmatch(path.name) and path.is_dir())
    for _, path in reversed(left):
        named = LEFT.fullmatch(path.name)
        home = folder / named["name"]
        if named["how"] == "old" and not home.exists():
            os.replace(path, home)
        else:
            shutil.rmtree(path)


# --- beginning ------------------------------------------------------------------------------------------------------------------------


def how_to_begin(word: str | bool) -> bool | str:
    if str(word).lower() not in WORDS:
        raise TrainingError(f"resume={word}: use true (go on), auto (go on where there is something, else begin) or false (begin)")
    return WORDS[str(word).lower()]


def begin(folder: Path, resume: bool | str = False, say: Callable[[str], None] = tell) -> State | None:
    """The state to go on from, or None for a new run. What is damaged is named, put aside and kept, so that nothing is written over it."""
    how = how_to_begin(resume)
    clean(folder)
    if not how and (found := states(folder)):
        raise TrainingError(f"{found[0]} exists: pass resume=true to go on with that run, or another folder")
    state, skipped = newest_good(folder)
    if state is None and how is True:
        reasons = "".join(f"; {reason}" for _, reason in skipped)
        raise TrainingError(
            f"{folder} holds 0 good saved states to go on from, {len(skipped)} damaged{reasons}: leave resume out, or name the folder of the run"
        )
    for path, reason in skipped:
        aside = path.with_name(f"{path.name}.damaged-{uuid.uuid4().hex[:8]}")
        os.replace(path, aside)
        say(f"skipped {path.name}: {reason}; it is kept as {aside.name}")
    for name in strangers(state.path) if state else ():
        say(f"{state.path / name} is not in the manifest: it is not read")
    if skipped or (state and how == "auto"):
        say(f"going on from {state.path}" if state else f"{folder} holds no good saved state: beginning anew")
    return state


def begun(folder: Path, resume: bool | str, say: Callable[[str], None], ranks: Ranks) -> State | None:
    """`begin`, by the first rank; all others read what it has found, or end as it does."""
    state, failure = None, None
    try:
        state = begin(folder, resume, say) if ranks.first else None
    except (MmgptError, OSError) as error:
        failure = error
    said = ranks.all({"path": str(state.path) if state else "", "failure": str(failure or "")})[0]
    if failure is not None:
        raise failure
    if said["failure"]:
        raise TrainingError(said["failure"])
    return State(Path(said["path"]), *read_folder(said["path"])) if said["path"] and not ranks.first else state


# --- what is in a state -----------------------------------------------------------------------------------------------------------------

FILES = ("weights.safetensors", "average.safetensors", "optimizer.safetensors")


def about_run(state: State, names: set[str], asked: Mapping) -> dict:
    """The state's run.json: {"step", "spent", "settings"}. Its weights must be `names`, and its settings go with those that are `asked`."""
    about = parsed(state.texts.get("run.json", ""), f"{state.path}: run.json")
    first = about.get("settings")
    known = isinstance(first, dict) and {"seed", "steps", "minutes"} <= first.keys()
    if not known or type(about.get("step")) is not int or about["step"] < 0 or type(about.get("spent")) not in (int, float):
        raise CheckpointError(f"{state.path}: run.json lacks step, spent or settings: it is no state of a run; {AGAIN}")
    found = [set(state.tensors.get(file, ())) for file in FILES[:2]]
    if found != [names, names] or not {key.rpartition(":")[0] for key in state.tensors.get(FILES[2], ())} <= names:
        raise CheckpointError(f"{state.path} holds another model: start in a new folder, or use the recipe it was trained with")
    for key, before in {"seed": first["seed"], "muon": first.get("muon", False)}.items():
        if before != asked[key]:
            raise TrainingError(f"{state.path} was trained with {key}={before}, not {asked[key]}: repeat the words of the first start")
    return about


def data_of(task: object, ranks: Ranks = ALONE) -> dict[str, str]:
    """Where a task's data have a state of their own (`data_state() -> dict`), the text that holds it: those of all ranks, laid over each other."""
    if not hasattr(task, "data_state"):
        return {}
    whole = reduce(laid_over, (said["data"] for said in ranks.all({"data": task.data_state()})))
    return {"data.json": json.dumps(whole, allow_nan=False)}


def laid_over(one: dict, other: dict, path: str = "") -> dict:
    """{"seed": 7, "lanes": {"0": a}} and {"seed": 7, "lanes": {"1": b}} -> {"seed": 7, "lanes": {"0": a, "1": b}}"""
    both = dict(one)
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(both.get(key), dict):
            both[key] = laid_over(both[key], value, f"{path}{key}.")
        elif both.setdefault(key, value) != value:
            raise TrainingError(f"data_state(): {path}{key} is {both[key]!r} on one rank, {value!r} on another: give each a name of its own")
    return both


def give_data(task: object, state: State) -> None:
    """The task's data go on from where they were (`load_data_state(dict)`)."""
    if hasattr(task, "load_data_state") != ("data.json" in state.texts):
        has = "holds" if "data.json" in state.texts else "lacks"
        raise CheckpointError(f"{state.path} {has} the place in a stream of data: use the recipe it was trained with")
    if "data.json" in state.texts:
        task.load_data_state(parsed(state.texts["data.json"], f"{state.path}: data.json"))
