"""Blanking samples inside packs: the place stays, what stood there is gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def blank_rows(packs: Path, sample_rows: NDArray[np.int64]) -> int:
    """Overwrite samples with zeros in every pack, of whichever transform; return how many.

    Args:
        packs: `<root>/packs`.
        sample_rows: which samples.
    """
    count = 0
    for keys in sorted(packs.glob("*/*/rows-*.npy")):
        chunk = keys.with_name(keys.name.replace("rows-", "chunk-", 1))
        place = np.flatnonzero(np.isin(np.load(keys), sample_rows))
        if not len(place) or not chunk.exists():
            continue
        pixels = np.load(chunk, mmap_mode="r+")
        filled = np.array([bool(np.any(pixels[p])) for p in place])
        pixels[place[filled]] = 0
        pixels.flush()
        count += int(filled.sum())
    return count
