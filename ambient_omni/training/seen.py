"""Which samples a run has trained on: one bit each, whatever is excluded later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.ids import MAX_POSITION, POSITION_BITS

Bits = NDArray[np.uint8]


class SeenSamples:
    """A bitmap over sample rows, one array per ingest batch: an eighth of a byte a sample.

    It knows rows, not places in the training data, so it stays right when a run resumes with fewer
    samples after a take-down: what was seen before was seen.
    """

    def __init__(self) -> None:
        self._bits: dict[int, Bits] = {}

    def add(self, sample_rows: NDArray[np.int64]) -> None:
        """Mark samples, (B,) int64."""
        for ordinal, positions in _by_batch(sample_rows):
            bits = self._room_for(ordinal, int(positions.max()))
            np.bitwise_or.at(bits, positions >> 3, _mask(positions))

    def has(self, sample_rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say which samples were marked, shape as given."""
        found = np.zeros(len(sample_rows), bool)
        for ordinal, bits in self._bits.items():
            here = np.flatnonzero(sample_rows >> POSITION_BITS == ordinal)
            positions = sample_rows[here] & MAX_POSITION
            inside = positions >> 3 < len(bits)
            here, positions = here[inside], positions[inside]
            found[here] = (bits[positions >> 3] & _mask(positions)) != 0
        return found

    def unite(self, other: SeenSamples) -> None:
        """Mark what another one has marked."""
        for ordinal, bits in other._bits.items():
            here = self._room_for(ordinal, 8 * len(bits) - 1)
            here[: len(bits)] |= bits

    def __len__(self) -> int:
        return sum(int(np.bitwise_count(bits).sum()) for bits in self._bits.values())

    def tensors(self) -> dict[str, Tensor]:
        """Return the bitmaps, uint8, by the ordinal of their batch: a group of a checkpoint."""
        return {str(ordinal): torch.from_numpy(bits) for ordinal, bits in self._bits.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` returned."""
        self._bits = {int(name): bits.numpy().copy() for name, bits in tensors.items()}

    def _room_for(self, ordinal: int, position: int) -> Bits:
        bits = self._bits.get(ordinal, np.zeros(0, np.uint8))
        missing = (position >> 3) + 1 - len(bits)
        if missing > 0:
            # Doubling, so that growing costs little however the positions come.
            grown = np.zeros(max(missing, len(bits)), np.uint8)
            bits = self._bits[ordinal] = np.concatenate([bits, grown])
        return bits


def _by_batch(sample_rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    ordinals = sample_rows >> POSITION_BITS
    for ordinal in np.unique(ordinals):
        yield int(ordinal), sample_rows[ordinals == ordinal] & MAX_POSITION


def _mask(positions: NDArray[np.int64]) -> Bits:
    return np.left_shift(np.uint8(1), (positions & 7).astype(np.uint8))
