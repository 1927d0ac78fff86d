"""Levels from what a noise classifier says over the levels.

Shapes: N samples, L levels.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ambient_omni.classifier.annotators import Reading
from ambient_omni.noise.crossing import Crossings, monotone_fit
from pipelines.policies.base import UNSCORED, Decisions, Floats, PolicyBase

MIN_EXPONENT, MAX_EXPONENT = 0.5, 8.0
"""Between which the exponent of a curve's decay is believed. A shift of the mean decays with 2,
of the spectrum with 4; outside, a flat end or two noisy levels were measured."""

_FAR = 20.0
"""A logit that means always or never: P = 2e-9."""

_NO_DISTANCE = 1e-6

_CLEAR = 4.0
"""The logit at which damage is clear is this many times the threshold's; see `decay_slope`."""


class CurvePolicy(PolicyBase):
    """What the rules that read a noise classifier's curves share."""

    classifier_id: str
    smoothing_octaves: float = Field(
        default=0.25, ge=0, description="average of the curve over neighbouring levels"
    )


class ClassifierThreshold(CurvePolicy):
    """The level from which on a noise classifier cannot tell the image from trusted ones."""

    kind: Literal["classifier_threshold"] = "classifier_threshold"
    tau: float = Field(default=0.45, gt=0, lt=1, description="P(trusted) that is good enough")
    decay_exponent: float | None = Field(
        default=2.0,
        gt=0,
        description="p of a logit that decays like sigma^-p: reads the level where the curve is "
        "clear, below its flat end; null, or tau >= 1/2, reads the threshold's crossing alone",
    )
    soft: bool = Field(
        default=False,
        description="the floor is meant to be soft: a trainer lets the sample in at a level with "
        "the probability that it passes for trusted there, as its slope says",
    )

    @property
    def parameters(self) -> dict[str, object]:
        """All that decides; a hard floor is as it was before floors could be soft."""
        known = super().parameters
        return known if self.soft else {n: value for n, value in known.items() if n != "soft"}


def decide_by_curve(
    policy: ClassifierThreshold,
    logits_NL: NDArray[np.floating],
    standard_error_NL: NDArray[np.floating],
    sigmas_L: NDArray[np.floating],
) -> Decisions:
    """Decide from curves of logits; a curve with a number that is not finite is unscored."""
    return decide_at(logits_NL, standard_error_NL, sigmas_L, reading_of(policy))


def own_levels(
    policy: ClassifierThreshold,
    logits_NL: NDArray[np.floating],
    standard_error_NL: NDArray[np.floating],
    sigmas_L: NDArray[np.floating],
) -> Floats:
    """Return the levels of `decide_by_curve` alone, (N,); inf: never, NaN: not measured."""
    found = reading_of(policy).find(logits_NL, standard_error_NL, sigmas_L)
    levels = np.where(found.is_null, np.inf, found.sigma_min)
    own: Floats = np.where(np.isfinite(logits_NL).all(axis=1), levels, np.nan)
    return own


def reading_of(policy: ClassifierThreshold) -> Reading:
    """Return how a policy reads curves."""
    return Reading(policy.tau, policy.smoothing_octaves, policy.decay_exponent)


def decide_above(
    logits_NL: NDArray[np.floating],
    standard_error_NL: NDArray[np.floating],
    sigmas_L: NDArray[np.floating],
    threshold_L: Floats,
    smoothing_octaves: float,
) -> Decisions:
    """Decide by a threshold that differs from level to level, given as logits.

    `find_crossings` knows one threshold. So the curves are shifted by the level's own, and the
    shifted ones are asked where they pass 0 for good. Shifting keeps the order: a worse curve
    never gets a lower level, and a laxer threshold never a higher one. There is no decay to read:
    the shifted curve does not approach 0.

    Args:
        logits_NL: curves.
        standard_error_NL: of the curves.
        sigmas_L: levels, ascending.
        threshold_L: at or above which a level is usable; -inf: always, inf: never.
        smoothing_octaves: as of `find_crossings`.
    """
    logits, threshold = np.asarray(logits_NL, np.float64), np.asarray(threshold_L, np.float64)
    shifted = np.where(np.isinf(threshold), -np.sign(threshold) * _FAR, logits - threshold)
    shifted = np.where(np.isfinite(logits), shifted, np.nan)
    at_half = Reading(0.5, smoothing_octaves, None)
    found = decide_at(shifted, standard_error_NL, sigmas_L, at_half)
    # Each level has a threshold of its own, so no one decay leads to it: these floors are hard.
    return replace(found, slope=np.full(len(found), np.nan))


def decide_at(
    logits_NL: NDArray[np.floating],
    standard_error_NL: NDArray[np.floating],
    sigmas_L: NDArray[np.floating],
    reading: Reading,
) -> Decisions:
    """Decide by one threshold."""
    found = reading.find(logits_NL, standard_error_NL, sigmas_L)
    low, high = reading.interval(logits_NL, standard_error_NL, sigmas_L)
    reason = np.where(found.sigma_min == 0, "usable_everywhere", "crossing")
    reason = np.where(found.is_null, "never_crosses", reason)
    is_measured = np.isfinite(logits_NL).all(axis=1)
    slope = decay_slope(
        logits_NL, sigmas_L, found.sigma_min, np.full(len(found.slope), reading.tau)
    )
    return Decisions(
        sigma_min=np.where(found.is_null, np.nan, found.sigma_min),
        slope=slope,
        standard_error_octaves=found.standard_error_octaves,
        low=np.where(is_measured, _at_most(low, found), np.nan),
        high=np.where(is_measured, _at_least(high, found), np.nan),
        reason=np.where(is_measured, reason, UNSCORED).astype(object),
    )


def decay_slope(
    logits_NL: NDArray[np.floating],
    sigmas_L: NDArray[np.floating],
    sigma_min_N: Floats,
    tau_N: Floats,
) -> Floats:
    """Return how soft each floor is: d logit / d ln sigma at sigma_min, (N,).

    A soft floor takes the curve to be logit(sigma) = -t (sigma / sigma_min)^(-q) with
    t = -logit(tau), so its slope at sigma_min is q t. The curve's own slope there is no measure of
    q: the threshold lies on the flat end, where noise is as large as the answer. So q is read
    where damage is clear: with sigma_b the level at which the monotone fit passes -4 t,
    q = ln 4 / ln(sigma_min / sigma_b), kept between `MIN_EXPONENT` and `MAX_EXPONENT`. A curve
    that starts above -4 t counts from its first level.

    NaN, a hard floor, where sigma_min is null or 0, or tau is 1/2 or more, or 0.
    """
    log_sigmas = np.log(np.asarray(sigmas_L, np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        t, log_level = -np.log(tau_N / (1 - tau_N)), np.log(sigma_min_N)
    soft = np.flatnonzero(np.isfinite(log_level) & (t > 0) & (t < _FAR))
    fitted, t, log_level = monotone_fit(np.asarray(logits_NL)[soft]), t[soft], log_level[soft]
    clear = np.minimum(np.maximum(fitted[:, 0], -_CLEAR * t), -t)
    distance = np.maximum(log_level - _passes(fitted, log_sigmas, clear), _NO_DISTANCE)
    exponent = np.clip(np.log(-clear / t) / distance, MIN_EXPONENT, MAX_EXPONENT)
    slope = np.full(len(sigma_min_N), np.nan)
    slope[soft] = exponent * t
    return slope


def _passes(fitted_NL: Floats, log_sigmas_L: Floats, at_N: Floats) -> Floats:
    """Return ln sigma where never-falling rows pass a value; the nearer end where they do not."""
    right = np.clip((fitted_NL <= at_N[:, None]).sum(axis=1), 1, len(log_sigmas_L) - 1)
    rows = np.arange(len(fitted_NL))
    low, high = fitted_NL[rows, right - 1], fitted_NL[rows, right]
    share = np.clip((at_N - low) / np.maximum(high - low, _NO_DISTANCE), 0, 1)
    found: Floats = log_sigmas_L[right - 1] + share * (
        log_sigmas_L[right] - log_sigmas_L[right - 1]
    )
    return found


def _at_most(low: Floats, found: Crossings) -> Floats:
    """Return the lower end; the reading through the decay can leave it above the level itself."""
    return np.where(np.isnan(low) | found.is_null, low, np.minimum(low, found.sigma_min))


def _at_least(high: Floats, found: Crossings) -> Floats:
    return np.where(np.isnan(high) | found.is_null, high, np.maximum(high, found.sigma_min))
