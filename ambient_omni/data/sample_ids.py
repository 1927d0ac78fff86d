"""The content ids of many samples, 32 bytes each instead of a Python string."""

from __future__ import annotations

import binascii

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

NUM_BYTES = 32
_NUM_DIGITS = 2 * NUM_BYTES


class SampleIds:
    """SHA-256 ids of N samples. `raw` (N, 32) uint8, in memory or mapped from a file."""

    def __init__(self, raw: NDArray[np.uint8]) -> None:
        self.raw = raw

    @classmethod
    def of_hex(cls, names: pa.ChunkedArray) -> SampleIds:
        """Make it from hexadecimal ids, as tables hold them."""
        raw = np.empty((len(names), NUM_BYTES), np.uint8)
        parse_hex_into(names, raw)
        return cls(raw)

    def __len__(self) -> int:
        return len(self.raw)

    def names(self, index: NDArray[np.integer]) -> tuple[str, ...]:
        """Return the ids of samples as 64 hexadecimal digits each."""
        digits = self.raw[index].tobytes().hex()
        return tuple(digits[i : i + _NUM_DIGITS] for i in range(0, len(digits), _NUM_DIGITS))

    def noise_keys(self, index: NDArray[np.integer]) -> NDArray[np.uint64]:
        """Return the address of each sample's fixed noise, from its content, shape (B,).

        64 of the 256 bits: two of 1e8 images share a key with probability 3e-4, and then they share
        their noise, which harms nothing.
        """
        leading = np.ascontiguousarray(self.raw[index][:, :8])
        return leading.view(">u8")[:, 0].astype(np.uint64)


def parse_hex_into(names: pa.ChunkedArray, out: NDArray[np.uint8]) -> None:
    """Write the bytes of ids, 64 hexadecimal digits each, to `out` (N, 32).

    Raises:
        ValueError: an id is null or has another length.
    """
    filled = 0
    for chunk in names.chunks:
        out[filled : filled + len(chunk)] = _parse_hex(chunk)
        filled += len(chunk)


def _parse_hex(names: pa.Array) -> NDArray[np.uint8]:
    if not len(names):
        return np.empty((0, NUM_BYTES), np.uint8)
    names = names.cast(pa.large_string())
    offsets = np.frombuffer(names.buffers()[1], np.int64)[names.offset :][: len(names) + 1]
    if names.null_count or (np.diff(offsets) != _NUM_DIGITS).any():
        raise ValueError(f"sample ids must be {_NUM_DIGITS} hexadecimal digits each")
    digits = memoryview(names.buffers()[2])[offsets[0] : offsets[-1]]
    return np.frombuffer(binascii.unhexlify(digits), np.uint8).reshape(-1, NUM_BYTES)
