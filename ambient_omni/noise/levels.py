"""Noise levels: one signal-to-noise ratio in several languages, the prior, and grids.

Everywhere in this project a level is σ, the standard deviation of the variance-exploding process
x_t = x_0 + σ z. A level in another parameterisation is the same level when its signal-to-noise
ratio is the same, for data of the same scale.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ambient_omni.rng import standard_normal_quantile

Levels = NDArray[np.float64]


def sigma_of_alpha_bar(alpha_bar: ArrayLike) -> Levels:
    """Return σ = sqrt((1 - ᾱ) / ᾱ) of DDPM or Stable Diffusion, x_t = √ᾱ x_0 + √(1-ᾱ) z.

    Args:
        alpha_bar: cumulative product of (1 - β), in (0, 1].
    """
    kept: Levels = np.asarray(alpha_bar, np.float64)
    return np.sqrt((1 - kept) / kept)


def alpha_bar_of_sigma(sigma: ArrayLike) -> Levels:
    """Return ᾱ = 1 / (1 + σ²), the inverse of `sigma_of_alpha_bar`."""
    level: Levels = np.asarray(sigma, np.float64)
    return 1 / (1 + level**2)


def sigma_of_flow_time(time: ArrayLike) -> Levels:
    """Return σ = t / (1 - t) of rectified flow, x_t = (1 - t) x_0 + t z.

    Args:
        time: t in [0, 1).
    """
    t: Levels = np.asarray(time, np.float64)
    return t / (1 - t)


def flow_time_of_sigma(sigma: ArrayLike) -> Levels:
    """Return t = σ / (1 + σ), the inverse of `sigma_of_flow_time`."""
    level: Levels = np.asarray(sigma, np.float64)
    return level / (1 + level)


class LogNormalPrior(BaseModel):
    """The trainer's distribution of levels: ln σ ~ N(mean, std²), optionally cut at both ends.

    Source: Karras et al. 2022 (EDM), table 1; mean -1.2 and std 1.2 are theirs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float = Field(default=-1.2, description="Mean of ln σ.")
    std: float = Field(default=1.2, gt=0, description="Standard deviation of ln σ.")
    lowest: float = Field(default=0.0, ge=0, description="Smallest level; 0 cuts nothing.")
    highest: float | None = Field(
        default=None, gt=0, description="Largest level; none cuts nothing."
    )

    @model_validator(mode="after")
    def _is_not_empty(self) -> LogNormalPrior:
        if self.highest is not None and self.lowest >= self.highest:
            raise ValueError(f"lowest {self.lowest} is not below highest {self.highest}")
        return self

    def sigma_of(self, uniform: Levels) -> Levels:
        """Turn uniform numbers in [0, 1) into levels through the inverse CDF, elementwise."""
        low, high = self._ends()
        return np.exp(self.mean + self.std * standard_normal_quantile(low + uniform * (high - low)))

    def cdf(self, sigma: ArrayLike) -> Levels:
        """Return the share of levels at or below σ, in [0, 1], elementwise."""
        low, high = self._ends()
        below = np.array([self._uncut(value) for value in np.ravel(sigma)], np.float64)
        return np.clip((below - low) / (high - low), 0, 1).reshape(np.shape(sigma))

    def _ends(self) -> tuple[float, float]:
        return self._uncut(self.lowest), 1.0 if self.highest is None else self._uncut(self.highest)

    def _uncut(self, sigma: float) -> float:
        if sigma <= 0:
            return 0.0
        if math.isinf(sigma):
            return 1.0
        return 0.5 * math.erfc(-(math.log(sigma) - self.mean) / (self.std * math.sqrt(2)))


def edm_grid(
    num_levels: int, lowest: float = 0.002, highest: float = 80.0, rho: float = 7.0
) -> Levels:
    """Return the sampler's levels, descending from `highest` to `lowest`, shape (num_levels,).

    σ_i = (highest^(1/ρ) + i/(n-1) · (lowest^(1/ρ) - highest^(1/ρ)))^ρ.
    Source: Karras et al. 2022 (EDM), equation 5.

    Raises:
        ValueError: fewer than two levels.
    """
    if num_levels < 2:
        raise ValueError(f"a grid needs at least 2 levels, got {num_levels}")
    ramp = np.linspace(0, 1, num_levels)
    levels: Levels = (
        highest ** (1 / rho) + ramp * (lowest ** (1 / rho) - highest ** (1 / rho))
    ) ** rho
    # The ends as asked for, not as rounded.
    levels[0], levels[-1] = highest, lowest
    return levels


def log_grid(num_levels: int, lowest: float, highest: float) -> Levels:
    """Return levels evenly spaced in ln σ, ascending, shape (num_levels,)."""
    return np.geomspace(lowest, highest, num_levels)
