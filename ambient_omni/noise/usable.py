"""Which levels a sample may train: Usable(i) = {σ ≥ κ σ_min,i} ∪ {σ ≤ σ_max,i}."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Levels = NDArray[np.float64]
Objective = Literal["gated", "ambient"]


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


@dataclass(frozen=True)
class Usable:
    """Usable levels of N samples, normalised: no sample's floor lies in or below its window.

    floor (N,): usable at σ ≥ floor; 0 = every level, inf = at no high level.
    window (N,): also usable at σ ≤ window; 0 = no window. Always window < floor, or both are 0.
    """

    floor: Levels
    window: Levels

    @classmethod
    def of(cls, sigma_min: ArrayLike, sigma_max: ArrayLike, kappa: float = 1.0) -> Usable:
        """Make it from annotations.

        A sample whose window reaches its floor is usable at every level: its floor becomes 0.

        Args:
            sigma_min: (N,); null is NaN or inf: at no high level.
            sigma_max: (N,); 0 = no window.
            kappa: margin of the objective.

        Raises:
            ValueError: a negative level, or a sigma_max that is not a number.
        """
        minimum, window = np.asarray(sigma_min, np.float64), np.array(sigma_max, np.float64)
        if (minimum < 0).any() or not (window >= 0).all():
            raise ValueError("sigma_min and sigma_max must not be negative, nor sigma_max NaN")
        floor = np.where(np.isnan(minimum), np.inf, kappa * minimum)
        floor[window >= floor] = 0
        window[floor == 0] = 0
        return cls(floor, window)

    def at(self, sigma: ArrayLike) -> NDArray[np.bool_]:
        """Say which samples are usable at σ; shapes broadcast against (N,)."""
        sigma = np.asarray(sigma, np.float64)
        return (sigma >= self.floor) | (sigma <= self.window)

    @property
    def num_never_usable(self) -> int:
        """How many samples may be used at no level at all."""
        return int((np.isinf(self.floor) & (self.window == 0)).sum())


def hidden_level(sigma: Levels, floor: Levels, objective: Objective, kappa: float) -> Levels:
    """Return the level behind which the drawn samples hide x_0, shape (B,).

    Ambient: σ_min = floor / κ for a sample that is used above its floor, so that the amplification
    keeps its bound. 0 = nothing is hidden: under the gated objective, for a sample that is usable
    at every level, and for one that is used through its window (ordinary denoising).

    Args:
        sigma: (B,) levels drawn.
        floor: (B,) normalised floors of the samples drawn (`Usable.floor`).
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
    edges = np.asarray(bands, np.float64)
    with np.errstate(divide="ignore"):
        floor, window = np.log(usable.floor), np.log(usable.window)
    counts = []
    for low, high in zip(np.log(edges[:-1]), np.log(edges[1:]), strict=True):
        above = high - np.clip(floor, low, high)
        below = np.clip(window, low, high) - low
        counts.append((above + below).sum() / (high - low))
    return np.array(counts)
