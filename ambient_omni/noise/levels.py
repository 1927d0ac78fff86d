"""Noise levels: one signal-to-noise ratio in several languages, and grids of levels.

Everywhere in this project a level is σ, the standard deviation of the variance-exploding process
x_t = x_0 + σ z. A level in another parameterisation is the same level when its signal-to-noise
ratio is the same, for data of the same scale.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, ValidationError

from ambient_omni.config import Frozen
from schemas.errors import BadInput

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
    # Written so that an infinite σ gives 1; small ones would lose digits that way.
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(level), 1.0, level / (1 + level))


class BetaSchedule(Frozen):
    """The β schedule of a DDPM, with the names and defaults of diffusers' schedulers.

    Its levels are those of diffusers' own table of ᾱ, so that a level and a timestep mean the same
    thing here and in every scheduler of that configuration.
    """

    num_timesteps: int = Field(default=1000, ge=2, description="T.")
    shape: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = Field(
        default="linear",
        description="diffusers' beta_schedule; scaled_linear is Stable Diffusion's.",
    )
    beta_start: float = Field(default=1e-4, gt=0, lt=1, description="0.00085 in Stable Diffusion.")
    beta_end: float = Field(default=0.02, gt=0, lt=1, description="0.012 in Stable Diffusion.")

    @classmethod
    def of_scheduler(cls, values: Mapping[str, Any]) -> BetaSchedule:
        """Read the schedule out of a diffusers scheduler's config (``scheduler_config.json``).

        Raises:
            BadInput: the schedule ends at zero signal-to-noise ratio, or has betas of its own.
        """
        if values.get("rescale_betas_zero_snr"):
            raise BadInput(
                "the scheduler has rescale_betas_zero_snr: its last timestep is sigma = infinity, "
                "where a noise level says nothing about a sample; use a scheduler without it"
            )
        if values.get("trained_betas") is not None:
            raise BadInput(
                "the scheduler has trained_betas: use one with beta_schedule, beta_start and "
                "beta_end"
            )
        names = {
            "num_timesteps": "num_train_timesteps",
            "shape": "beta_schedule",
            "beta_start": "beta_start",
            "beta_end": "beta_end",
        }
        found = {ours: values[theirs] for ours, theirs in names.items() if theirs in values}
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            raise BadInput(f"the scheduler's schedule is not known: {error.errors()[0]}") from error

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """The same schedule in diffusers' names, for the constructor of any of its schedulers."""
        return {
            "num_train_timesteps": self.num_timesteps,
            "beta_schedule": self.shape,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
        }

    @property
    def sigmas(self) -> Levels:
        """σ of each timestep 0..T-1, ascending, shape (T,). Not to be written to."""
        return _schedule_sigmas(self)

    def timestep_of_sigma(self, sigma: ArrayLike) -> Levels:
        """Return the timestep of each level, a real number, linear in ln σ between the table's.

        Beyond the ends the first and the last interval go on, so that different levels have
        different timesteps: below 0 or above T - 1.
        """
        x: Levels = np.log(np.asarray(sigma, np.float64))
        table = np.log(self.sigmas)
        right = np.clip(np.searchsorted(table, x), 1, len(table) - 1)
        timestep: Levels = right - 1 + (x - table[right - 1]) / (table[right] - table[right - 1])
        return timestep

    def sigma_of_timestep(self, timestep: ArrayLike) -> Levels:
        """Return σ at each timestep, the inverse of `timestep_of_sigma`."""
        t: Levels = np.asarray(timestep, np.float64)
        table = np.log(self.sigmas)
        # Clipped before they become whole numbers: NaN (null) and -inf (σ = 0) are none.
        inside = np.clip(np.nan_to_num(np.ceil(t), nan=1.0), 1, len(table) - 1)
        right = inside.astype(np.int64)
        slope = table[right] - table[right - 1]
        sigma: Levels = np.exp(table[right - 1] + (t - right + 1) * slope)
        return sigma


@functools.lru_cache(maxsize=16)
def _schedule_sigmas(schedule: BetaSchedule) -> Levels:
    # diffusers takes a second to import, and most of what imports this module needs no schedule.
    from diffusers import DDPMScheduler

    scheduler = cast(Any, DDPMScheduler)(**schedule.scheduler_config)
    with np.errstate(divide="ignore"):
        sigmas = sigma_of_alpha_bar(scheduler.alphas_cumprod.double().numpy())
    if not (np.isfinite(sigmas).all() and (np.diff(sigmas) > 0).all()):
        raise BadInput(
            f"the schedule {schedule.model_dump()} does not ascend to a finite sigma: choose "
            "another beta_start, beta_end or shape"
        )
    sigmas.flags.writeable = False
    return sigmas


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
