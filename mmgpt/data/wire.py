"""A packed row <-> bytes that go through a pipe: JSON for what is named, safetensors for what is counted. Nothing is pickled."""

import json

from torch import Tensor

from mmgpt.data.lane import Bad, Packed
from mmgpt.types import Input, Prepared, Stream, Target

COLUMNS = ("ids_BT", "document_BT", "block_BT", "position_BT3")


def to_bytes(packed: Packed) -> tuple[bytes, bytes]:
    from safetensors.torch import save

    stream = packed.stream
    tensors: dict[str, Tensor] = {name: getattr(stream, name) for name in COLUMNS}
    for n, given in enumerate(stream.inputs):
        tensors |= {f"values{n}": given.prepared.values_NF, f"place{n}": given.prepared.place_N3, f"input{n}": given.slot_N}
    for n, target in enumerate(stream.targets):
        tensors |= {f"target{n}": target.slot_N, f"id{n}": target.id_N}
    about = {
        "inputs": [[given.encoder, given.prepared.grids] for given in stream.inputs],
        "targets": [target.head for target in stream.targets],
        "names": packed.names,
        "bad": [vars(bad) for bad in packed.bad],
        "state": packed.state,
    }
    return json.dumps(about).encode(), save({name: tensor.contiguous() for name, tensor in tensors.items()})


def from_bytes(named: bytes, counted: bytes) -> Packed:
    from safetensors.torch import load

    about, tensors = json.loads(named), load(counted)
    inputs = []
    for n, (encoder, grids) in enumerate(about["inputs"]):
        prepared = Prepared(tensors[f"values{n}"], tensors[f"place{n}"], tuple((t, h, w) for t, h, w in grids))
        inputs.append(Input(encoder, prepared, tensors[f"input{n}"]))
    targets = tuple(Target(head, tensors[f"target{n}"], tensors[f"id{n}"]) for n, head in enumerate(about["targets"]))
    stream = Stream(*(tensors[name] for name in COLUMNS), tuple(inputs), targets)
    return Packed(stream, tuple(about["names"]), tuple(Bad(**bad) for bad in about["bad"]), about["state"])
