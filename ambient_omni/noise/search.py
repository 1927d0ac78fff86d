"""Prefixes of sorted orders: how many samples of a stratum come before a level."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Levels = NDArray[np.float64]
Places = NDArray[np.int64]

# One value in so many is kept at hand: the last steps of a search alone touch cold memory.
_BLOCK = 64


class SortedPrefixes:
    """Samples of several strata, each stratum sorted by a value that is computed on demand.

    Only the order is stored, 4 bytes a sample; the values stay where they are.

    Args:
        order: (M,) uint32 sample indices, strata one after the other, each ascending in `value`.
        starts: (T + 1,) where each stratum begins in `order`.
        first: (T,) where each stratum's search begins; samples before it precede every level.
        value: the values of samples, by index.
    """

    def __init__(
        self,
        order: NDArray[np.uint32],
        starts: Places,
        first: Places,
        value: Callable[[NDArray[np.uint32]], Levels],
    ) -> None:
        self._order, self._value = order, value
        self.starts, self._first = starts, first
        self._top = value(order[::_BLOCK])

    def count(self, stratum: Places, level: Levels) -> Places:
        """Return how many samples of each stratum have a value ≤ level; shapes (B,)."""
        low, high = self._first[stratum], self.starts[stratum + 1]
        # Blocks that begin inside the stratum's searched part.
        low_block, high_block = -(-low // _BLOCK), -(-high // _BLOCK)
        if len(self.starts) == 2:
            begin, end = int(low_block[0]), int(high_block[0])
            block = np.searchsorted(self._top[begin:end], level, side="right") + begin
        else:
            block = first_above(self._top.__getitem__, low_block, high_block, level)
        place = first_above(
            lambda places: self._value(self._order[places]),
            np.maximum((block - 1) * _BLOCK, low),
            np.minimum(block * _BLOCK, high),
            level,
        )
        count: Places = place - self.starts[stratum]
        return count

    def lowest(self) -> Levels:
        """Return the smallest value of each stratum, (T,): -inf where samples precede all levels.

        inf where the stratum is empty.
        """
        lowest = np.full(len(self._first), np.inf)
        lowest[self._first > self.starts[:-1]] = -np.inf
        searched = np.flatnonzero(np.isinf(lowest) & (lowest > 0) & (self.starts[1:] > self._first))
        lowest[searched] = self._value(self._order[self._first[searched]])
        return lowest

    def sample(self, stratum: Places, rank: Places) -> Places:
        """Return the samples that stand at a rank of their stratum, int64 (B,)."""
        chosen: Places = self._order[self.starts[stratum] + rank].astype(np.int64)
        return chosen


def first_above(
    value: Callable[[Places], Levels], low: Places, high: Places, level: Levels
) -> Places:
    """Return per element the first place in [low, high) whose value is above level, else high.

    All searches go in step, so that the cost in Python is that of one.

    Args:
        value: ascending within each [low, high).
        low: (B,).
        high: (B,), at least `low`.
        level: (B,).
    """
    low, high = low.copy(), high.copy()
    while (searching := low < high).any():
        middle = (low + high) >> 1
        # Where the search has ended `middle` is `high`, which need not be a place: look at `low`'s
        # last one instead and keep the result.
        below = value(np.where(searching, middle, 0)) <= level
        low = np.where(searching & below, middle + 1, low)
        high = np.where(searching & ~below, middle, high)
    return low


def sort_by(
    bits: Callable[[slice], tuple[NDArray[np.uint32], NDArray[np.uint32]]],
    parts: list[slice],
    counts: Places,
) -> NDArray[np.uint32]:
    """Return sample indices sorted by 32-bit keys within strata, ties by index.

    A key and an index make one 64-bit number, so that an unstable sort of them is a total order:
    the same on every processor. In place, 8 bytes a sample while it sorts, 4 afterwards.

    Args:
        bits: (keys, indices) of the samples of one part, those of one stratum after the other.
        parts: what to ask `bits` for, in order.
        counts: (T,) how many samples each stratum has over all parts.
    """
    total = int(counts.sum())
    keys = np.empty(total, np.uint64)
    filled = 0
    for part in parts:
        key, index = bits(part)
        here = keys[filled : filled + len(key)]
        here[:] = key
        here <<= np.uint64(32)
        here |= index
        filled += len(key)
    assert filled == total
    for end, count in zip(np.cumsum(counts).tolist(), counts.tolist(), strict=True):
        keys[end - count : end].sort()
    return _low_words(keys)


def _low_words(keys: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Return the low halves, moved to the front of the same memory, which then shrinks."""
    for start in range(0, len(keys), 1 << 20):
        part = (keys[start : start + (1 << 20)] & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        keys.view(np.uint32)[start : start + len(part)] = part
    num = len(keys)
    keys.resize((num + 1) // 2, refcheck=False)
    return keys.view(np.uint32)[:num]
