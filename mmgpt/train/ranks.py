"""Processes that torchrun has started -> one run: shared weights, summed gradients, one voice.

    torchrun --nproc-per-node 2 -m mmgpt train emoji ...      gloo on CPUs, NCCL on GPUs

Weights, gradients, moments and averages are sharded by FSDP2 (`fully_shard`; Zhao et al., 2023, arXiv:2304.11277): each rank holds its
rows of every weight, and a block's whole weights only while it computes. With one process nothing of torch.distributed is imported.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmgpt.errors import TrainingError


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run: number `rank` of `world`."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that shows, logs, samples and saves."""
        return self.rank == 0

    def all(self, said: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What every rank has said, in the order of ranks, so that all of them add it up alike. It travels as JSON."""
        if self.world == 1:
            return [dict(said)]
        import torch.distributed as dist

        words = torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.world)]
        dist.all_gather(lengths, torch.tensor([len(words)]))
        longest = int(max(lengths))
        padded = torch.cat([words, words.new_zeros(longest - len(words))])
        found = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(found, padded)
        return [json.loads(bytes(text[: int(length)].tolist())) for text, length in zip(found, lengths, strict=True)]

    def any(self, asked: bool) -> bool:
        """Whether one of them asks for it: then all do it."""
        return any(said["asked"] for said in self.all({"asked": asked}))

    def wait(self) -> None:
        """Until all are here."""
        self.all({})

    def shard(self, model: nn.Module) -> None:
        """All ranks take rank 0's weights, then each keeps its shard. A weight outside the blocks that is not trained stays whole."""
        if self.world == 1:
            return
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data = tensor.data.contiguous()  # channels_last has rows that cannot be cut
            dist.broadcast(tensor.detach(), 0)
        mesh, inside = init_device_mesh(next(model.parameters()).device.type, (self.world,)), set()
        for block in blocks(model):
            fully_shard(block, mesh=mesh)
            inside |= set(block.parameters())
        still = {p for p in model.parameters() if not p.requires_grad and p not in inside}
        fully_shard(model, mesh=mesh, reshard_after_forward=False, ignored_params=still)  # heads read the table after the forward pass

    def touched(self, loss: Tensor, model: nn.Module) -> Tensor:
        """The loss, with a gradient of zero for every weight that other ranks' losses reach and this one does not.

        FSDP adds gradients up across ranks weight by weight, and all ranks must have the same ones: where one batch held no picture
        to read, its rank would add the encoder's gradients to nothing, or wait for ever. What no rank reaches stays without a gradient.
        """
        if self.world == 1:
            return loss
        mine = {name: p for name, p in model.named_parameters() if p.requires_grad and not sharded(p)}  # of the blocks all are used
        here = reached(loss)
        ours = sorted(name for name, p in mine.items() if id(p) in here)
        theirs = {name for said in self.all({"reached": ours}) for name in said["reached"]}
        return loss + sum(0 * mine[name].flatten()[:1].sum() for name in sorted(theirs - set(ours)))

    @contextmanager
    def opened(self, model: nn.Module) -> Iterator[None]:
        """The weights outside the blocks, whole: for what is called beside `forward`. All ranks must do the same inside."""
        if self.world > 1:
            model.unshard()
        try:
            yield
        finally:
            if self.world > 1:
                model.reshard()


ALONE = Ranks()


def blocks(model: nn.Module) -> list[nn.Module]:
    """What is gathered and dropped as a whole: the decoder's blocks."""
    from mmgpt.decoders.transformer import Block

    return [module for module in model.modules() if isinstance(module, Block)]


def reached(loss: Tensor) -> set[int]:
    """`id` of every leaf that the gradient of `loss` reaches."""
    seen, found, ahead = set(), set(), [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        ahead += [following for following, _ in node.next_functions]
    return found


def sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This rank's rows, sharing their memory."""
    return tensor.detach().to_local() if sharded(tensor) else tensor.detach()


def locals_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [local(tensor) for tensor in tensors]


def whole(tensor: Tensor) -> Tensor:
    """All rows. All ranks must ask."""
    return tensor.detach().full_tensor() if sharded(tensor) else tensor.detach()


def like(tensor: Tensor, values: Tensor) -> Tensor:
    """`values`, which every rank has whole, laid out as `tensor` is."""
    values = values.to(tensor.device)
    if sharded(values) or not sharded(tensor):
        return values
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(values, tensor.device_mesh, tensor.placements, src_data_rank=None)


@contextmanager
def joined(device: torch.device, seconds: float) -> Iterator[Ranks]:
    """The ranks of this run, by torchrun's RANK and WORLD_SIZE; without them one. A rank that says nothing for `seconds` ends the run."""
    rank, world = (int(os.environ.get(name, value)) for name, value in (("RANK", 0), ("WORLD_SIZE", 1)))
    if world == 1:
        yield ALONE
        return
    from datetime import timedelta

    import torch.distributed as dist

    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=seconds))
    try:
        yield Ranks(rank, world)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(word in str(error).lower() for word in ("gloo", "nccl", "connection")):
            raise
        reason = str(error).strip().splitlines()[0][-200:]
        raise TrainingError(
            f"rank {rank} of {world} has lost the others: one has ended, or said nothing for timeout={seconds:g} seconds ({reason}); "
            "look at what the others said first, then go on with resume=true"
        ) from error
    finally:
        dist.destroy_process_group()
