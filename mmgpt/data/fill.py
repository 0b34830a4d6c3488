"""Lengths of waiting documents -> which of them fill a row best; a document that is too long -> pieces that fit."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from mmgpt.errors import InputError
from mmgpt.pack import Document, length
from mmgpt.types import Written, beside


def fullest(lengths: Sequence[int], room: int) -> list[int]:
    """Which documents go into the next row: the first, which has waited longest, and those of the rest that leave the least room.

    lengths 5 4 3 3, room 11    [0, 2, 3]: 5 + 3 + 3 = 11, not 5 + 4

    Every sum that the first n documents can make is a bit of one whole number; the fullest row is read back from the largest.
    """
    free = room - lengths[0]
    mask = (1 << free + 1) - 1
    sums = [1]
    for size in lengths[1:]:
        sums.append((sums[-1] | sums[-1] << size) & mask)
    left, chosen = sums[-1].bit_length() - 1, []
    for index in range(len(lengths) - 1, 0, -1):
        if not sums[index - 1] >> left & 1:  # this sum needs the document
            chosen.append(index)
            left -= lengths[index]
    return [0, *reversed(chosen)]


def pieces(document: Document, row_length: int, head: int = 0) -> list[Document]:
    """The document, or pieces of at most `row_length` positions: cut between segments, each led by the first `head` (what begins it).

    A segment that is too long by itself is cut too if it is nothing but a line, one position a slot (text); else `InputError`.
    """
    if length(document) <= row_length:
        return [document]
    begin, room = list(document[:head]), row_length - length(document[:head])
    found: list[list[Written]] = [[]]
    for segment in (part for written in document[head:] for part in lines(written, room)):
        if length(found[-1]) + len(segment) > room:
            found.append([])
        found[-1].append(segment)
    return [again([*begin, *segments]) for segments in found if segments]


def again(document: list[Written]) -> list[Written]:
    """The segments, each beside what stands before it now, where it stood beside something."""
    return [*document[:1], *(beside(now, before.span if now.beside else 0) for before, now in pairwise(document))]


def lines(written: Written, room: int) -> list[Written]:
    """A segment that fits, or a line in pieces that fit."""
    if len(written) <= room:
        return [written]
    if room < 1 or written.prepared is not None or (written.place_N3 != np.arange(len(written))[:, None]).any():
        raise InputError(f"a segment of {len(written)} positions in rows of {room}: use longer rows, or make it smaller")
    return [cut(written, slice(at, min(at + room, len(written)))) for at in range(0, len(written), room)]


def cut(written: Written, part: slice) -> Written:
    columns = {name: getattr(written, name)[part] for name in ("ids_N", "choice_N", "whole_N")}
    return replace(written, **columns, place_N3=written.place_N3[part] - part.start, span=part.stop - part.start)
