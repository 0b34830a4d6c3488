"""A folder of safetensors + JSON <-> tensors and settings: hashed in a manifest, written to a new folder and renamed.

manifest.json   format version, SHA-256 and size of every other file; nothing outside it is read
*.safetensors   tensors      *.json   settings, tokenizer

Every byte passes once through memory: hashed while it is written, and while it is read into the memory that the tensors then are.
"""

import errno
import hashlib
import json
import mmap
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from mmgpt.errors import CheckpointError, VersionError
from mmgpt.tensorfile import AGAIN, pieces, tensors_in

PartType = TypeVar("PartType", bound=nn.Module)
FORMAT = 1
MANIFEST = "manifest.json"
MAX_MANIFEST = 2**20
CHUNK = 2**20  # bytes that are hashed while they are still in the processor's cache


def write_folder(path: str | Path, tensors: Mapping[str, Mapping[str, Tensor]], texts: Mapping[str, str]) -> Path:
    """Writes `tensors` (file name -> name -> tensor) and `texts` (file name -> text) as one checkpoint folder.

    All files are written and flushed beside the target first; only then does the new folder take the target's name, so that
    a stop at any moment leaves the old folder, the new one, or (between two renames) the old one as `<name>.old-…`.
    """
    path = Path(path)
    refuse_foreign(path, lambda name: name == MANIFEST or name in read_manifest(path)["files"], MANIFEST)
    fresh = path.with_name(f"{path.name}.new-{uuid.uuid4().hex[:8]}")
    try:
        make_folder(fresh)
        files = {name: write_file(fresh / name, pieces(named)) for name, named in tensors.items()}
        files |= {name: write_file(fresh / name, [text.encode()]) for name, text in texts.items()}
        write_file(fresh / MANIFEST, [json.dumps({"format": FORMAT, "files": files}, indent=1).encode()])
        sync_folder(fresh)
        replace_folder(fresh, path)
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be written ({error.strerror}); nothing was changed: free some space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # gone already where all went well
    return path


def refuse_foreign(path: Path, ours: Callable[[str], bool], mark: str) -> None:
    """A folder that is to be replaced must be a checkpoint, with a file named `mark`, and hold nothing else."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / mark).is_file():
        raise CheckpointError(f"{path} exists and is no checkpoint: nothing of it was touched; choose another folder")
    foreign = sorted(entry.name for entry in path.iterdir() if not ours(entry.name))
    if foreign:
        raise CheckpointError(
            f"{path} holds {foreign[0]}, {len(foreign)} in all, of which no checkpoint knows: nothing was touched; choose another folder"
        )


def make_folder(path: Path) -> None:
    """A new folder, in new folders where there are none yet; each of those is on the disk before anything is put into it."""
    missing = [parent for parent in path.parents if not parent.exists()]
    path.mkdir(parents=True)
    for parent in missing:
        sync_folder(parent.parent)


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> dict[str, str | int]:
    """Writes a new file to the disk; its hash and size, as the manifest has them. Disks may take less at a time than they are given."""
    digest, size = hashlib.sha256(), 0
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for part in parts:
            rest = memoryview(part)
            while rest:
                written = os.write(handle, rest[:CHUNK])
                if not written:
                    raise OSError(errno.EIO, "the disk takes 0 bytes")
                digest.update(rest[:written])
                rest, size = rest[written:], size + written
        os.fsync(handle)
    finally:
        os.close(handle)
    return {"sha256": digest.hexdigest(), "bytes": size}


def sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks know no such thing
            raise
    finally:
        os.close(handle)


def replace_folder(fresh: Path, path: Path) -> None:
    """`fresh` takes the name `path`; where that fails, what had the name gets it back."""
    old = path.with_name(f"{path.name}.old-{uuid.uuid4().hex[:8]}")
    if path.exists():
        os.replace(path, old)
    try:
        os.replace(fresh, path)
        sync_folder(path.parent)
    except BaseException:
        if not fresh.exists():
            os.replace(path, fresh)
        if old.exists():
            os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def read_folder(path: str | Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """(tensors, texts) as they were given to `write_folder`. Every byte is checked against the manifest before any is used."""
    path = Path(path)
    data = {name: checked(path / name, facts) for name, facts in read_manifest(path)["files"].items()}
    tensors, texts = {}, {}
    for name, found in data.items():
        if name.endswith(".safetensors"):
            tensors[name] = tensors_in(found, str(path / name))
            continue
        try:
            texts[name] = bytes(found).decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path / name} cannot be read ({type(error).__name__}): {AGAIN}") from None
    return tensors, texts


def read_manifest(path: Path) -> dict:
    if not (path / MANIFEST).is_file():
        raise CheckpointError(f"{path} is no checkpoint: it has no {MANIFEST}; pass a folder that mmgpt has written")
    size = (path / MANIFEST).stat().st_size
    if size > MAX_MANIFEST:
        raise CheckpointError(f"{path / MANIFEST} has {size} bytes, at most {MAX_MANIFEST} are read: {AGAIN}")
    try:
        manifest = json.loads((path / MANIFEST).read_text(), object_pairs_hook=once)
        version, files = manifest["format"], manifest["files"]
        good = type(version) is int and version >= 1 and all(Path(n).name == n and facts_are_good(f) for n, f in files.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good, version = False, 0
    if not good:
        raise CheckpointError(f"{path / MANIFEST} is damaged: {AGAIN}")
    if version > FORMAT:
        raise VersionError(f"{path} has format {version}, this mmgpt reads up to {FORMAT}: upgrade mmgpt")
    return manifest


def facts_are_good(facts: Mapping) -> bool:
    return isinstance(facts["sha256"], str) and type(facts["bytes"]) is int and facts["bytes"] >= 0


def once(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object; of a name that is there twice nobody knows which one is meant."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name twice")
    return dict(pairs)


def checked(path: Path, facts: Mapping[str, str | int]) -> mmap.mmap | bytes:
    """The file's bytes in memory of their own, if they are those that were written: size first, so that an oversized file is never read."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: {AGAIN}")
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size != facts["bytes"]:
            raise CheckpointError(f"{path} has {size} bytes, its manifest says {facts['bytes']}: {AGAIN}")
        data = mmap.mmap(-1, size) if size else b""  # whole pages, which go back to the system when the last tensor in them goes
        digest, end = hashlib.sha256(), 0
        while end < size and (count := file.readinto(memoryview(data)[end : end + CHUNK])):
            digest.update(memoryview(data)[end : end + count])
            end += count
    found = digest.hexdigest()
    if found != facts["sha256"]:
        raise CheckpointError(f"{path} was changed: SHA-256 {found[:12]}…, its manifest says {str(facts['sha256'])[:12]}…: {AGAIN}")
    return data


def parsed(text: str, place: str) -> dict:
    """A JSON object, or a CheckpointError that names the place."""
    try:
        values = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise CheckpointError(f"{place} is no JSON object: {AGAIN}")
    return values


def match(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], place: str | Path) -> None:
    """Names and shapes of what a checkpoint holds are just those of the model that its config asks for."""
    for name in sorted(wanted.keys() ^ found.keys()):
        raise CheckpointError(f"{place}: tensor {name} is {'missing' if name in wanted else 'not of this model'}: {AGAIN}")
    for name, tensor in wanted.items():
        if tensor.shape != found[name].shape:
            raise CheckpointError(f"{place}: {name} has shape {tuple(found[name].shape)}, its config asks for {tuple(tensor.shape)}")


def load_exactly(module: nn.Module, found: Mapping[str, Tensor], place: str | Path, assign: bool = False) -> None:
    """Puts `found` into the module if names and shapes are just its own; with `assign` the tensors themselves, for a module without memory."""
    match(module.state_dict(), found, place)
    module.load_state_dict(dict(found), assign=assign)


def save_part(folder: str | Path, name: str, part: nn.Module, settings: Mapping, weights: Mapping[str, Tensor] | None = None) -> Path:
    """A part of a model by itself: NAME.json says how to build it, NAME.safetensors holds its weights, or those given instead of them."""
    return write_folder(folder, {f"{name}.safetensors": {**part.state_dict(), **(weights or {})}}, {f"{name}.json": json.dumps(settings)})


def load_part(folder: str | Path, name: str, make: Callable[..., PartType]) -> PartType:
    """What `save_part` wrote: `make` is given its settings by name, lists as tuples."""
    tensors, texts = read_folder(folder)
    settings = parsed(texts.get(f"{name}.json", ""), f"{folder}: {name}.json")
    try:
        part = make(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})
    except TypeError as error:
        raise CheckpointError(f"{folder}: {name}.json does not fit ({error}): it is of another version of mmgpt") from None
    load_exactly(part, tensors.get(f"{name}.safetensors", {}), folder)
    return part.eval()
