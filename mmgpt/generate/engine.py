"""Requests (given parts, what to write, how) -> values. One loop for all modalities: rows of a batch may write different ones.

A row reads its document once, then goes on id by id: the layout's automaton says what may come next, the port's head scores
just those ids, one is drawn, and whatever the layout forces after it rides along into the same next step. A row that is done
leaves at once, and one that waits takes its place.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from math import isnan

import numpy as np
import torch
from torch import Tensor

from mmgpt.decoders.cache import Cache
from mmgpt.errors import InputError, LengthError
from mmgpt.generate.beam import search
from mmgpt.generate.best import best
from mmgpt.generate.compiled import Step
from mmgpt.generate.prefix import Prefixes, cut, key_of, leaders, rest
from mmgpt.generate.request import Event, Request, Result
from mmgpt.generate.row import Branch, Row
from mmgpt.generate.sampling import Sampling, choose, penalised, steered
from mmgpt.generate.stretch import kind, steps, take
from mmgpt.model import evaluating
from mmgpt.pack import Document, lay, length
from mmgpt.script import Choice
from mmgpt.types import Stream, Written

BATCH = 64  # rows that step together; more requests wait until one of them is done
ROOM = 64  # columns by which a cache grows


class Engine:
    """Rows that step together. `submit` requests, `step` until they are done; or `stream` one, or `run` many.

    `keep`      positions of finished rows that are kept, so that a request which begins like one of them reads only what is new
    `compile`   steps of one id a row are compiled (`torch.compile`): the first of them takes half a minute or more
    """

    def __init__(self, gpt, batch: int | None = None, keep: int = 0, compile: bool = False):
        self.gpt, self.batch = gpt, batch or BATCH
        self.waiting: deque[Row] = deque()
        self.rows: list[Row] = []
        self.branches: list[Branch] = []  # the branch in each row of the cache, without gaps
        self.cache: Cache = gpt.decoder.new_cache(0, 0)
        self.prefixes, self.weights = Prefixes(keep), ()
        self.advance = Step(gpt, compile)

    def submit(self, request: Request, listening: bool = False) -> Row:
        """Takes a request, which waits until there is room. What is wrong with it is said here."""
        if request.beams > 1 or request.best_of > 1:
            raise InputError(f"beams={request.beams}, best_of={request.best_of}: the best of several is known at the end, use Engine.run")
        row = Row(self.gpt, request, listening)
        self.waiting.append(row)
        return row

    def fits(self, request: Request) -> bool:
        """Whether a request can be taken as it is."""
        try:
            Row(self.gpt, request)
        except LengthError:
            return False
        return True

    @torch.inference_mode()
    def cancel(self, row: Row) -> None:
        """The row is gone before the next step."""
        if row in self.waiting:
            self.waiting.remove(row)
        elif row in self.rows:
            self.leave(row)

    @torch.inference_mode()
    def step(self, far: bool = False) -> bool:
        """Every row gets one more id; `far`: as many as nobody has to look at in between. False when nothing is left to do."""
        try:
            with evaluating(self.gpt) if self.gpt.training else nullcontext():
                old, new = list(self.rows), self.admit()
                if old and far and not new and (count := steps(old)) > 1:
                    self.go(old, count)
                elif old:
                    self.decode(old)
                for rows, h_RD in new:
                    self.draw(rows, h_RD)
                for row in [row for row in self.rows if row.done]:
                    self.leave(row)
        except BaseException as error:  # in the midst of a step: nobody knows what was read
            for row in self.rows:
                row.error = row.error or (error if isinstance(error, Exception) else InputError("stopped while others were computed: ask again"))
            self.rows, self.branches, self.cache = [], [], self.gpt.decoder.new_cache(0, 0)
            raise
        return bool(self.rows or self.waiting)

    def stream(self, request: Request) -> Iterator[Event]:
        """What a request writes, as it is written (see `generate.request`). Whoever stops listening cancels it."""
        row = self.submit(request, listening=True)
        try:
            while True:
                yield from row.events
                row.events.clear()
                if row.error is not None:
                    raise row.error
                if row.done:
                    return
                self.step()
        finally:
            self.cancel(row)

    def run(
        self, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None, finished: Callable[[int, Result], None] | None = None
    ) -> list[Result]:
        """All requests' results, in order. An error of one is raised when all others are done.

        `progress(done, of)` is called after each step, `finished(number, result)` as soon as there is a result: what is written down then is not
        lost when somebody stops the rest.
        """
        if any(request.best_of > 1 for request in requests):
            total, before = sum(request.best_of for request in requests), 0

            def some_of_them(some, came):
                nonlocal before
                try:
                    return self.run(some, None if progress is None else lambda done, _: progress(before + done, total), came)
                finally:
                    before += len(some)

            return best(self.gpt, requests, some_of_them, finished)
        rows = [Row(self.gpt, request) for request in requests]  # every mistake is found before anything is computed
        left = dict(enumerate(rows))
        try:
            with evaluating(self.gpt):
                for row in rows:
                    if row.request.beams > 1:
                        search(self.gpt, row, self.scores)
                    else:
                        self.waiting.append(row)
                while left:
                    self.step(far=True)
                    for number in [number for number, row in left.items() if row.done]:
                        row = left.pop(number)
                        if finished is not None and row.result is not None:
                            finished(number, row.result)
                    if progress is not None:
                        progress(len(rows) - len(left), len(rows))
        finally:
            for row in left.values():
                self.cancel(row)
        return [result_of(row) for row in rows]

    # rows come and go

    def admit(self) -> list[tuple[list[Row], Tensor]]:
        """Waiting rows for which there is room read their documents: the rows, and the vector at the end of each branch."""
        rows: list[Row] = []
        while self.waiting and len(self.rows) < self.batch:
            row = self.waiting.popleft()
            self.rows.append(row)
            if not row.done:
                rows.append(row)
        if not rows:
            return []
        self.advance.refresh()
        if self.prefixes.positions and self.weights != (now := state_of(self.gpt)):
            self.weights = now
            self.prefixes.held.clear()  # read with other weights
        branches = [branch for row in rows for branch in row.branches]
        keys = [key_of(branch.document) for branch in branches]
        found = [self.prefixes.find(key) for key in keys]
        plan = leaders(keys)
        first = [n for n, (leader, _) in enumerate(plan) if leader < 0 or found[n][0]]
        second = [n for n in range(len(branches)) if n not in first]
        self.make_room(len(branches), max(row.longest for row in rows))
        for n in [*first, *second]:
            branches[n].slot = len(self.branches)
            self.branches.append(branches[n])
        known = [0] * len(branches)
        for n in first:
            if (held := found[n][1]) is not None:
                known[n] = self.take(branches[n], keys[n], found[n][0], held)
        h_ND = [self.read([branches[n] for n in first], [known[n] for n in first])]
        if second:
            for n in second:
                leader, shared = plan[n]
                known[n] = self.take(branches[n], keys[n], shared, self.cache.held(branches[leader].slot, shared))
            h_ND.append(self.read([branches[n] for n in second], [known[n] for n in second]))
        order = torch.tensor([*first, *second]).argsort()
        return [(rows, torch.cat(h_ND)[order.to(h_ND[0].device)])]

    def take(self, branch: Branch, key: np.ndarray, n: int, held: Cache) -> int:
        """Copies what is known of a branch's document; at least one position is left to read."""
        n = cut(key, min(n, len(key) - (not branch.pending)))
        self.cache.put(branch.slot, held.held(0, n))
        return n

    def make_room(self, more: int, columns: int) -> None:
        rows, columns = len(self.branches) + more, -(-columns // ROOM) * ROOM + 1  # no step reads all: to a compiler that would be another shape
        if rows > self.cache.rows or columns > self.cache.length:
            self.cache = self.cache[: len(self.branches)].grown(max(rows, self.cache.rows), max(columns, self.cache.length))

    def leave(self, row: Row) -> None:
        """The row's place is free. What it held is kept where there is room for it; the last row of the cache closes the gap."""
        self.rows.remove(row)
        if row.branches[0].slot < 0:
            return
        if row.result is not None and self.prefixes.positions and self.weights == state_of(self.gpt):
            branch = row.branches[0]
            used = int(self.cache.used_R[branch.slot])
            self.prefixes.put(key_of(branch.document)[:used], self.cache.held(branch.slot, used))
        for branch in sorted(row.branches, key=lambda branch: -branch.slot):
            if row.error is not None:  # it may hold numbers that are none
                self.cache.empty(branch.slot)
            last = self.branches.pop()
            if last is not branch:
                self.cache.move(last.slot, branch.slot)
                self.branches[branch.slot] = last
                last.slot = branch.slot
            self.cache.used_R[len(self.branches)] = 0
            branch.slot = -1

    # what is computed

    def read(self, branches: Sequence[Branch], known: Sequence[int]) -> Tensor:
        """Reads documents, but for the positions that are known, and the ids forced after them, in one pass; the vector at the end of each."""
        documents: list[tuple[Document, int, int]] = []
        for branch, n in zip(branches, known, strict=True):
            left, base, block = rest(branch.document, n)
            documents.append(([*left, continued(branch)], base, block))
        columns = max(length(document) for document, *_ in documents)
        self.make_room(0, max(known) + columns)
        cache = self.cache[branches[0].slot : branches[-1].slot + 1]
        cache.used_R[:] = known
        origins = [(base, block) for _, base, block in documents]
        stream = lay([[document] for document, *_ in documents], {}, columns, origins).to(self.gpt.device)
        return self.at(self.gpt(stream, cache), range(len(documents)), [length(document) - 1 for document, *_ in documents])

    def again(self, branch: Branch) -> None:
        """Reads a document that has become another one; what is pending stays so."""
        ids, places, branch.pending, branch.places = branch.pending, branch.places, [], []
        self.read([branch], [0])
        branch.pending, branch.places, branch.stale = ids, places, False

    def decode(self, rows: Sequence[Row]) -> None:
        """Reads the pending ids of rows that have read their documents, and what is guessed to follow; draws what comes next.

        Branches with fewer ids than others leave columns free (document 0). Guesses that were wrong are as if they had not been read.
        """
        branches, guesses = self.branches[: sum(len(row.branches) for row in rows)], {}
        for branch in branches:
            if branch.stale:
                self.again(branch)
        for row in rows:
            if found := row.guesses():
                guesses.update({branch.slot: (row, found) for branch in row.branches})
        taken = [branch.take() for branch in branches]
        counts = [len(ids) for ids, *_ in taken]
        most = max(n + len(guesses[slot][1]) if slot in guesses else n for slot, n in enumerate(counts))
        ids, document, block = (np.zeros((len(taken), most), np.int64) for _ in range(3))
        position = np.zeros((len(taken), most, 3), np.int64)
        for r, (new, places, first) in enumerate(taken):
            n = len(new)
            ids[r, :n], position[r, :n] = new, places
            if r in guesses:
                row, found = guesses[r]
                slot, n = row.automaton.length, n + len(found)
                ids[r, len(new) : n] = found
                position[r, len(new) : n] = row.automaton.script.place_N3[slot : slot + len(found)] + branches[r].origin_3
            document[r, :n], block[r, :n] = 1, range(first, first + n)
        self.make_room(0, int(self.cache.used_R[: len(branches)].max()) + most)
        stream = Stream(*(torch.from_numpy(x) for x in (ids, document, block, position))).to(self.gpt.device)
        h_RTD = self.advance(stream, self.cache, len(branches))
        slots = [branch.slot for row in rows for branch in row.branches]
        self.draw(rows, self.at(h_RTD, slots, [counts[slot] - 1 for slot in slots]))
        self.check(guesses, counts, h_RTD)

    def go(self, rows: Sequence[Row], count: int) -> None:
        """Up to `count` steps of rows that choose alike, see `generate.stretch`."""
        one, branches = rows[0], len(self.branches)
        self.make_room(0, int(self.cache.used_R[:branches].max()) + count)
        ids_RN, cost_RN = take(
            rows, count, lambda *known: self.advance.begin(*known, self.cache, branches), lambda h_ND: self.scores(one.name, one.choice, h_ND)
        )
        for row, ids, costs in zip(rows, ids_RN.tolist(), cost_RN.tolist(), strict=True):
            if bad := sum(map(isnan, costs)):
                row.error = InputError(f"logits of {bad} of {len(ids)} ids are NaN or infinite, or none is finite: the weights are damaged")
                continue
            try:
                row.follow(ids, costs)
            except Exception as error:  # a codec's, of this row's codes
                row.error = error

    def check(self, guesses: dict[int, tuple[Row, list[int]]], counts: Sequence[int], h_RTD: Tensor) -> None:
        """Goes on with rows for as long as they draw what was guessed: the vectors behind it are known. The rest was not read."""
        right = dict.fromkeys(guesses, 0)
        going = {id(row): row for row, _ in guesses.values()}
        while going:
            for row in list(going.values()):
                slots = [branch.slot for branch in row.branches]
                found, n = guesses[slots[0]][1], right[slots[0]]
                if row.done or n == len(found) or row.branches[0].pending != [found[n]]:
                    del going[id(row)]
                    continue
                for branch in row.branches:
                    branch.take()
                    right[branch.slot] += 1
            if going:
                slots = [branch.slot for row in going.values() for branch in row.branches]
                self.draw([*going.values()], self.at(h_RTD, slots, [counts[slot] - 1 + right[slot] for slot in slots]))
        for slot, (_, found) in guesses.items():
            self.cache.used_R[slot] -= len(found) - right[slot]

    def at(self, h_RTD: Tensor, slots: Sequence[int], columns: Sequence[int]) -> Tensor:
        """The vectors of some rows of the cache, each at a column of its own."""
        if h_RTD.shape[1] == 1 and slots == [*range(len(h_RTD))]:
            return h_RTD[:, 0]
        return h_RTD[torch.tensor(slots, device=h_RTD.device), torch.tensor(columns, device=h_RTD.device)]

    def draw(self, rows: Sequence[Row], h_ND: Tensor) -> None:
        """Draws an id for each row. Those that choose among the same ids of a head in the same way are scored and drawn together."""
        groups: dict[tuple, list[Row]] = {}
        for row in rows:
            groups.setdefault(kind(row), []).append(row)
        places, at = {}, 0
        for row in rows:
            places[id(row)], at = at, at + len(row.branches)
        for (name, choice, sampling, guidance, branches), some in groups.items():
            used = 1 if guidance.off else branches  # of a row that is guided in another segment only the first counts
            index = [places[id(row)] + n for row in some for n in range(used)]
            logits_NV = self.scores(name, choice, h_ND if index == [*range(len(h_ND))] else h_ND[index])
            logits_RV = guidance.mix(logits_NV.unflatten(0, (len(some), used)), [len(row.ids) / len(row.automaton.script) for row in some])
            if sampling.looks_back or sampling.bias:
                logits_RV = torch.stack([changed(row, choice, logits_V) for row, logits_V in zip(some, logits_RV, strict=True)])
            pick(choice, sampling, some, logits_RV)

    def scores(self, name: str, choice: Choice, h_ND: Tensor) -> Tensor:
        """The scores of the ids of a choice, span after span, by the head that they belong to, else by that of the segment."""
        found = []
        for span in choice.spans:
            owners = [owner for owner in (name, *self.gpt.heads) if span.start in self.gpt.heads[owner].ids]
            whole = choice.any_of if choice.any_of and span.start in choice.any_of else None
            logits_NV = self.advance.scores((owners or [name])[0], whole or span, h_ND)
            found.append(logits_NV.float().logsumexp(-1, keepdim=True).to(logits_NV.dtype) if whole else logits_NV)
        return (found[0] if len(found) == 1 else torch.cat(found, -1)).float()


def changed(row: Row, choice: Choice, logits_V: Tensor) -> Tensor:
    """Scores after penalties for what the row wrote in this segment, and biases."""
    if row.sampling.looks_back and row.ids:
        seen = [index for id in row.ids if (index := choice.index(id)) is not None]
        logits_V = penalised(logits_V, row.sampling, torch.tensor(seen, dtype=torch.long, device=logits_V.device))
    for code, amount in row.sampling.bias:
        if (index := choice.index(row.id_of(code))) is not None:
            logits_V = logits_V.index_add(0, torch.tensor([index], device=logits_V.device), logits_V.new_tensor([amount]))
    return logits_V


def pick(choice: Choice, sampling: Sampling, rows: Sequence[Row], logits_RV: Tensor) -> None:
    """Draws an id for each of the rows; a row whose scores are damaged, or whose result has no value, ends with an error."""
    steers = [index for id in choice.steers if (index := choice.index(id)) is not None]
    drawn_RV = steered(logits_RV, steers, sampling.temperature) if steers else logits_RV
    index_R = choose(drawn_RV, sampling, [row.generator for row in rows]).to(logits_RV.device)
    found = logits_RV.log_softmax(-1).gather(-1, index_R[:, None])[:, 0].tolist()
    for n, (row, index, log_probability) in enumerate(zip(rows, index_R.tolist(), found, strict=True)):
        if isnan(log_probability):  # as it is if one score is NaN or infinite, or none is finite
            bad = int((torch.isnan(logits_RV[n]) | (logits_RV[n] == torch.inf)).sum())
            row.error = InputError(f"{bad} of {logits_RV.shape[1]} logits are NaN or infinite, or none is finite: the weights are damaged")
            continue
        try:
            row.push(choice.at(index), log_probability)
        except Exception as error:  # a codec's, of this row's codes
            row.error = error


def continued(branch: Branch) -> Written:
    """The pending ids of a branch as a written segment, whose places count from the document's beginning."""
    ids, places, _ = branch.take()
    none = np.zeros(len(ids), bool)
    base = sum(written.span for written in branch.document)
    return Written(np.asarray(ids, np.int64), none, none, places - base, 0)


def state_of(gpt) -> tuple:
    """Which weights a model has: another tuple as soon as one of them is changed or put in another's place."""
    return tuple((p.data_ptr(), -1 if p.is_inference() else p._version) for p in gpt.parameters())


def result_of(row: Row) -> Result:
    if row.error is not None:
        raise row.error
    return row.result


def run(gpt, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None) -> list[Result]:
    """All requests' results, in order, of an engine of their own; see `Engine.run`. The model is left as it was found."""
    return Engine(gpt).run(requests, progress)
