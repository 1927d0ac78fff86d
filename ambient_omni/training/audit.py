"""Proof of obedience: what levels each kind of sample was used at, counted as training goes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ambient_omni.data.annotations import Annotations

# Edges of the buckets of sigma_min: 0, then octaves, then null.
_MIN_EDGES = np.array([0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, np.inf])
# Edges of the levels: octaves around those that images are sensitive to.
_LEVEL_EDGES = np.r_[0.0, 2.0 ** np.arange(-7, 6), np.inf]


class Audit:
    """Counts draws by sigma_min bucket and level, and those below the floor (must stay 0).

    It reads the annotations as they are in the table, not the index that the draws came from.
    """

    def __init__(self, annotations: Annotations, kappa: float) -> None:
        self._floor = np.where(
            np.isnan(annotations.sigma_min), np.inf, kappa * annotations.sigma_min
        )
        self._window = annotations.sigma_max
        self._bucket = _bucket_of(annotations.sigma_min)
        self._counts = np.zeros((len(bucket_names()), len(_LEVEL_EDGES) - 1), np.int64)
        self._below_floor = 0
        self._through_window = 0
        self._lowest_ratio = np.inf

    def add(self, index: NDArray[np.int64], sigma: NDArray[np.float64]) -> None:
        """Count the draws of one step: sample indices (B,) and levels (B,)."""
        floor = self._floor[index]
        above, inside = sigma >= floor, sigma <= self._window[index]
        self._below_floor += int((~above & ~inside).sum())
        self._through_window += int((~above & inside).sum())
        gated = above & (floor > 0)
        if gated.any():
            ratio = float((sigma[gated] / floor[gated]).min())
            self._lowest_ratio = min(self._lowest_ratio, ratio)
        level = np.searchsorted(_LEVEL_EDGES, sigma, side="right") - 1
        np.add.at(self._counts, (self._bucket[index], level), 1)

    def state(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        lowest = self._lowest_ratio
        return {
            "draws": int(self._counts.sum()),
            "draws_below_floor": self._below_floor,
            "draws_through_window": self._through_window,
            "lowest_sigma_over_floor": lowest if np.isfinite(lowest) else None,
            "samples_per_sigma_min": np.bincount(
                self._bucket, minlength=len(bucket_names())
            ).tolist(),
            "sigma_min_buckets": bucket_names(),
            "sigma_edges": [float(edge) for edge in _LEVEL_EDGES[1:-1]],
            "draws_per_sigma_min_and_sigma": self._counts.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._counts[:] = state["draws_per_sigma_min_and_sigma"]
        self._below_floor = state["draws_below_floor"]
        self._through_window = state["draws_through_window"]
        lowest = state["lowest_sigma_over_floor"]
        self._lowest_ratio = np.inf if lowest is None else lowest


def bucket_names() -> list[str]:
    """Return the names of the sigma_min buckets: "0", half-open octaves, "null"."""
    names = [f"{low:g}..{high:g}" for low, high in itertools.pairwise(_MIN_EDGES)]
    return ["0", *names, "null"]


def _bucket_of(sigma_min: NDArray[np.float64]) -> NDArray[np.int64]:
    bucket = np.searchsorted(_MIN_EDGES, sigma_min, side="left")
    return np.where(np.isnan(sigma_min), len(_MIN_EDGES), bucket).astype(np.int64)
