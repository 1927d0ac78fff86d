"""Which levels a sample may train: Usable(i) = {σ ≥ κ σ_min,i} ∪ {σ ≤ σ_max,i}."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Levels = NDArray[np.float64]
Indices = NDArray[np.integer] | slice
Objective = Literal["gated", "ambient"]

# Samples that are looked at together, so that 1e8 of them need no second copy.
CHUNK = 1 << 20


def kappa(objective: Objective, max_amplification: float = 4.0) -> float:
    """Return the margin κ above σ_min at which an objective may use a sample.

    Gated: 1. Ambient: sqrt(a / (a - 1)), the level from which on σ²/(σ² - σ_min²) ≤ a, so that
    the target amplifies the difference between x_n and x_t at most (a - 1)-fold.

    Args:
        objective: which target is learned.
        max_amplification: the bound a, greater than 1; only the ambient objective reads it.

    Raises:
        ValueError: `max_amplification` is not greater than 1.
    """
    if objective == "gated":
        return 1.0
    if max_amplification <= 1:
        raise ValueError(f"max_amplification must be greater than 1, got {max_amplification}")
    return math.sqrt(max_amplification / (max_amplification - 1))


class SigmaOf(Protocol):
    """The part of a prior that says which levels can come."""

    def sigma_of(self, uniform: Levels) -> Levels:
        """Turn uniform numbers in [0, 1) into levels, elementwise."""


@dataclass(frozen=True)
class Usable:
    """Usable levels of N samples. It holds the annotations and computes what is asked for.

    *Floor*: usable at σ ≥ floor; 0 = every level, inf = at no high level. *Window*: also usable at
    σ ≤ window; 0 = none. Normalised: window < floor, or both are 0.

    sigma_min (N,) float64, NaN or inf = null; sigma_max (N,) float32 or float64, 0 = no window;
    kappa, the margin of the objective.
    """

    sigma_min: Levels
    sigma_max: NDArray[np.floating]
    kappa: float = 1.0

    @classmethod
    def of(cls, sigma_min: ArrayLike, sigma_max: ArrayLike, kappa: float = 1.0) -> Usable:
        """Make it from annotations.

        Args:
            sigma_min: (N,); null is NaN or inf: at no high level.
            sigma_max: (N,); 0 = no window.
            kappa: margin of the objective.

        Raises:
            ValueError: a negative level, or a sigma_max that is not a number.
        """
        minimum, window = np.asarray(sigma_min, np.float64), np.asarray(sigma_max)
        if window.dtype != np.float32:
            window = window.astype(np.float64, copy=False)
        made = cls(minimum, window, kappa)
        for here in made.chunks():
            if (minimum[here] < 0).any() or not (window[here] >= 0).all():
                raise ValueError("sigma_min and sigma_max must not be negative, nor sigma_max NaN")
        return made

    def __len__(self) -> int:
        return len(self.sigma_min)

    def chunks(self) -> Iterator[slice]:
        """Walk through the samples, about a million at a time."""
        for start in range(0, len(self), CHUNK):
            yield slice(start, min(start + CHUNK, len(self)))

    def floor_of(self, index: Indices) -> Levels:
        """Return the floors of some samples, float64.

        A sample whose window reaches its floor is usable at every level: its floor is 0.
        """
        floor = self.kappa * self.sigma_min[index]
        np.copyto(floor, np.inf, where=np.isnan(floor))
        if self.has_windows:
            floor[self.sigma_max[index] >= floor] = 0
        return floor

    def window_of(self, index: Indices) -> Levels:
        """Return the windows of some samples, float64; 0 where the floor is 0."""
        return self.floor_and_window_of(index)[1]

    def floor_and_window_of(self, index: Indices) -> tuple[Levels, Levels]:
        """Return `floor_of` and `window_of`."""
        floor = self.floor_of(index)
        window = self.sigma_max[index].astype(np.float64)
        if self.has_windows:
            window[floor == 0] = 0
        return floor, window

    @property
    def has_windows(self) -> bool:
        """False where sigma_max is one zero for all samples, which takes no memory."""
        return not (self.sigma_max.strides == (0,) and len(self) and self.sigma_max[0] == 0)

    @property
    def floor(self) -> Levels:
        """All floors, (N,); computed anew."""
        return self.floor_of(slice(None))

    @property
    def window(self) -> Levels:
        """All windows, (N,); computed anew."""
        return self.window_of(slice(None))

    def at(self, sigma: ArrayLike) -> NDArray[np.bool_]:
        """Say which samples are usable at σ; shapes broadcast against (N,)."""
        sigma = np.asarray(sigma, np.float64)
        floor, window = self.floor_and_window_of(slice(None))
        return (sigma >= floor) | (sigma <= window)

    def allows(self, index: Indices, sigma: Levels) -> NDArray[np.bool_]:
        """Say of (sample, level) pairs whether the sample may be used at the level."""
        return (sigma >= self.kappa * self.sigma_min[index]) | (sigma <= self.sigma_max[index])

    @property
    def num_never_usable(self) -> int:
        """How many samples may be used at no level at all."""
        return self._count_unreachable(0.0, np.inf)

    def num_unreachable(self, prior: SigmaOf) -> int:
        """Return how many samples no level of the prior may use: they are never drawn."""
        lowest, highest = prior.sigma_of(np.array([0.0, np.nextafter(1, 0)]))
        return self._count_unreachable(float(lowest), float(highest))

    def _count_unreachable(self, lowest: float, highest: float) -> int:
        count = 0
        for here in self.chunks():
            floor, window = self.floor_and_window_of(here)
            above = (floor > highest) | np.isinf(floor)
            count += int((above & ((window == 0) | (window < lowest))).sum())
        return count


def hidden_level(sigma: Levels, floor: Levels, objective: Objective, kappa: float) -> Levels:
    """Return the level behind which the drawn samples hide x_0, shape (B,).

    Ambient: σ_min = floor / κ for a sample that is used above its floor, so that the amplification
    keeps its bound. 0 = nothing is hidden: under the gated objective, for a sample that is usable
    at every level, and for one that is used through its window (ordinary denoising).

    Args:
        sigma: (B,) levels drawn.
        floor: (B,) normalised floors of the samples drawn (`Usable.floor_of`).
        objective: which target is learned.
        kappa: the margin that is in `floor`.
    """
    if objective == "gated":
        return np.zeros_like(sigma)
    return np.where(sigma >= floor, floor / kappa, 0.0)


def effective_samples_per_band(
    sigma_min: ArrayLike, sigma_max: ArrayLike, bands: ArrayLike, kappa: float = 1.0
) -> Levels:
    """Return how many samples each noise band gets, shape (len(bands) - 1,).

    A sample counts in a band by the share of the band, in ln σ, at which it is usable.

    Args:
        sigma_min: (N,); null is NaN or inf.
        sigma_max: (N,); 0 = no window.
        bands: ascending positive edges; band b is [bands[b], bands[b + 1]).
        kappa: margin of the objective.
    """
    usable = Usable.of(sigma_min, sigma_max, kappa)
    one_group = np.broadcast_to(np.uint8(0), len(usable))
    return effective_samples_per_group(usable, one_group, 1, bands)[:, 0]


def effective_samples_per_group(
    usable: Usable, group: NDArray[np.integer], num_groups: int, bands: ArrayLike
) -> Levels:
    """Return how many samples of each group each noise band gets, (len(bands) - 1, num_groups).

    Args:
        usable: N samples.
        group: (N,) number of each sample's group: its class, its source.
        num_groups: how many groups there are.
        bands: as in `effective_samples_per_band`.
    """
    edges = np.log(np.asarray(bands, np.float64))
    counts = np.zeros((len(edges) - 1, num_groups))
    for here in usable.chunks():
        with np.errstate(divide="ignore"):
            floor, window = map(np.log, usable.floor_and_window_of(here))
        for band, (low, high) in enumerate(itertools.pairwise(edges)):
            share = high - np.clip(floor, low, high) + np.clip(window, low, high) - low
            counts[band] += np.bincount(group[here], share / (high - low), num_groups)
    return counts
