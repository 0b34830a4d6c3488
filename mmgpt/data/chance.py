"""A key of numbers and words -> random numbers and permutations that need no state and no memory, the same on every machine."""

from hashlib import blake2b

ROUNDS = 4


def number(*key: int | str) -> int:
    """64 random bits that are a function of the key alone: `number(seed, "mixture", lane, 7)`."""
    return int.from_bytes(blake2b(":".join(map(str, key)).encode(), digest_size=8).digest(), "little")


def share(*key: int | str) -> float:
    """A random number from 0 to below 1."""
    return (number(*key) >> 11) / 2**53


def permuted(place: int, count: int, *key: int | str) -> int:
    """Where `place` of 0 .. count - 1 goes in the permutation that belongs to the key.

    A Feistel network (Luby & Rackoff, 1988) permutes the next power of four; a place that lands outside is sent through it again
    until it falls inside (cycle walking: Black & Rogaway, 2002, "Ciphers with arbitrary finite domains"). On average less than four times.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for turn in range(ROUNDS):
            left, right = right, left ^ (number(*key, turn, right) & mask)
        place = left << half | right
        if place < count:
            return place
