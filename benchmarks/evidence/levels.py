"""What an arm may train at which level, in the shape that the trainer's sampler draws from."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ambient_omni.data.usable_levels import UsableLevels
from ambient_omni.noise.priors import LogNormalPrior
from ambient_omni.noise.soft import SoftDrawer
from ambient_omni.noise.usable import Levels


class ArmLevels(Protocol):
    """What a `LevelThenSampleBatchSampler` draws from, and what the ambient target hides."""

    def __len__(self) -> int: ...

    def draw(self, sigma: Levels, uniform: Levels) -> NDArray[np.int64]:
        """Return one sample per level."""

    def gap(self) -> tuple[float, float] | None:
        """Return the levels that no sample may be used at."""

    def shares(self, sigma: float) -> Levels:
        """Return the probability of each sample at a level."""

    def hidden_level(self, index: NDArray[np.integer], sigma: Levels) -> Levels:
        """Return the level behind which samples are hidden, 0 where they are not."""


class SoftLevels(SoftDrawer):
    """Soft floors, in the shape of `UsableLevels`; nothing is hidden."""

    def __init__(self, sigma_min: Levels, slope: Levels, tau: float, prior: LogNormalPrior) -> None:
        low, high = prior.sigma_of(np.array([0.0, np.nextafter(1, 0)]))
        bounds = (max(float(low), 1e-4), float(high) * 1.001)
        super().__init__(sigma_min, np.zeros(len(sigma_min)), slope, tau, bounds=bounds)
        self._count = len(sigma_min)

    def __len__(self) -> int:
        return self._count

    def hidden_level(self, index: NDArray[np.integer], sigma: Levels) -> Levels:
        """Return zeros (B,)."""
        return np.zeros(len(index))


def hard(sigma_min: Levels, sigma_max: Levels | float = 0.0) -> ArmLevels:
    """Return hard floors, and windows where there are any; the gated objective."""
    return UsableLevels(sigma_min, sigma_max)


def ambient(sigma_min: Levels) -> ArmLevels:
    """Return hard floors for the ambient objective, with its margin."""
    return UsableLevels(sigma_min, objective="ambient")
