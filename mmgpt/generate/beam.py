"""One request -> the likeliest of many continuations that are followed side by side: beam search, for words."""

from collections.abc import Callable

import torch
from torch import Tensor

from mmgpt.errors import InputError
from mmgpt.generate.request import Result
from mmgpt.generate.row import Row
from mmgpt.pack import lay, length
from mmgpt.script import Choice
from mmgpt.types import Part, Stream, Usage, Written


@torch.inference_mode()
def search(gpt, row: Row, scores: Callable[[str, Choice, Tensor], Tensor]) -> None:
    """Gives a row its result: the continuation of the highest log-probability a length ** `length_penalty`, its end counted, among those that
    `beams` beams come by.

    As transformers has it (`early_stopping=False`): in each step the 2 n likeliest are looked at; of the n first those that end are kept, and
    it is over when no beam can be as good as the n-th of them, as far as its score says today.
    """
    n, penalty = row.request.beams, row.request.length_penalty
    script, ends = row.automaton.script, set(row.automaton.script.stops)
    if not ends or script.moves or len(row.branches) > 1:
        raise InputError(f"beams={n}: beams follow one text that has an end, without sampling, guidance, stop and guess; use beams=1")
    branch, slots = row.branches[0], row.automaton.length
    pending, places, block = branch.take()
    count = length(branch.document)
    forced = written(pending, places - branch.base)
    cache = gpt.decoder.new_cache(n, count + len(script) + 1)
    stream = lay([[[*branch.document, forced]]], {}, count + len(pending)).to(gpt.device)
    h_ND = gpt(stream, cache[:1])[:, -1]
    for other in range(1, n):
        cache.put(other, cache.held(0, int(cache.used_R[0])))
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    done: list[tuple[float, float, list[int]]] = []  # score a length, score, ids
    while True:
        choice = row.automaton.next() if slots + len(beams[0][1]) < len(script) else None
        row.automaton.length += 1
        if choice is None or choice.forced is not None:  # all that may be written is
            done += [(score / max(1, len(ids)) ** penalty, score, ids) for score, ids in beams]
            break
        log_NV = scores(row.name, choice, h_ND).log_softmax(-1)
        if log_NV.isnan().any():
            raise InputError(f"{int(log_NV.isnan().sum())} of {log_NV.numel()} logits are NaN or infinite: the weights are damaged")
        total_NV = log_NV + torch.tensor([score for score, _ in beams], device=log_NV.device)[:, None]
        best, index = (x.tolist() for x in total_NV.flatten().topk(min(2 * n, total_NV.numel())))
        found = [(score, at // log_NV.shape[1], choice.at(at % log_NV.shape[1])) for score, at in zip(best, index, strict=True)]
        for score, source, id in found[:n]:
            if id in ends:
                ids = [*beams[source][1], id]
                done.append((score / len(ids) ** penalty, score, ids))
        done = sorted(done, key=lambda one: -one[0])[:n]
        going = [(score, source, id) for score, source, id in found if id not in ends][:n]
        steps = len(beams[0][1]) + 1
        if not going or len(done) == n and going[0][0] / steps**penalty <= done[-1][0]:
            break
        sources = [source for _, source, _ in going]
        kept = {source: cache.held(source, int(cache.used_R[source])).copy() for source in set(sources)}
        for target, source in enumerate(sources):
            cache.put(target, kept[source])
        beams = [(score, [*beams[source][1], id]) for score, source, id in going]
        ids = torch.tensor([[id] for *_, id in going], device=gpt.device)
        place = torch.from_numpy(script.place_N3[slots + steps - 1] + branch.origin_3).to(gpt.device)
        blocks = torch.full_like(ids, block + len(pending) + steps - 1)
        stream = Stream(ids, torch.ones_like(ids), blocks, place.expand(len(going), 1, 3))
        h_ND = gpt(stream, cache[: len(going)])[:, 0]
    _, score, ids = max(done, key=lambda one: one[0])
    codes = row.port.writes.codes(torch.tensor([*pending, *ids]).numpy()[script.open_N[: slots + len(ids)]], script.grid)
    value = row.port.codec.decode(codes)
    row.result = Result(value, codes, (*pending, *ids), score, Usage(row.read, {row.name: len(pending) + len(ids)}), (Part(value, True, codes),))


def written(ids: list[int], places) -> Written:
    none = torch.zeros(len(ids), dtype=torch.bool).numpy()
    return Written(torch.tensor(ids, dtype=torch.long).numpy(), none, none, places, 0)
