"""From what a noise classifier says over the levels to the level from which an image is usable.

Legend: N images, L levels.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CEILING, FLOOR = 1.0, -8.0
"""How far from the threshold, in logits, a level may vote. Without the one, a level that looks very
trusted would outvote the doubtful ones beside it; without the other, the reverse."""

DEPTH = 6.0
"""Down to which logit the decay of a curve is looked at. Deeper ones are saturated."""

MAX_CORRECTION_OCTAVES = 2.0
"""How far below the direct crossing the decay may put a level: it bounds what a curve of another
shape can lose."""

_NUM_THRESHOLDS = 12

_CHUNK_BYTES = 32 * 2**20  # of the (L, L) tables of the images that are fitted at once


@dataclass(frozen=True)
class Crossings:
    """Where N curves cross the threshold for good.

    Attributes:
        sigma_min: (N,) the smallest level from which on the curve is above the threshold; 0 where
            it is above at every level; NaN where it never gets there for good ("null").
        is_null: (N,) whether sigma_min is null.
        slope: (N,) d logit / d ln sigma at the crossing; NaN where there is none.
        standard_error_octaves: (N,) of log2 sigma_min, from the curve's own standard error; NaN
            where there is no crossing or no standard error was given, infinite on a flat curve.
    """

    sigma_min: Floats
    is_null: NDArray[np.bool_]
    slope: Floats
    standard_error_octaves: Floats


def find_crossings(
    logits_NL: NDArray[np.floating],
    sigmas_L: NDArray[np.floating],
    tau: float,
    *,
    standard_error_NL: NDArray[np.floating] | None = None,
    smoothing_octaves: float = 0.25,
    decay_exponent: float | None = None,
) -> Crossings:
    """Return the smallest level from which on P(trusted) exceeds tau, for each curve.

    The curve of a damaged image rises to 0 with the level, and the threshold sits on its flat
    end. So the logits are averaged over neighbouring levels, made monotone by least squares, and
    the crossing is interpolated in ln sigma.

    Args:
        logits_NL: mean over noisings of logit P(trusted). A curve with a number that is not
            finite is null: what was not measured is never usable.
        sigmas_L: the levels, ascending, positive.
        tau: threshold on P(trusted), in (0, 1).
        standard_error_NL: of the logits, if known.
        smoothing_octaves: standard deviation of the average over levels; 0 for none.
        decay_exponent: p, where the logit of a damaged image is known to decay like sigma^-p; see
            `_through_decay`. None reads the crossing off the curve alone.

    Returns:
        The crossings; slope and standard error are those at the threshold itself.

    Raises:
        ValueError: shapes do not fit, levels do not ascend, tau is outside (0, 1), or outside
            (0, 1/2) with a decay, which never reaches 1/2.
    """
    logits = np.asarray(logits_NL, np.float64)
    log_sigmas = _checked_log_sigmas(logits, sigmas_L, tau)
    threshold = np.log(tau / (1 - tau))
    is_finite: NDArray[np.bool_] = np.asarray(np.isfinite(logits).all(axis=1))
    # Any negative number does for a curve that is null anyway: infinities would warn.
    above = np.where(is_finite[:, None], np.clip(logits - threshold, FLOOR, CEILING), -1.0)
    fitted = monotone_fit(_smooth(above, log_sigmas, smoothing_octaves))
    is_null = ~is_finite | (fitted[:, -1] <= 0)
    is_zero = ~is_null & (fitted[:, 0] > 0)
    crosses = ~is_null & ~is_zero
    log_crossing = np.full(len(logits), np.nan)
    log_crossing[crosses] = _interpolate_zero(fitted[crosses], log_sigmas)
    slope = _slope_at(fitted, log_sigmas, log_crossing)
    error = _error_in_octaves(standard_error_NL, log_sigmas, log_crossing, slope)
    if decay_exponent is not None:
        log_crossing = _through_decay(
            fitted, log_sigmas, log_crossing, float(-threshold), decay_exponent
        )
        # What is usable only above the highest level is usable at no level that was looked at.
        is_null |= log_crossing > log_sigmas[-1]
    sigma_min = np.where(is_zero, 0.0, np.exp(log_crossing))
    sigma_min[is_null] = np.nan
    slope[is_null], error[is_null] = np.nan, np.nan
    return Crossings(sigma_min, is_null, slope, error)


def monotone_fit(values_NL: NDArray[np.floating]) -> Floats:
    """Return the least-squares fit that never falls along the last axis, for each row.

    The fit at i is max over a <= i of min over b >= i of mean(values[a..b]): the classic min-max
    form of isotonic regression, (N, L) in and out. It never decreases when any value is raised,
    which is why a more damaged image cannot get a lower level.
    Source: Barlow, Bartholomew, Bremner, Brunk, Statistical Inference under Order Restrictions,
    1972, theorem 1.9.
    """
    values = np.asarray(values_NL, np.float64)
    num_levels = values.shape[1]
    index = np.arange(num_levels)
    lengths = np.where(index >= index[:, None], index - index[:, None] + 1, 1)
    is_interval = index >= index[:, None]  # [a, b] with a <= b
    out = np.empty_like(values)
    chunk = max(1, _CHUNK_BYTES // (8 * num_levels**2))
    for start in range(0, len(values), chunk):
        part = values[start : start + chunk]
        sums = np.concatenate([np.zeros((len(part), 1)), np.cumsum(part, axis=1)], axis=1)
        means_Nab = (sums[:, None, 1:] - sums[:, :-1, None]) / lengths
        means_Nab = np.where(is_interval, means_Nab, np.inf)
        # [a, i] = min over b >= i of mean(a..b)
        smallest = np.minimum.accumulate(means_Nab[:, :, ::-1], axis=2)[:, :, ::-1]
        out[start : start + chunk] = np.where(is_interval, smallest, -np.inf).max(axis=1)
    # Rounding of the sums can leave falls of an ulp.
    return np.maximum.accumulate(out, axis=1)


def crossing_interval(
    logits_NL: NDArray[np.floating],
    sigmas_L: NDArray[np.floating],
    tau: float,
    standard_error_NL: NDArray[np.floating],
    *,
    mass: float = 0.9,
    smoothing_octaves: float = 0.25,
    decay_exponent: float | None = None,
) -> tuple[Floats, Floats]:
    """Return the (N,) ends of a credible interval of sigma_min, NaN standing for null.

    The whole curve is moved by its standard error, because noise is shared between levels; so an
    image that is almost clean can reach down to 0, and a doubtful one up to null.

    Args:
        logits_NL: as of `find_crossings`.
        sigmas_L: as there.
        tau: as there.
        standard_error_NL: of the logits.
        mass: how much of a normal error lies inside.
        smoothing_octaves: as there.
        decay_exponent: as there.

    Raises:
        ValueError: as `find_crossings`; or `mass` is outside (0, 1).
    """
    if not 0 < mass < 1:
        raise ValueError(f"mass must lie between 0 and 1, got {mass}")
    reach = NormalDist().inv_cdf(0.5 + mass / 2) * np.asarray(standard_error_NL, np.float64)
    low, high = (
        find_crossings(
            logits_NL + sign * reach,
            sigmas_L,
            tau,
            smoothing_octaves=smoothing_octaves,
            decay_exponent=decay_exponent,
        ).sigma_min
        for sign in (1, -1)
    )
    return low, high


def corrected_tau(tau: float, good_share: float) -> float:
    """Return the threshold that means for the bad part of a pool what tau means for a bad pool.

    Where a share pi of the pool is as good as the reference, the pool's density is
    pi p + (1 - pi) q, and P(trusted) > tau lets q / p rise to ((1 - tau) / tau - pi) / (1 - pi).
    The threshold returned holds q / p to (1 - tau) / tau:  1 / (1 + pi + (1 - pi)(1 - tau) / tau).

    Raises:
        ValueError: tau is outside (0, 1) or the share outside [0, 1].
    """
    if not 0 < tau < 1 or not 0 <= good_share <= 1:
        raise ValueError(f"tau {tau} must lie in (0, 1) and the good share {good_share} in [0, 1]")
    return 1 / (1 + good_share + (1 - good_share) * (1 - tau) / tau)


def _through_decay(
    fitted_NL: Floats, log_sigmas_L: Floats, log_crossing_N: Floats, t: float, exponent: float
) -> Floats:
    """Return ln sigma_min of curves that decay like -logit = t (sigma_min / sigma)^p.

    The threshold -t lies where all curves are flat and what a network has against an image's
    content is as large as its answer. Further down the answer is clear: there the curve passes
    each deeper threshold -b at sigma_b, and says sigma_min = sigma_b (b / t)^(1/p). The mean of
    ln sigma_min over thresholds evenly spaced in ln b between t and `DEPTH` is taken. Thresholds
    below the curve's lowest value count as that value at the lowest level does: so nothing jumps
    where a curve just fails to reach one. None counts as more than `MAX_CORRECTION_OCTAVES` below
    the direct crossing. Every part of this rises when any logit falls, so a worse curve gets no
    lower level.

    p = 2 for a weak shift of the mean: -E logit -> |x_0 - x_0'|^2 / (2 sigma^2), the
    Kullback-Leibler divergence of two Gaussians.
    """
    if not t > 0:
        raise ValueError("a curve that decays to P = 1/2 needs tau below 1/2")
    rows = np.flatnonzero(np.isfinite(log_crossing_N))
    fitted, direct = fitted_NL[rows], log_crossing_N[rows]
    least = direct - MAX_CORRECTION_OCTAVES * np.log(2)
    lowest = np.maximum(t - fitted[:, 0], t)  # how far down the curve goes, as a positive logit
    said = []
    for b in np.geomspace(t, max(t, DEPTH), _NUM_THRESHOLDS):
        shifted = fitted + (b - t)  # zero where the logit is -b; fitted is zero where it is -t
        reached = shifted[:, 0] <= 0
        log_level = np.full(len(rows), log_sigmas_L[0])
        log_level[reached] = _interpolate_zero(shifted[reached], log_sigmas_L)
        deep = np.where(reached, b, lowest)
        said.append(np.maximum(log_level + np.log(deep / t) / exponent, least))
    out = log_crossing_N.copy()
    out[rows] = np.mean(said, axis=0)
    return out


def _checked_log_sigmas(logits: Floats, sigmas_L: NDArray[np.floating], tau: float) -> Floats:
    sigmas = np.asarray(sigmas_L, np.float64)
    if logits.ndim != 2 or sigmas.shape != (logits.shape[1],) or len(sigmas) < 2:
        raise ValueError(
            f"expected (N, L) logits and L >= 2 levels: {logits.shape}, {sigmas.shape}"
        )
    if not (sigmas[0] > 0 and np.all(np.diff(sigmas) > 0)):
        raise ValueError("levels must be positive and ascend")
    if not 0 < tau < 1:
        raise ValueError(f"tau must lie between 0 and 1, got {tau}")
    return np.log(sigmas)


def _smooth(values_NL: Floats, log_sigmas_L: Floats, octaves: float) -> Floats:
    """Average over neighbouring levels with Gaussian weights in log2 sigma."""
    if octaves <= 0:
        return values_NL
    distance = (log_sigmas_L[:, None] - log_sigmas_L[None, :]) / (octaves * np.log(2))
    weights = np.exp(-0.5 * distance**2)
    weights /= weights.sum(axis=1, keepdims=True)
    smoothed: Floats = values_NL @ weights.T
    return smoothed


def _interpolate_zero(fitted_NL: Floats, log_sigmas_L: Floats) -> Floats:
    """Return ln sigma where non-decreasing rows, <= 0 first and > 0 last, pass zero."""
    right = np.argmax(fitted_NL > 0, axis=1)
    rows = np.arange(len(fitted_NL))
    low, high = fitted_NL[rows, right - 1], fitted_NL[rows, right]
    share = -low / (high - low)
    found: Floats = log_sigmas_L[right - 1] + share * (
        log_sigmas_L[right] - log_sigmas_L[right - 1]
    )
    return found


def _slope_at(fitted_NL: Floats, log_sigmas_L: Floats, log_crossing_N: Floats) -> Floats:
    """Return the fit's rise per ln sigma over the octave around the crossing; NaN without one.

    A monotone fit is made of steps: its slope between two levels says little, over an octave more.
    """
    half = 0.5 * np.log(2)
    low = np.clip(log_crossing_N - half, log_sigmas_L[0], log_sigmas_L[-1])
    high = np.clip(log_crossing_N + half, log_sigmas_L[0], log_sigmas_L[-1])
    rise = _read(fitted_NL, log_sigmas_L, high) - _read(fitted_NL, log_sigmas_L, low)
    slope: Floats = rise / (high - low)
    return slope


def _error_in_octaves(
    standard_error_NL: NDArray[np.floating] | None,
    log_sigmas_L: Floats,
    log_crossing_N: Floats,
    slope_N: Floats,
) -> Floats:
    """Turn an error of the logit into one of log2 sigma: divide by the slope per octave.

    Noise is shared between levels, so their errors go together and averaging over levels is not
    counted as a gain.
    """
    if standard_error_NL is None:
        return np.full(len(log_crossing_N), np.nan)
    errors = np.asarray(standard_error_NL, np.float64)
    error = _read(errors, log_sigmas_L, log_crossing_N)
    per_octave = slope_N * np.log(2)
    rises = per_octave > 0
    out = np.where(rises, error / np.where(rises, per_octave, 1.0), np.inf)
    return np.where(np.isfinite(log_crossing_N), out, np.nan)


def _read(values_NL: Floats, log_sigmas_L: Floats, at_N: Floats) -> Floats:
    """Return each row at its own level by linear interpolation in ln sigma; NaN at NaN."""
    known = np.isfinite(at_N)
    right = np.searchsorted(log_sigmas_L, np.where(known, at_N, log_sigmas_L[0]))
    right = np.clip(right, 1, len(log_sigmas_L) - 1)
    rows, left = np.arange(len(values_NL)), right - 1
    share = (at_N - log_sigmas_L[left]) / (log_sigmas_L[right] - log_sigmas_L[left])
    low, high = values_NL[rows, left], values_NL[rows, right]
    found: Floats = low + np.clip(share, 0, 1) * (high - low)
    return found
