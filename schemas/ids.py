"""Names of things: content hashes, row keys, and hashes of configurations."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

POSITION_BITS = 32
MAX_POSITION = (1 << POSITION_BITS) - 1
MAX_BATCH_ORDINAL = (1 << (63 - POSITION_BITS)) - 1


def sample_id_of(data: bytes) -> str:
    """Return the sample id: SHA-256 of the source bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sample_row_of(batch_ordinal: int, position: int) -> int:
    """Pack a batch ordinal and a position inside the batch into one int64 join key.

    Raises:
        ValueError: if either part is outside its range.
    """
    if not 0 <= batch_ordinal <= MAX_BATCH_ORDINAL:
        raise ValueError(f"batch_ordinal {batch_ordinal} is outside 0..{MAX_BATCH_ORDINAL}")
    if not 0 <= position <= MAX_POSITION:
        raise ValueError(f"position {position} is outside 0..{MAX_POSITION}")
    return (batch_ordinal << POSITION_BITS) | position


def split_sample_row(sample_row: int) -> tuple[int, int]:
    """Return (batch_ordinal, position) of a sample row."""
    return sample_row >> POSITION_BITS, sample_row & MAX_POSITION


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")


def canonical_hash(value: Any, length: int = 16) -> str:
    """Return the first `length` hex digits of SHA-256 over the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def hash_fraction(sample_id: str, purpose: str) -> float:
    """Return a number in [0, 1) that depends on the sample's bytes and the purpose alone.

    Used for splits: the same image falls on the same side in every batch and on every machine.
    """
    digest = hashlib.sha256(f"{purpose}:{sample_id}".encode()).digest()
    # 53 bits, all that a float holds: the largest quotient stays below 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2.0**53
