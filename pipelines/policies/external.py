"""Levels that others decided, imported as measures.

Shapes: N samples.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.policies.base import UNSCORED, Decisions, Floats, PolicyBase


class External(PolicyBase):
    """The imported numbers are the levels. Make one with `pipelines.imports.import_levels`."""

    kind: Literal["external"] = "external"
    sigma_min_version: str = Field(description="scorer_version of the levels in scores/external")
    sigma_max_version: str | None = Field(
        default=None, description="likewise of the windows' upper ends; null: no windows"
    )


def decide_external(
    sigma_min_N: NDArray[np.floating], sigma_max_N: NDArray[np.floating] | None
) -> Decisions:
    """Take over the levels; NaN, which is what the file left open, is at no high level."""
    sigma_min: Floats = np.asarray(sigma_min_N, np.float64)
    is_told = np.isfinite(sigma_min)
    reason = np.where(is_told, "external", UNSCORED).astype(object)
    decided = Decisions.without_curve(np.where(is_told, sigma_min, np.nan), reason)
    if sigma_max_N is None:
        return decided
    return Decisions(
        decided.sigma_min,
        decided.slope,
        decided.standard_error_octaves,
        decided.low,
        decided.high,
        reason,
        sigma_max=np.nan_to_num(np.asarray(sigma_max_N, np.float64), nan=0.0),
    )
