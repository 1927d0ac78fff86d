"""Soft floors: a sample comes in gradually around its σ_min, as its classifier curve says.

    logit(σ)      = -t · (σ / σ_min)^(-q)         t = -logit(τ), q = slope / t
    acceptance(σ) = min(1, exp(logit(σ)))

The logit is that of P(trusted) at σ: at σ_min it is logit(τ) and its derivative by ln σ is `slope`,
and it decays to 0 from there on. exp(logit) is the density ratio of clean to pool images, so that
pool images accepted with it are distributed as clean ones. Null slope: a hard floor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ambient_omni.noise.eligibility import EligibilityIndex, NoEligibleSample, as_float32
from ambient_omni.noise.search import first_above
from ambient_omni.noise.strata import Strata
from ambient_omni.noise.usable import Levels, Usable

# A sample that is accepted more rarely than this is not accepted at all.
LEAST_ACCEPTANCE = 1e-6

# Width of the cells, in octaves of σ_min and of σ, and as a factor of q.
_LEVEL_OCTAVES = 1 / 32
_RATE_FACTOR = 1.05


def rate_of_slope(slope: ArrayLike, threshold: float) -> Levels:
    """Return q of samples whose logit has `slope` = d logit / d ln σ at σ_min; NaN = hard floor.

    Args:
        slope: (N,), null is NaN. A slope that is not positive belongs to no curve that decays.
        threshold: τ of the policy, below 0.5.

    Raises:
        ValueError: the threshold is not between 0 and 0.5.
    """
    if not 0 < threshold < 0.5:
        raise ValueError(f"soft floors need a threshold between 0 and 0.5, got {threshold}")
    rate: Levels = np.asarray(slope, np.float64) / _depth(threshold)
    return np.where(rate > 0, rate, np.nan)


def acceptance(sigma: ArrayLike, sigma_min: ArrayLike, rate: ArrayLike, threshold: float) -> Levels:
    """Return how likely a sample is accepted at σ, in [0, 1]; shapes broadcast.

    σ_min = 0 gives 1 everywhere, null (NaN or inf) gives 0. A NaN rate is a hard floor.

    Args:
        sigma: levels.
        sigma_min: from the annotations.
        rate: q, from `rate_of_slope`.
        threshold: τ of the policy.
    """
    level, minimum, q = np.broadcast_arrays(
        *(np.asarray(part, np.float64) for part in (sigma, sigma_min, rate))
    )
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        curve = np.exp(-_depth(threshold) * (level / minimum) ** -q)
    accepted: Levels = np.where(np.isnan(q), (level >= minimum).astype(np.float64), curve)
    accepted = np.where(minimum == 0, 1.0, accepted)
    return np.where(np.isfinite(minimum) & (accepted >= LEAST_ACCEPTANCE), accepted, 0.0)


def lowest_accepted(sigma_min: ArrayLike, rate: ArrayLike, threshold: float) -> Levels:
    """Return the level below which a sample is not accepted: its hard floor, or the soft one's end.

    σ_min · (-ln(least acceptance) / t)^(-1/q). Null is inf.
    """
    minimum, q = np.asarray(sigma_min, np.float64), np.asarray(rate, np.float64)
    end = minimum * (-math.log(LEAST_ACCEPTANCE) / _depth(threshold)) ** (-1 / q)
    return np.where(np.isnan(minimum), np.inf, np.where(np.isnan(q), minimum, end))


@dataclass(frozen=True)
class _Cells:
    """Samples with soft floors that share a cell: K cells of like σ_min, q and source.

    order (M,) uint32 sample indices, cell by cell; starts (K + 1,); sigma_min, rate and weight
    (K,), those of a cell's middle and of its source.
    """

    order: NDArray[np.uint32]
    starts: NDArray[np.int64]
    sigma_min: Levels
    rate: Levels
    weight: Levels


class SoftDrawer:
    """Draws samples with the weight of their acceptance. One interface with `EligibilityIndex`.

    Samples with a hard floor, or with a window, are drawn exactly. The others are put into cells of
    like σ_min and slope, and levels into bands: a cell is chosen by the acceptance of its middle
    at the middle of the band, then a sample of it. A cell is 1/32 octave wide, half of which moves
    ln σ/σ_min by 0.011 and, a · |ln a| being at most 1/e, the acceptance by 0.004 q; a band does
    the same. Beside samples that are accepted outright that is little; where all of the draws are
    of samples that are hardly ever accepted, it is |ln a| times as much of them.
    `quantisation_error` measures what that makes of the draws. No sample is drawn below
    `lowest_accepted`.

    Args:
        sigma_min: (N,) float64, null is NaN.
        sigma_max: (N,), 0 = no window; a sample that has one keeps its hard floor.
        slope: (N,), null is NaN.
        threshold: τ of the policy.
        strata: sources and their weights; a single group.
        bounds: lowest and highest level that will be drawn.
    """

    def __init__(
        self,
        sigma_min: Levels,
        sigma_max: NDArray[np.floating],
        slope: NDArray[np.floating],
        threshold: float,
        *,
        strata: Strata | None = None,
        bounds: tuple[float, float] = (1e-3, 1e3),
    ) -> None:
        if strata is not None and strata.num_groups > 1:
            raise ValueError("soft floors take the weights of sources, not of classes")
        self._strata = Strata.one(len(sigma_min)) if strata is None else strata
        self._threshold = threshold
        self._minimum, self._window = sigma_min, sigma_max
        rate = rate_of_slope(slope, threshold)
        soft = np.isfinite(rate) & np.isfinite(sigma_min) & (sigma_min > 0) & (sigma_max == 0)
        self._rate = np.where(soft, rate, np.nan)
        hard = Usable(np.where(soft, np.nan, sigma_min), sigma_max)
        self._hard_usable, self._hard = hard, EligibilityIndex(hard, self._strata)
        self._cells = _cells(self._minimum, self._rate, np.flatnonzero(soft), self._strata)
        self._edges = _bands(bounds)
        middle = np.sqrt(self._edges[:-1] * self._edges[1:])
        cells = self._cells
        accepted = acceptance(middle[:, None], cells.sigma_min, cells.rate, threshold)
        # Where some sample of a cell is below its own end at some level of the band, none is drawn.
        # The first band is that of the levels below the bounds.
        lowest = np.concatenate([np.zeros(1), self._edges[1:-1]])
        strictest = (cells.sigma_min * 2 ** (_LEVEL_OCTAVES / 2), cells.rate * _RATE_FACTOR**0.5)
        accepted *= acceptance(lowest[:, None], *strictest, threshold) > 0
        self._accepted_in_cells = accepted @ np.diff(cells.starts)
        sums = np.cumsum(accepted * (np.diff(cells.starts) * cells.weight), axis=1)
        self._num_cells = len(cells.weight)
        self._totals = sums[:, -1] if self._num_cells else np.zeros(len(middle))
        self._sums = sums.ravel()

    def draw(self, sigma: Levels, uniform: Levels) -> NDArray[np.int64]:
        """Return one sample index per level; see `Drawer`.

        Raises:
            NoEligibleSample: a level has none.
        """
        sigma = as_float32(sigma)
        band = self._band(sigma)
        exact = self._hard.weight(sigma)
        total = exact + self._totals[band]
        if not total.all():
            raise NoEligibleSample(
                f"none of {len(self._minimum)} samples is accepted at sigma "
                f"{sigma[total == 0][0]:.4g}: add reference images or cut the prior"
            )
        target = uniform * total
        hard = (target < exact) | (self._totals[band] == 0)
        chosen = np.empty(len(sigma), np.int64)
        rest = np.clip(target[hard] / exact[hard], 0, np.nextafter(1, 0))
        if hard.any():
            chosen[hard] = self._hard.draw(sigma[hard], rest)
        soft = ~hard
        chosen[soft] = self._draw_cell(band[soft], (target - exact)[soft])
        return chosen

    def count(self, sigma: Levels) -> Levels:
        """Return how many samples are accepted at each level on average, (B,)."""
        sigma = as_float32(sigma)
        return self._hard.count(sigma) + self._accepted_in_cells[self._band(sigma)]

    def shares(self, sigma: float) -> Levels:
        """Return the probability of each sample at a level by definition, without cells, (N,)."""
        level = as_float32(np.array(sigma))
        weight = acceptance(level, self._minimum, self._rate, self._threshold)
        return self._strata.shares(np.maximum(weight, level <= self._window))

    def drawn_shares(self, sigma: float) -> Levels:
        """Return the probability of each sample as `draw` has it, through cells, (N,)."""
        level = as_float32(np.array([sigma]))
        band = int(self._band(level)[0])
        weight = self._hard_usable.at(level) * self._strata.source_weights[self._strata.source]
        sums = self._sums[band * self._num_cells : (band + 1) * self._num_cells]
        sizes = np.diff(self._cells.starts)
        per_sample = np.repeat(np.diff(sums, prepend=0) / np.maximum(sizes, 1), sizes)
        weight = weight.astype(np.float64)
        weight[self._cells.order] = per_sample
        shares: Levels = weight / weight.sum()
        return shares

    def quantisation_error(self, sigma: float) -> float:
        """Return the total variation between the two, in [0, 1]: what cells and bands cost."""
        return float(np.abs(self.shares(sigma) - self.drawn_shares(sigma)).sum() / 2)

    def gap(self) -> tuple[float, float] | None:
        """Return the one open interval of levels without an accepted sample, or None."""
        gap = self._hard.gap()
        if gap is None or not self._totals.any():
            return gap
        lowest = float(self._edges[np.flatnonzero(self._totals)[0]])
        return None if lowest <= gap[0] else (gap[0], min(gap[1], lowest))

    def _band(self, sigma: Levels) -> NDArray[np.int64]:
        place = np.searchsorted(self._edges, sigma, side="right") - 1
        return np.clip(place, 0, len(self._edges) - 2)

    def _draw_cell(self, band: NDArray[np.int64], target: Levels) -> NDArray[np.int64]:
        if not len(band):
            return np.empty(0, np.int64)
        low = band * self._num_cells
        place = first_above(self._sums.__getitem__, low, low + self._num_cells - 1, target)
        before = np.where(place > low, self._sums[np.maximum(place - 1, 0)], 0.0)
        cell = place - low
        size = np.diff(self._cells.starts)[cell]
        left = (target - before) / np.maximum(self._sums[place] - before, np.finfo(float).tiny)
        rank = np.clip((left * size).astype(np.int64), 0, size - 1)
        chosen: NDArray[np.int64] = self._cells.order[self._cells.starts[cell] + rank].astype(
            np.int64
        )
        return chosen


def _cells(minimum: Levels, rate: Levels, soft: NDArray[np.int64], strata: Strata) -> _Cells:
    octave = np.floor(np.log2(minimum[soft]) / _LEVEL_OCTAVES).astype(np.int64)
    step = np.floor(np.log(rate[soft]) / math.log(_RATE_FACTOR)).astype(np.int64)
    source = strata.source[soft].astype(np.int64)
    keys, cell = np.unique(np.stack([octave, step, source]), axis=1, return_inverse=True)
    cell = cell.reshape(-1)
    order = np.argsort(cell, kind="stable")
    counts = np.bincount(cell, minlength=keys.shape[1])
    return _Cells(
        order=soft[order].astype(np.uint32),
        starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        sigma_min=2.0 ** ((keys[0] + 0.5) * _LEVEL_OCTAVES),
        rate=_RATE_FACTOR ** (keys[1] + 0.5),
        weight=strata.source_weights[keys[2]],
    )


def _bands(bounds: tuple[float, float]) -> Levels:
    low, high = np.log2(bounds[0]), np.log2(bounds[1])
    count = max(1, math.ceil((high - low) / _LEVEL_OCTAVES))
    edges: Levels = 2.0 ** np.linspace(low, high, count + 1)
    # And one for the levels below.
    return np.concatenate([edges[:1] / 2**_LEVEL_OCTAVES, edges])


def _depth(threshold: float) -> float:
    """Return t = -logit(τ), positive for τ below 1/2."""
    return math.log((1 - threshold) / threshold)
