"""One noise level in every language, for data of any scale.

A level is a signal-to-noise ratio. σ is measured in the data's own units, so data that are scaled
by k have the same level at k σ. DDPM timesteps and rectified-flow times speak of what their model
was given: data of that model's scale. So a level crosses two borders: from the scale that it was
annotated at to the scale of the other model, and from σ into the other's language.

What scales do not convert are spaces: a level of pixels is no level of latents, whatever the
scale. Annotate in latents instead.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from ambient_omni.config import Frozen
from ambient_omni.noise.levels import (
    BetaSchedule,
    Levels,
    alpha_bar_of_sigma,
    flow_time_of_sigma,
    sigma_of_alpha_bar,
    sigma_of_flow_time,
)

Language = Literal["sigma", "timestep", "alpha_bar", "flow_time"]


class LevelSpace(Frozen):
    """How somebody writes noise levels down, and for data of which scale.

    `data_scale` is the factor that took the common data to theirs: images in [0, 1] are images in
    [-1, 1] times 1/2 (moving them changes no level), latents divided by their standard deviation s
    have 1/s.
    """

    language: Language = "sigma"
    data_scale: float = Field(default=1.0, gt=0, description="Their data = common data x this.")
    schedule: BetaSchedule = Field(
        default=BetaSchedule(), description="timestep only: the table of timesteps."
    )

    def to_sigma(self, level: ArrayLike) -> Levels:
        """Return σ on the common scale of levels written in this language."""
        values: Levels = np.asarray(level, np.float64)
        if self.language == "timestep":
            sigma = self.schedule.sigma_of_timestep(values)
        elif self.language == "alpha_bar":
            sigma = sigma_of_alpha_bar(values)
        elif self.language == "flow_time":
            sigma = sigma_of_flow_time(values)
        else:
            sigma = values
        return sigma / self.data_scale

    def of_sigma(self, sigma: ArrayLike) -> Levels:
        """Return levels σ of the common scale in this language; the inverse of `to_sigma`.

        σ = 0 has no timestep (it is -inf) and is 1, 0 and 0 in the other languages.
        """
        values: Levels = np.asarray(sigma, np.float64) * self.data_scale
        if self.language == "timestep":
            with np.errstate(divide="ignore"):
                return self.schedule.timestep_of_sigma(values)
        if self.language == "alpha_bar":
            return alpha_bar_of_sigma(values)
        return flow_time_of_sigma(values) if self.language == "flow_time" else values


def convert(level: ArrayLike, source: LevelSpace, target: LevelSpace) -> Levels:
    """Return levels of one language and scale in another's; NaN (null) stays NaN."""
    return target.of_sigma(source.to_sigma(level))
