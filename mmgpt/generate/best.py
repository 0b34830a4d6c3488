"""Several results of each request -> the one that the model itself finds best.

A picture, a sound, a clip is read back: kept is the one off which the model reads the request's words most surely. The same model does both
directions, so no second network is needed (Dall-E reranked with CLIP: Ramesh et al., 2021, arXiv:2102.12092). What it cannot read back is
compared by its own log-probability.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from mmgpt.errors import MmgptError
from mmgpt.model import evaluating
from mmgpt.pack import pack
from mmgpt.types import Part, Usage

AT_ONCE = 256  # results that are made before more requests are taken up
BATCH = 32  # results that are read back at a time
SEEDS = 1_000_003  # between the seeds of two tries of a request, so that neighbouring requests draw other numbers


def tries(request) -> list:
    """The request as often as it asks for, with seeds of their own; the first has the request's own."""
    return [replace(request, seed=(request.seed + n * SEEDS) % 2**63, best_of=1) for n in range(request.best_of)]


def best(gpt, requests: Sequence, run: Callable[[list, Callable], list], finished: Callable | None = None) -> list:
    """The best result of each request. `run(requests, came)` makes the results of a list and calls `came(number, result)` as soon as there is one:
    a request's are compared when its own are there. An error of one is raised when all others are done. Usage counts what all of them wrote.
    """
    kept, error = {}, None
    for some in groups(requests):
        owners = [(number, k) for number in some for k in range(requests[number].best_of)]
        made: dict[int, dict] = {number: {} for number in some}

        def came(index: int, result, owners=owners, made=made) -> None:
            number, k = owners[index]
            made[number][k] = result
            if len(made[number]) == requests[number].best_of:
                kept[number] = chosen(gpt, requests[number], [made[number][k] for k in range(requests[number].best_of)])
                if finished is not None:
                    finished(number, kept[number])

        try:
            run([one for number in some for one in tries(requests[number])], came)
        except MmgptError as failed:
            error = error or failed
    if error is not None:
        raise error
    return [kept[number] for number in range(len(requests))]


def chosen(gpt, request, made: list):
    with evaluating(gpt):
        scores_N = scores(gpt, request, made) if len(made) > 1 else torch.zeros(1)
    found = made[int(scores_N.argmax())]
    written = {name: sum(result.usage.written[name] for result in made) for name in found.usage.written}
    return replace(found, usage=Usage(found.usage.read, written))


def groups(requests: Sequence) -> Iterator[list[int]]:
    """The numbers of some requests at a time."""
    some: list[int] = []
    for number in range(len(requests)):
        if sum(requests[n].best_of for n in some) >= AT_ONCE:
            yield some
            some = []
        some.append(number)
    if some:
        yield some


@torch.inference_mode()
def scores(gpt, request, results: Sequence) -> Float[Tensor, "N"]:
    """How good each result is: the log-probability of the request's words read off it, else its own."""
    parts = [part if isinstance(part, Part) else Part(part) for part in request.parts]
    words = [part.value for part in parts if isinstance(part.value, str) and part.value.strip() and not part.learn]
    port = gpt.ports[request.to]
    if port.reads is None or not words:
        return torch.tensor([result.log_probability for result in results])
    found = []
    for start in range(0, len(results), BATCH):
        samples = [[Part(result.value), Part(port.asks), *(Part(text, learn=True) for text in words)] for result in results[start : start + BATCH]]
        stream = pack([gpt.write(sample) for sample in samples], gpt.spans).to(gpt.device)
        losses = gpt.losses(stream)
        total_N = torch.zeros(len(samples), device=gpt.device)
        for target in stream.targets:
            total_N.index_add_(0, target.slot_N // stream.ids_BT.shape[1], -losses[target.head].float())
        found.append(total_N.cpu())
    return torch.cat(found)
