"""The discrete levels of a diffusers scheduler, for trainers that think in timesteps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ambient_omni.noise.eligibility import as_float32
from ambient_omni.noise.levels import sigma_of_alpha_bar, sigma_of_flow_time
from ambient_omni.noise.usable import Levels, Usable
from schemas.errors import BadInput


class TimestepLevels:
    """The levels of a scheduler's training timesteps; a prior that draws them uniformly.

    A DDPM-like scheduler has `alphas_cumprod`, σ = sqrt((1 - ᾱ)/ᾱ). Flow matching's `sigmas` are
    times t, σ = t/(1 - t); those of EDM's schedulers are σ itself.

    Args:
        scheduler: of diffusers, or anything with one of these. As it was made: a sampler's
            `set_timesteps` takes the training's levels away.

    Raises:
        BadInput: it has none of them, or they cannot be told to be the training's.
    """

    def __init__(self, scheduler: Any) -> None:
        levels, steps = _table_of(scheduler)
        if not (len(levels) and np.isfinite(levels).any() and (levels >= 0).all()):
            raise BadInput(f"the levels of {type(scheduler).__name__} are no noise levels")
        order = np.argsort(levels, kind="stable")
        self.sigmas: Levels = as_float32(levels[order])
        self.timesteps: NDArray[Any] = steps[order]

    def __len__(self) -> int:
        return len(self.sigmas)

    def sigma_of(self, uniform: Levels) -> Levels:
        """Turn uniform numbers in [0, 1) into levels, every timestep equally likely."""
        return self.sigmas[np.minimum((uniform * len(self)).astype(np.int64), len(self) - 1)]

    def cdf(self, sigma: Any) -> Levels:
        """Return the share of timesteps whose level is at or below σ, elementwise."""
        return np.searchsorted(self.sigmas, np.asarray(sigma, np.float64), "right") / len(self)

    def timestep_of(self, sigma: Levels) -> NDArray[Any]:
        """Return the timestep nearest to each level, in ln σ."""
        return self.timesteps[self._nearest(sigma)]

    def usable_timestep_of(
        self, sigma: Levels, index: NDArray[np.integer], usable: Usable
    ) -> NDArray[Any]:
        """Return the timestep nearest to each level at which the sample may still be used.

        The nearest one can lie below the floor that the level keeps. Then the next one above is
        taken, or for a sample that is used through its window the next one below.

        Args:
            sigma: (B,) levels at which the samples may be used.
            index: (B,) samples.
            usable: their levels.

        Raises:
            BadInput: no timestep lies on the usable side.
        """
        place = self._nearest(sigma)
        floor, window = usable.floor_and_window_of(index)
        above = sigma >= floor
        lowest = np.searchsorted(self.sigmas, floor, side="left")
        highest = np.searchsorted(self.sigmas, window, side="right") - 1
        place = np.where(above, np.maximum(place, lowest), np.minimum(place, highest))
        if (place < 0).any() or (place >= len(self)).any():
            raise BadInput(
                "a level is beyond the scheduler's timesteps on its sample's usable side: draw "
                "levels with TimestepLevels as the prior"
            )
        return self.timesteps[place]

    def _nearest(self, sigma: Levels) -> NDArray[np.int64]:
        with np.errstate(divide="ignore", invalid="ignore"):
            ln = np.log(self.sigmas)
            middles = (ln[1:] + ln[:-1]) / 2
            return np.searchsorted(middles, np.log(as_float32(sigma)), side="right")


def _table_of(scheduler: Any) -> tuple[Levels, NDArray[Any]]:
    """Return the level and the number of every training timestep."""
    name, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    table = getattr(scheduler, "alphas_cumprod", None)
    # These have a DDPM table too, and do not use it.
    by_flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    if table is not None and not by_flow:
        return sigma_of_alpha_bar(_array(table)), np.arange(len(table))
    sigmas, steps = getattr(scheduler, "sigmas", None), getattr(scheduler, "timesteps", None)
    if sigmas is None or steps is None or not name.startswith(("FlowMatch", "EDM")):
        raise BadInput(
            f"which levels {name} trains at cannot be read off it: take those of your trainer "
            "from its own formula and give UsableLevels those"
        )
    count = config.get("num_train_timesteps", len(steps))
    # EDM's have one more.
    if len(steps) not in (count, count + 1):
        raise BadInput(
            f"{name} has {len(steps)} timesteps of a sampler where training has {count}: give the "
            "scheduler as it was made, before set_timesteps"
        )
    levels, steps = _array(sigmas)[: len(steps)], _array(steps)
    if name.startswith("EDM"):
        return levels[levels > 0], steps[levels > 0]
    if not ((levels >= 0) & (levels <= 1)).all():
        raise BadInput(f"the sigmas of {name} are no times between 0 and 1")
    with np.errstate(divide="ignore"):
        return sigma_of_flow_time(levels), steps


def _array(values: Any) -> Levels:
    return np.asarray(values.tolist() if hasattr(values, "tolist") else values, np.float64)
