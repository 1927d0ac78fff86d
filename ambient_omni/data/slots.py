"""Memory through which images leave a loader's workers."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info


class Slots:
    """A ring of arrays per worker, made before the workers are forked and shared with them.

    torch sends each tensor through a shared file of its own, which both sides map, fill page by
    page and unmap again: for images that costs more than reading them. These pages stay, and a
    worker sends the number of a slot.

    A slot is filled anew once its worker has been asked for `prefetch` + 1 further batches. A
    `DataLoader` asks when it hands a batch over, so whoever reads must be done with a batch, or
    have copied it, when he asks for the next one. One ring serves one iteration of a loader whose
    workers are forked.

    Args:
        shape: of one array.
        dtype: of it.
        num_workers: of the loader.
        prefetch: its `prefetch_factor`.
    """

    def __init__(
        self, shape: Sequence[int], dtype: np.dtype[Any], num_workers: int, prefetch: int
    ) -> None:
        self._per_worker = prefetch + 1
        count = num_workers * self._per_worker
        # Anonymous shared pages, which exist once they are written to.
        memory = mmap.mmap(-1, max(1, count * math.prod(shape) * dtype.itemsize))
        self._arrays = np.ndarray((count, *shape), dtype, memory)
        self._filled = 0

    def next(self) -> int:
        """Return the number of the slot that this worker fills next.

        Raises:
            RuntimeError: this is not a worker of a loader.
        """
        worker = get_worker_info()
        if worker is None:
            raise RuntimeError("slots are filled by the workers of a loader")
        place = self._filled % self._per_worker
        self._filled += 1
        return worker.id * self._per_worker + place

    def __getitem__(self, slot: int) -> NDArray[Any]:
        """Return the array of a slot."""
        array: NDArray[Any] = self._arrays[slot]
        return array
