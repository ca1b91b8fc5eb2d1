"""A random order of any length that needs no memory: each position is computed on its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6


def shuffled_rows(start: int, stop: int, n: int, seed: int) -> NDArray[np.int64]:
    """Entries `start` to `stop` of a random order of `range(n)`, a function of `n` and `seed`.

    A Feistel network is a bijection of the numbers below a power of 4; what it maps to `n` or
    above is mapped again until it falls below (Black and Rogaway, 2002). So no table is kept, and
    the order is the same on every machine and with every version of torch and numpy.

    Args:
        start: first position.
        stop: position after the last.
        n: length of the whole order.
        seed: which order.

    Returns:
        [stop - start] row numbers.
    """
    half = np.uint64(max(3, (max(n - 1, 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    seed = (seed + 1) % 2**64  # zero is mixed into zero
    keys = _mixed(np.arange(_ROUNDS, dtype=np.uint64) + _mixed(np.array([seed], dtype=np.uint64)))
    rows = np.arange(start, stop, dtype=np.uint64)
    outside = np.ones(len(rows), dtype=bool)
    while outside.any():
        left, right = rows[outside] >> half, rows[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        rows[outside] = (left << half) | right
        outside = rows >= n
    return rows.astype(np.int64)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of splitmix64 (Steele, Lea and Flood, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
