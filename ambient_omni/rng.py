"""The one home of randomness: every draw is addressed by seed, purpose and position.

A generator is a Philox counter generator whose key is a hash of its address. So a draw does not
depend on what was drawn before it, on the process that draws it, or on the number of processes:
training resumes exactly, and a Spark task that runs twice makes the same numbers twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


def _key(seed: int, purpose: str, position: tuple[int | str, ...]) -> NDArray[np.uint64]:
    """128-bit Philox key of an address. Integers and strings that look alike differ."""
    plain = [part if isinstance(part, str) else int(part) for part in position]
    address = json.dumps([int(seed), purpose, *plain], separators=(",", ":"))
    return np.frombuffer(hashlib.blake2b(address.encode(), digest_size=16).digest(), np.uint64)


def generator(seed: int, purpose: str, *position: int | str) -> np.random.Generator:
    """Return the generator of one address.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for; two purposes never share numbers.
        *position: step, sample id, fold or whatever else names the draw.
    """
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose, position)))


def uniform(count: int, seed: int, purpose: str, *position: int | str) -> NDArray[np.float64]:
    """Return `count` numbers in [0, 1), shape (count,), float64."""
    return generator(seed, purpose, *position).random(count)


def normal(
    shape: int | Sequence[int], seed: int, purpose: str, *position: int | str
) -> NDArray[np.float32]:
    """Return standard normal numbers of `shape`, float32."""
    return generator(seed, purpose, *position).standard_normal(shape, dtype=np.float32)


def normal_rows(
    rows: Sequence[int] | NDArray[np.integer],
    shape: Sequence[int],
    seed: int,
    purpose: str,
    *position: int | str,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return one block of standard normal numbers per row number, float32 (len(rows), *shape).

    Block r depends on the address and on r alone, so that ranks which share a global batch draw
    their own rows only, and the union is what one process would have drawn. They are put into
    `out`, a new array by default.
    """
    philox = np.random.Philox(key=_key(seed, purpose, position))
    numbers = np.random.Generator(philox)
    # One generator that is put to each row's counter: making one anew costs seven times as much.
    state = philox.state
    if out is None:
        out = np.empty((len(rows), *shape), np.float32)
    for block, row in zip(out, rows, strict=True):
        # A block of numbers uses far fewer than 2^64 counter values, so the blocks cannot meet:
        # word 0 and 1 count within a block, word 2 is the row.
        state["state"]["counter"] = np.array([0, 0, int(row), 0], np.uint64)
        philox.state = state
        numbers.standard_normal(out=block, dtype=np.float32)
    return out


def torch_normal(
    shape: int | Sequence[int], seed: int, purpose: str, *position: int | str
) -> torch.Tensor:
    """Return `normal(...)` as a float32 CPU tensor."""
    import torch

    return torch.from_numpy(normal(shape, seed, purpose, *position))


@contextlib.contextmanager
def torch_seeded(seed: int, purpose: str, *position: int | str) -> Iterator[None]:
    """Run a block with torch's global generator set to this address, and restore it afterwards.

    Only for what takes no generator argument: weight initialisation and dropout.
    """
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(int(_key(seed, purpose, position)[0] % (1 << 63)))
        yield


def permutation(count: int, seed: int, purpose: str, *position: int | str) -> NDArray[np.int64]:
    """Return a permutation of range(count), shape (count,), int64."""
    return generator(seed, purpose, *position).permutation(count)


def standard_normal_quantile(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard normal inverse CDF, elementwise; 0 and 1 are clipped to about ±8.2."""
    import torch

    smallest = math.ulp(0.5)
    clipped = np.clip(np.asarray(probability, np.float64), smallest, 1.0 - smallest)
    quantile: NDArray[np.float64] = torch.special.ndtri(torch.from_numpy(clipped)).numpy()
    return quantile
