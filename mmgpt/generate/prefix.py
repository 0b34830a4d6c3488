"""Documents -> what they have in common with documents that were read before, so that it is not read again."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np
from jaxtyping import Int

from mmgpt.decoders.cache import Cache
from mmgpt.pack import Document, blocks_of
from mmgpt.types import VECTOR, Written

WORTH = 16  # positions: fewer are read again sooner than copied

Key = Int[np.ndarray, "_ 5"]


def key_of(document: Document) -> Key:
    """What makes each position what it is: its id or a fingerprint of the vectors it is of, its place, its block."""
    base, blocks, found = 0, 0, [np.zeros((0, 5), np.int64)]
    for written in document:
        key = np.empty((len(written), 5), np.int64)
        key[:, 0], key[:, 1:4], key[:, 4] = written.ids_N, written.place_N3 + base, blocks_of(written, blocks)
        if written.prepared is not None:
            key[written.ids_N == VECTOR, 0] = fingerprint(written)
        found.append(key)
        base, blocks = base + written.span, int(key[-1, 4]) + 1 if len(key) else blocks
    return np.concatenate(found)


def fingerprint(written: Written) -> int:
    """Of the values that are encoded, and of the encoder; below all ids."""
    values = written.prepared.values_NF.contiguous().numpy().tobytes()
    return -1 - int.from_bytes(blake2b(values + f"{written.encoder} {written.prepared.grids}".encode(), digest_size=7).digest(), "little")


def shared(a: Key, b: Key) -> int:
    """How many positions two documents begin with alike; never a part of a segment of vectors."""
    least = min(len(a), len(b))
    differ = np.flatnonzero((a[:least] != b[:least]).any(1))
    return min(cut(key, int(differ[0]) if len(differ) else least) for key in (a, b))


def cut(key: Key, n: int) -> int:
    """At most n positions, without a part of a segment of vectors: those of one have one fingerprint."""
    while 0 < n < len(key) and key[n, 0] < 0 and key[n - 1, 0] == key[n, 0]:
        n -= 1
    return n


def rest(document: Document, n: int) -> tuple[list[Written], int, int]:
    """The document without its first n positions, and the base and block at which it goes on."""
    base, blocks = 0, 0
    for index, written in enumerate(document):
        if n < len(written):
            numbers = blocks_of(written, blocks)
            cut = [x[n:] for x in (written.ids_N, written.choice_N, written.whole_N, written.place_N3)]
            return [replace(written, ids_N=cut[0], choice_N=cut[1], whole_N=cut[2], place_N3=cut[3]), *document[index + 1 :]], base, int(numbers[n])
        n -= len(written)
        base, blocks = base + written.span, int(blocks_of(written, blocks)[-1]) + 1 if len(written) else blocks
    return [], base, blocks


class Prefixes:
    """What rows held that are gone: at most so many positions, the oldest go first."""

    def __init__(self, positions: int):
        self.positions = positions
        self.held: OrderedDict[bytes, tuple[Key, Cache]] = OrderedDict()

    def put(self, key: Key, held: Cache) -> None:
        if not WORTH <= len(key) <= self.positions:
            return
        for name, (other, _) in list(self.held.items()):  # what it begins with is held in it
            if shared(key, other) == len(other):
                del self.held[name]
        self.held[key.tobytes()] = (key, held.copy())
        while sum(len(other) for other, _ in self.held.values()) > self.positions:
            self.held.popitem(last=False)

    def find(self, key: Key) -> tuple[int, Cache | None]:
        """The longest beginning that is held: its length, and who holds it."""
        best, found = 0, None
        for name, (other, held) in self.held.items():
            if (n := shared(key, other)) > best:
                best, found = n, name
                source = held
        if found is None or best < WORTH:
            return 0, None
        self.held.move_to_end(found)
        return best, source.held(0, best)


def leaders(keys: Sequence[Key]) -> list[tuple[int, int]]:
    """For each document (index of an earlier one, positions) that it shares with it, or (-1, 0) where it is to be read from its beginning.

    Whoever shares with a document that shares itself takes what both have from the first.
    """
    found: list[tuple[int, int]] = []
    alike: dict[bytes, list[int]] = {}  # documents that are read from their beginning, by how they begin
    for n, key in enumerate(keys):
        others = alike.setdefault(key[:WORTH].tobytes(), [])
        best = max(((shared(key, keys[m]), -m) for m in others), default=(0, 0))
        if best[0] >= WORTH:
            found.append((-best[1], best[0]))
        else:
            others.append(n)
            found.append((-1, 0))
    return found
