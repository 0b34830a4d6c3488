"""A folder of safetensors + JSON <-> tensors and settings: hashed in a manifest, written to a new folder and renamed.

manifest.json   format version, SHA-256 and size of every other file; nothing outside it is read
*.safetensors   tensors      *.json   settings, tokenizer
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from mmgpt.errors import CheckpointError

FORMAT = 1
MANIFEST = "manifest.json"
MAX_MANIFEST = 2**20


def write_folder(path: str | Path, tensors: Mapping[str, Mapping[str, Tensor]], texts: Mapping[str, str]) -> Path:
    """Writes `tensors` (file name -> name -> tensor) and `texts` (file name -> text) as one checkpoint folder.

    All files are written and flushed beside the target first; only then does the new folder take the target's name, so that
    a stop at any moment leaves the old folder, the new one, or (between two renames) the old one as `<name>.old-…`.
    """
    from safetensors.torch import save

    path = Path(path)
    refuse_foreign(path, lambda name: name == MANIFEST or name in read_manifest(path)["files"], MANIFEST)
    fresh = path.with_name(f"{path.name}.new-{uuid.uuid4().hex[:8]}")
    try:
        fresh.mkdir(parents=True)
        files = {}
        for name, named in tensors.items():
            files[name] = flush(fresh / name, save({key: value.detach().cpu().contiguous() for key, value in named.items()}))
        for name, text in texts.items():
            files[name] = flush(fresh / name, text.encode())
        flush(fresh / MANIFEST, json.dumps({"format": FORMAT, "files": files}, indent=1).encode())
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


def flush(path: Path, data: bytes) -> dict[str, str | int]:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
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
    """(tensors, texts) as they were given to `write_folder`. Every byte is checked against the manifest before it is used."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(path)
    tensors, texts = {}, {}
    for name, facts in read_manifest(path)["files"].items():
        data = checked(path / name, facts)
        try:
            if name.endswith(".safetensors"):
                tensors[name] = load(data)
            else:
                texts[name] = data.decode()
        except (SafetensorError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path / name} cannot be read ({type(error).__name__}): copy the checkpoint again") from None
    return tensors, texts


def read_manifest(path: Path) -> dict:
    if not (path / MANIFEST).is_file():
        raise CheckpointError(f"{path} is no checkpoint: it has no {MANIFEST}; pass a folder that mmgpt has written")
    size = (path / MANIFEST).stat().st_size
    if size > MAX_MANIFEST:
        raise CheckpointError(f"{path / MANIFEST} has {size} bytes, at most {MAX_MANIFEST} are read: copy the checkpoint again")
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        version, files = manifest["format"], manifest["files"]
        good = isinstance(version, int) and all(Path(n).name == n and {"sha256", "bytes"} <= f.keys() for n, f in files.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good, version = False, 0
    if not good:
        raise CheckpointError(f"{path / MANIFEST} is damaged: copy the checkpoint again")
    if version > FORMAT:
        raise CheckpointError(f"{path} has format {version}, this mmgpt reads up to {FORMAT}: upgrade mmgpt")
    return manifest


def checked(path: Path, facts: Mapping[str, str | int]) -> bytes:
    """The file's bytes, if they are those that were written: size first, so that an oversized file is never read."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: copy the checkpoint again")
    if path.stat().st_size != facts["bytes"]:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes, its manifest says {facts['bytes']}: copy the checkpoint again")
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != facts["sha256"]:
        raise CheckpointError(f"{path} was changed: SHA-256 {found[:12]}…, its manifest says {str(facts['sha256'])[:12]}…: copy the checkpoint again")
    return data


def parsed(text: str, place: str) -> dict:
    """A JSON object, or a CheckpointError that names the place."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise CheckpointError(f"{place} is no JSON object: copy the checkpoint again")
    return values


def load_exactly(module: nn.Module, found: Mapping[str, Tensor], place: str | Path, assign: bool = False) -> None:
    """Puts `found` into the module if names and shapes are just its own; with `assign` the tensors themselves, for a module without memory."""
    wanted = module.state_dict()
    for name in sorted(wanted.keys() ^ found.keys()):
        raise CheckpointError(f"{place}: tensor {name} is {'missing' if name in wanted else 'not of this model'}: copy the checkpoint again")
    for name, tensor in wanted.items():
        if tensor.shape != found[name].shape:
            raise CheckpointError(f"{place}: {name} has shape {tuple(found[name].shape)}, its config asks for {tuple(tensor.shape)}")
    module.load_state_dict(dict(found), assign=assign)
