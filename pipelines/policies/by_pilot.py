"""A threshold per level band, set by pilot trainings instead of assumptions.

Shapes: N samples, L levels.
"""

import itertools
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipelines.policies.base import Decisions, Floats
from pipelines.policies.by_curve import CurvePolicy, decide_above

Probability = Annotated[float, Field(ge=0, lt=1)]


class PilotCalibrated(CurvePolicy):
    """Usable where P(trusted) exceeds its band's threshold, which pilot trainings have set.

    Make one with `pilot.calibrate`. A threshold never rises with the level: noise only makes
    images more alike, and a band that lets fewer in than one below it would shut out everything.
    """

    kind: Literal["pilot_calibrated"] = "pilot_calibrated"
    pilot_id: str = Field(description="the pilot trainings, in work/pilots of the root")
    edges: tuple[float, ...] = Field(
        description="levels that part the bands, ascending; one less than there are thresholds"
    )
    tau: tuple[Probability | None, ...] = Field(
        min_length=1, description="per band: 0 lets everything in, null nothing"
    )

    @model_validator(mode="after")
    def _bands_fit(self) -> "PilotCalibrated":
        if len(self.edges) != len(self.tau) - 1:
            raise ValueError(f"{len(self.tau)} thresholds need {len(self.tau) - 1} edges")
        if any(low >= high for low, high in itertools.pairwise(self.edges)):
            raise ValueError("edges must ascend")
        strictness = [1.0 if tau is None else tau for tau in self.tau]
        if any(low < high for low, high in itertools.pairwise(strictness)):
            raise ValueError("thresholds must not rise with the level; null is the strictest")
        return self

    def thresholds(self, sigmas_L: NDArray[np.floating]) -> Floats:
        """Return the threshold of each level as a logit: -inf lets all in, inf nothing."""
        with np.errstate(divide="ignore"):
            logits = [np.inf if tau is None else np.log(tau) - np.log1p(-tau) for tau in self.tau]
        return np.array(logits)[np.searchsorted(np.array(self.edges), sigmas_L, side="right")]


def decide_by_pilot(
    policy: PilotCalibrated,
    logits_NL: NDArray[np.floating],
    standard_error_NL: NDArray[np.floating],
    sigmas_L: NDArray[np.floating],
) -> Decisions:
    """Decide from curves at any levels."""
    return decide_above(
        logits_NL,
        standard_error_NL,
        sigmas_L,
        policy.thresholds(sigmas_L),
        policy.smoothing_octaves,
    )
