"""Written segments, document by document -> one (B, T) stream; nothing is padded but the tail of each row."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from mmgpt.errors import InputError
from mmgpt.script import Span
from mmgpt.types import VECTOR, Input, Stream, Target, Written, join

Document = Sequence[Written]
ANY = -1  # a target whose head is found by its id


def length(document: Document) -> int:
    return sum(len(written) for written in document)


def assign(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """First fit, longest first: the documents of each row. With rows of 3 to 90 times the mean length 97% and more fill up."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[index] > row_length:
            raise InputError(f"a document of {lengths[index]} positions in rows of {row_length}: use longer rows or a shorter document")
        row = next((r for r, free in enumerate(room) if free >= lengths[index]), None)
        if row is None:
            rows.append([])
            room.append(row_length)
            row = len(rows) - 1
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def pack(documents: Sequence[Document], heads: dict[str, Span], row_length: int | None = None) -> Stream:
    """All documents as one stream. Without `row_length` every document has a row of its own.

    A target is written at the position *before* its id, the one that predicts it, for every id that was chosen in a
    segment to be learned; it goes to the segment's head, or else to the one whose span holds it.
    """
    lengths = [length(d) for d in documents]
    if not documents or min(lengths) == 0:
        raise InputError(f"{len(documents)} documents, the shortest of {min(lengths, default=0)} positions: pass at least one segment each")
    if row_length is None:
        return lay([[document] for document in documents], heads, max(lengths))
    return lay([[documents[i] for i in row] for row in assign(lengths, row_length)], heads, row_length)


def lay(rows: Sequence[Sequence[Document]], heads: dict[str, Span], row_length: int, origins: Sequence[tuple[int, int]] | None = None) -> Stream:
    """Documents that are in rows already, as a stream; those of a row must fit into it. `origins`: the position and the block that each row's
    first document begins with, where it is the rest of one."""
    shape = (len(rows), row_length)
    ids, document_no, block = (np.zeros(shape, np.int64) for _ in range(3))
    position, learn, names = np.zeros((*shape, 3), np.int64), np.zeros(shape, np.int64), ["", *heads]
    slots: dict[str, list[np.ndarray]] = {}
    prepared: dict[str, list] = {}
    for row, members in enumerate(rows):
        column = 0
        for number, document in enumerate(members, 1):
            start, (base, blocks) = column, origins[row] if origins is not None and number == 1 else (0, 0)
            for written in document:
                here = slice(column, column + len(written))
                ids[row, here], document_no[row, here] = written.ids_N, number
                learn[row, here] = np.where(written.choice_N & written.learn, names.index(written.head) if written.head in heads else ANY, 0)
                position[row, here] = written.place_N3 + base
                block[row, here] = blocks_of(written, blocks)
                if written.prepared is not None:
                    at = row * shape[1] + column + np.flatnonzero(written.ids_N == VECTOR)
                    slots.setdefault(written.encoder, []).append(at)
                    prepared.setdefault(written.encoder, []).append(written.prepared)
                base, column = base + written.span, here.stop
                blocks = int(block[row, column - 1]) + 1 if len(written) else blocks
            learn[row, start] = 0  # nothing stands before a document's first id that could predict it
    inputs = tuple(Input(name, join(prepared[name]), torch.from_numpy(np.concatenate(slots[name]))) for name in slots)
    stream = (torch.from_numpy(x) for x in (ids, document_no, block, position))
    return Stream(*stream, inputs, targets(ids, learn, heads))


def blocks_of(written: Written, first: int) -> np.ndarray:
    """Block numbers: every slot opens a block of its own, but the slots that are read as a whole share one."""
    opens = np.ones(len(written), np.int64)
    opens[1:][written.whole_N[1:] & written.whole_N[:-1]] = 0
    return first + opens.cumsum() - 1


def targets(ids_BT: np.ndarray, learn_BT: np.ndarray, heads: dict[str, Span]) -> tuple[Target, ...]:
    """`learn_BT` 0: no target; 1, 2, ...: of the first head, the second, ...; ANY: of the head whose span holds the id."""
    flat, learn, at = ids_BT.reshape(-1), learn_BT.reshape(-1), np.flatnonzero(learn_BT)
    found, free = [], learn[at] == ANY
    for number, (name, span) in enumerate(heads.items(), 1):
        held = free & (flat[at] >= span.start) & (flat[at] < span.stop)
        mine, free = at[(learn[at] == number) | held], free & ~held  # of heads that score the same ids the first
        if len(mine):
            found.append(Target(name, torch.from_numpy(mine - 1), torch.from_numpy(flat[mine])))
    return tuple(found)


def stack(streams: Sequence[Stream]) -> Stream:
    """Streams of one row length below each other, as one."""
    lengths = {stream.ids_BT.shape[1] for stream in streams}
    if len(lengths) != 1:
        raise InputError(f"{len(streams)} streams of {len(lengths)} row lengths ({sorted(lengths)}): pass at least one stream, all of one length")
    first = np.cumsum([0, *(stream.ids_BT.numel() for stream in streams)]).tolist()  # flat position where each begins
    inputs: dict[str, list[Input]] = {}
    targets: dict[str, list[Target]] = {}
    for begin, stream in zip(first, streams, strict=False):
        for given in stream.inputs:
            inputs.setdefault(given.encoder, []).append(replace(given, slot_N=given.slot_N + begin))
        for target in stream.targets:
            targets.setdefault(target.head, []).append(replace(target, slot_N=target.slot_N + begin))
    return Stream(
        *(torch.cat([getattr(stream, name) for stream in streams]) for name in ("ids_BT", "document_BT", "block_BT", "position_BT3")),
        tuple(Input(name, join([i.prepared for i in some]), torch.cat([i.slot_N for i in some])) for name, some in inputs.items()),
        tuple(Target(name, torch.cat([t.slot_N for t in some]), torch.cat([t.id_N for t in some])) for name, some in targets.items()),
    )
