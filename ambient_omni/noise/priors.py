"""The trainer's distribution of noise levels, in the language of each way to train.

A prior is a setting and a function: uniform numbers go in, levels σ come out through the inverse
distribution function. So a draw of levels is as addressed as the uniform numbers are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Discriminator, Field, Tag, TypeAdapter, model_validator

from ambient_omni.config import Frozen
from ambient_omni.noise.levels import BetaSchedule, Levels
from ambient_omni.rng import standard_normal_quantile


class _CutPrior(Frozen, ABC):
    """A distribution of σ, cut at both ends if asked to."""

    lowest: float = Field(default=0.0, ge=0, description="Smallest level; 0 cuts nothing.")
    highest: float | None = Field(
        default=None, gt=0, description="Largest level; none cuts nothing."
    )

    @model_validator(mode="after")
    def _is_not_empty(self) -> _CutPrior:
        if self.highest is not None and self.lowest >= self.highest:
            raise ValueError(f"lowest {self.lowest} is not below highest {self.highest}")
        low, high = self._ends()
        if low >= high:
            raise ValueError(f"no level lies between lowest {self.lowest} and {self.highest}")
        return self

    def sigma_of(self, uniform: Levels) -> Levels:
        """Turn uniform numbers in [0, 1) into levels through the inverse CDF, elementwise."""
        low, high = self._ends()
        return self._quantile(low + uniform * (high - low))

    def cdf(self, sigma: ArrayLike) -> Levels:
        """Return the share of levels at or below σ, in [0, 1], elementwise."""
        low, high = self._ends()
        return np.clip((self._up_to(np.asarray(sigma, np.float64)) - low) / (high - low), 0, 1)

    @property
    def support(self) -> tuple[float, float]:
        """The lowest and the highest level that can be drawn; 0 and inf: no end."""
        return self.lowest, math.inf if self.highest is None else self.highest

    def _ends(self) -> tuple[float, float]:
        high = 1.0 if self.highest is None else float(self._up_to(np.array(self.highest)))
        return (float(self._below(np.array(self.lowest))) if self.lowest else 0.0), high

    def _below(self, sigma: Levels) -> Levels:
        """Share below σ of the prior before it is cut; less than `_up_to` at an atom."""
        return self._up_to(sigma)

    @abstractmethod
    def _up_to(self, sigma: Levels) -> Levels:
        """Share at or below σ of the prior before it is cut."""

    @abstractmethod
    def _quantile(self, share: Levels) -> Levels:
        """Inverse of `_up_to`."""


class LogNormalPrior(_CutPrior):
    """ln σ ~ N(mean, std²).

    Source: Karras et al. 2022 (EDM), table 1; mean -1.2 and std 1.2 are theirs.
    """

    kind: Literal["log_normal"] = "log_normal"
    mean: float = Field(default=-1.2, description="Mean of ln σ.")
    std: float = Field(default=1.2, gt=0, description="Standard deviation of ln σ.")

    def _up_to(self, sigma: Levels) -> Levels:
        return _log_normal_cdf(sigma, self.mean, self.std)

    def _quantile(self, share: Levels) -> Levels:
        return np.exp(self.mean + self.std * standard_normal_quantile(share))


class DdpmPrior(_CutPrior):
    """The timestep is uniform over 0..T-1 of a β schedule; σ is that of the schedule's table.

    What diffusers' training scripts draw. Source: Ho et al. 2020 (DDPM), algorithm 1.
    """

    kind: Literal["ddpm"] = "ddpm"
    schedule: BetaSchedule = BetaSchedule()

    @property
    def support(self) -> tuple[float, float]:
        """The levels of the first and the last timestep that the cuts leave."""
        low, high = super().support
        table = self.schedule.sigmas
        inside = table[(table >= low) & (table <= high)]
        return float(inside[0]), float(inside[-1])

    def _up_to(self, sigma: Levels) -> Levels:
        table = self.schedule.sigmas
        return np.searchsorted(table, sigma, side="right") / len(table)

    def _below(self, sigma: Levels) -> Levels:
        table = self.schedule.sigmas
        return np.searchsorted(table, sigma, side="left") / len(table)

    def _quantile(self, share: Levels) -> Levels:
        table = self.schedule.sigmas
        # A share that is a whole number of timesteps, within rounding, is that number.
        step = np.floor(share * len(table) + 1e-9).astype(np.int64)
        return table[np.minimum(step, len(table) - 1)]


class FlowPrior(_CutPrior):
    """The time t of rectified flow, σ = shift · t/(1 - t).

    `shift` moves time towards noise, t' = shift · t / (1 + (shift - 1) · t); in σ it is a factor.
    Source: Esser et al. 2024 (Stable Diffusion 3, arXiv 2403.03206), equations 19 and 23.
    """

    kind: Literal["flow"] = "flow"
    distribution: Literal["uniform", "logit_normal"] = Field(
        default="logit_normal", description="Of t before the shift."
    )
    mean: float = Field(default=0.0, description="logit_normal only: mean of ln(t/(1-t)).")
    std: float = Field(default=1.0, gt=0, description="logit_normal only: its deviation.")
    shift: float = Field(default=1.0, gt=0, description="3 in Stable Diffusion 3 at 1024 pixels.")

    def _up_to(self, sigma: Levels) -> Levels:
        before = sigma / self.shift
        if self.distribution == "logit_normal":
            return _log_normal_cdf(before, self.mean, self.std)
        # t = σ/(1 + σ), written so that an infinite σ gives 1.
        return 1 - 1 / (1 + before)

    def _quantile(self, share: Levels) -> Levels:
        if self.distribution == "logit_normal":
            return self.shift * np.exp(self.mean + self.std * standard_normal_quantile(share))
        return self.shift * share / (1 - share)


def _kind_of(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return "log_normal" if kind is None else str(kind)


Prior = Annotated[
    Annotated[LogNormalPrior, Tag("log_normal")]
    | Annotated[DdpmPrior, Tag("ddpm")]
    | Annotated[FlowPrior, Tag("flow")],
    Discriminator(_kind_of),
]
"""Any prior; settings without a `kind` are those of a `LogNormalPrior`."""

_PRIOR: TypeAdapter[LogNormalPrior | DdpmPrior | FlowPrior] = TypeAdapter(Prior)


def read_prior(values: Mapping[str, Any]) -> LogNormalPrior | DdpmPrior | FlowPrior:
    """Return the prior of a run's settings, also of those written before priors had a `kind`."""
    return _PRIOR.validate_python(values)


def _log_normal_cdf(sigma: Levels, mean: float, std: float) -> Levels:
    flat = [_log_normal_share(float(value), mean, std) for value in np.ravel(sigma)]
    return np.array(flat, np.float64).reshape(np.shape(sigma))


def _log_normal_share(sigma: float, mean: float, std: float) -> float:
    if sigma <= 0:
        return 0.0
    if math.isinf(sigma):
        return 1.0
    return 0.5 * math.erfc(-(math.log(sigma) - mean) / (std * math.sqrt(2)))
