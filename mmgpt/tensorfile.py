"""Named tensors <-> the bytes of a safetensors file: a header, then every tensor as it lies in memory. Nothing is copied on the way.

8 bytes of header length | JSON: name -> dtype, shape, data_offsets | the tensors' bytes        (huggingface.co/docs/safetensors)
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmgpt.errors import CheckpointError

MAX_HEADER = 100_000_000  # bytes, the limit of the format's own library
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}
DTYPES |= {"F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
DTYPES |= {"BOOL": torch.bool}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
AGAIN = "copy the checkpoint again"


@dataclass(frozen=True)
class Extent:
    """A tensor of a file: `bytes` bytes at `offset`."""

    offset: int
    bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


# --- tensors -> bytes -------------------------------------------------------------------------------------------------------------------


def pieces(named: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The file's bytes in order. A tensor of another device, or with gaps, is copied when its turn comes, and only it."""
    ordered = sorted(named.items(), key=lambda item: -item[1].dtype.itemsize)  # so each lies at a multiple of its item size
    yield memoryview(header_of(ordered))
    for _, tensor in ordered:
        if tensor.numel():
            yield memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def header_of(ordered: list[tuple[str, Tensor]]) -> bytes:
    entries, end = {}, 0
    for name, tensor in ordered:
        if tensor.dtype not in NAMES or tensor.layout != torch.strided:
            raise CheckpointError(f"tensor {name} is of {tensor.dtype}, {tensor.layout}: a checkpoint holds dense tensors of {', '.join(DTYPES)}")
        begin, end = end, end + tensor.numel() * tensor.dtype.itemsize
        entries[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


# --- bytes -> tensors -------------------------------------------------------------------------------------------------------------------


def tensors_in(data, place: str) -> dict[str, Tensor]:
    """The tensors of a whole file in writable memory: they are views of it. `place` is what errors call it."""
    head = 8 + header_length(data[:8], len(data), place)
    return {name: tensor_at(data, extent) for name, extent in extents(data[8:head], len(data), place).items()}


def tensor_at(data, extent: Extent) -> Tensor:
    if not extent.bytes:
        return torch.empty(extent.shape, dtype=extent.dtype)
    if extent.offset % extent.dtype.itemsize:  # askew: others may have written it so
        return torch.frombuffer(data, dtype=torch.uint8, count=extent.bytes, offset=extent.offset).clone().view(extent.dtype).view(extent.shape)
    return torch.frombuffer(data, dtype=extent.dtype, count=math.prod(extent.shape), offset=extent.offset).view(extent.shape)


def header_length(start: bytes, size: int, place: str) -> int:
    """What the first 8 bytes of a file of `size` bytes say."""
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        raise CheckpointError(f"{place} has {size} bytes and says that {length} of them are its header: {AGAIN}")
    return length


def extents(header: bytes, size: int, place: str) -> dict[str, Extent]:
    """Where each tensor lies in a file of `size` bytes. They must fill it, one after the other."""
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        found = {name: extent_of(entry, 8 + len(header), place) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{place}: its header is damaged: {AGAIN}") from None
    end = 8 + len(header)
    for name, extent in sorted(found.items(), key=lambda item: (item[1].offset, item[1].bytes)):
        if extent.offset != end:
            raise CheckpointError(
                f"{place}: tensor {name} lies at byte {extent.offset}, the one before it ends at {end}: its header is damaged; {AGAIN}"
            )
        end += extent.bytes
    if end != size:
        raise CheckpointError(f"{place} has {size} bytes, its header says {end}: it was cut short or changed; {AGAIN}")
    return found


def extent_of(entry: Mapping, base: int, place: str) -> Extent:
    begin, end = entry["data_offsets"]
    dtype, shape = DTYPES.get(entry["dtype"]), tuple(entry["shape"])
    if dtype is None or not all(isinstance(n, int) and n >= 0 for n in (begin, end, *shape)) or math.prod(shape) * dtype.itemsize != end - begin:
        raise CheckpointError(f"{place}: a tensor of {entry['dtype']} {list(shape)} in {end - begin} bytes: its header is damaged; {AGAIN}")
    return Extent(base + begin, end - begin, dtype, shape)


# --- weights in 8 bits ------------------------------------------------------------------------------------------------------------------

STEP = ".step"  # behind the name of a tensor of whole numbers: what 1 is worth in each of its rows


def rounded(named: Mapping[str, Tensor], parts: Sequence[str]) -> dict[str, Tensor]:
    """The matrices of these parts as 8 bits a weight, each row in steps of its own; the rest as it is."""
    found: dict[str, Tensor] = {}
    for part in parts:
        if not any(name.startswith(f"{part}.") for name in named):
            raise CheckpointError(f"0 of {len(named)} tensors belong to {part!r}, which is to be stored in 8 bits: use the name of a part")
    for name, tensor in named.items():
        if tensor.ndim < 2 or not tensor.is_floating_point() or not any(name.startswith(f"{part}.") for part in parts):
            found[name] = tensor
            continue
        rows = tensor.detach().float().flatten(1)
        found[name + STEP] = (rows.abs().amax(1) / 127).clamp_min(1e-30)
        found[name] = (rows / found[name + STEP][:, None]).round().to(torch.int8).view(tensor.shape)
    return found


def restored(found: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """The other way: all that was rounded as float32."""
    named = without_steps(found)
    for name, tensor in named.items():
        step_R = found.get(name + STEP)
        if (tensor.dtype == torch.int8) != (step_R is not None) or (step_R is not None and step_R.shape != tensor.shape[:1]):
            raise CheckpointError(f"{place}: {name} is of {tensor.dtype}, its steps are {step_R if step_R is None else tuple(step_R.shape)}: {AGAIN}")
        if step_R is not None:
            named[name] = (tensor.flatten(1).float() * step_R.float()[:, None]).view(tensor.shape)
    if len(found) != len(named) + sum(name + STEP in found for name in named):
        raise CheckpointError(f"{place}: {len(found) - len(named)} steps of 8 bits, not all of them with a tensor: {AGAIN}")
    return named


def without_steps(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in found.items() if not name.endswith(STEP)}


def fill(network: nn.Module, path: str | Path, whose: str, remedy: str) -> None:
    """Weights that a script of ours made of a public package, of a file that holds those of the network; CheckpointError says how to get them."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"the weights of {whose} are not at {path}: {remedy}")
    try:
        found = load_file(path)
        network.load_state_dict({name: found[name] for name in network.state_dict()})
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{path} does not hold the weights of {whose}: delete it and {remedy}") from error
