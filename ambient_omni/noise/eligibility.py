"""Level first, then a sample that allows it: exact, without rejection, O(log N) a draw."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ambient_omni.noise.search import SortedPrefixes, sort_by
from ambient_omni.noise.strata import GroupChoice, Strata
from ambient_omni.noise.usable import Levels, Usable
from schemas.errors import AmbientOmniError


class NoEligibleSample(AmbientOmniError):
    """At some levels of the prior no sample may be used."""


class PriorCdf(Protocol):
    """The part of a prior that says how likely levels are."""

    def cdf(self, sigma: ArrayLike) -> Levels:
        """Return the share of levels at or below σ, elementwise."""


class Drawer(Protocol):
    """Draws samples at given levels. Levels are float32 numbers, whatever type holds them."""

    def draw(self, sigma: Levels, uniform: Levels) -> NDArray[np.int64]:
        """Return one sample index per level; (B,) levels, (B,) uniform numbers in [0, 1)."""

    def shares(self, sigma: float) -> Levels:
        """Return the probability of each sample at a level, (N,), by definition; slow."""

    def gap(self) -> tuple[float, float] | None:
        """Return the one open interval of levels without an eligible sample, or None."""


class EligibilityIndex:
    """Draws samples that are usable at given levels.

    With the floors sorted, the samples usable from below are a prefix of one order; with the
    windows sorted, those usable from above are a prefix of another. `Usable` is normalised so
    that no sample is in both prefixes at any level. So one uniform number picks from their union.
    Classes and sources with weights of their own have such a pair of orders each.

    Levels are compared as float32, the numbers that networks see: 4 bytes a sample hold an order,
    and no rounding can make a sample usable below its floor.

    Args:
        usable: N samples, at most 2^32; kept, not copied.
        strata: groups and sources; by default every eligible sample is equally likely.
    """

    def __init__(self, usable: Usable, strata: Strata | None = None) -> None:
        self._usable = usable
        self._strata = Strata.one(len(usable)) if strata is None else strata
        floors, windows = _orders(usable, self._strata)
        self._floors, self._windows = floors, windows
        # A group is eligible from its lowest floor on, and up to its highest window.
        shape = (self._strata.num_groups, self._strata.num_sources)
        lowest = np.maximum(floors.lowest().reshape(shape).min(axis=1), 0)
        highest = np.maximum(-windows.lowest().reshape(shape).min(axis=1), 0)
        self._extremes = (float(lowest.min()), float(highest.max()))
        self._groups = GroupChoice(lowest, highest, self._strata.group_weights)

    def count(self, sigma: Levels) -> NDArray[np.int64]:
        """Return how many samples are usable at each level, shape (B,)."""
        sigma = as_float32(sigma)
        from_floor, from_window = self._counts(self._all_strata(len(sigma)), sigma[:, None])
        total: NDArray[np.int64] = (from_floor + from_window).sum(axis=1)
        return total

    def weight(self, sigma: Levels) -> Levels:
        """Return the sum of the source weights of what is usable at each level, shape (B,)."""
        sigma = as_float32(sigma)
        from_floor, from_window = self._counts(self._all_strata(len(sigma)), sigma[:, None])
        weights = np.tile(self._strata.source_weights, self._strata.num_groups)
        total: Levels = (from_floor + from_window) @ weights
        return total

    def draw(self, sigma: Levels, uniform: Levels) -> NDArray[np.int64]:
        """Return one sample index per level among those usable at it.

        Args:
            sigma: (B,) levels.
            uniform: (B,) independent uniform numbers in [0, 1).

        Raises:
            NoEligibleSample: a level has none.
        """
        sigma = as_float32(sigma)
        stratum, rest = self._choose_stratum(sigma, uniform)
        from_floor, from_window = self._counts(stratum, sigma)
        total = from_floor + from_window
        if not total.all():
            raise NoEligibleSample(
                f"none of {len(self._usable)} samples may be used at sigma "
                f"{sigma[total == 0][0]:.4g}: {_ADVICE}"
            )
        # u < 1, but u * total can round up to total.
        pick = np.minimum((rest * total).astype(np.int64), total - 1)
        low = pick < from_floor
        chosen = np.empty(len(sigma), np.int64)
        chosen[low] = self._floors.sample(stratum[low], pick[low])
        high = ~low
        chosen[high] = self._windows.sample(stratum[high], (pick - from_floor)[high])
        return chosen

    def shares(self, sigma: float) -> Levels:
        """Return the probability of each sample at a level, (N,), by definition; slow."""
        return self._strata.shares(self._usable.at(as_float32(np.array(sigma))))

    def gap(self) -> tuple[float, float] | None:
        """Return the one open interval of levels without an eligible sample, or None."""
        lowest_floor, highest_window = self._extremes
        return None if highest_window >= lowest_floor else (highest_window, lowest_floor)

    def _choose_stratum(self, sigma: Levels, uniform: Levels) -> tuple[NDArray[np.int64], Levels]:
        num_sources = self._strata.num_sources
        if self._strata.num_groups == num_sources == 1:
            return np.zeros(len(sigma), np.int64), uniform
        group, rest = self._groups.choose(sigma, uniform)
        first = np.maximum(group, 0) * num_sources
        if num_sources == 1:
            return first, rest
        strata = first[:, None] + np.arange(num_sources)
        from_floor, from_window = self._counts(strata, sigma[:, None])
        weights = (from_floor + from_window) * self._strata.source_weights
        sums = np.cumsum(weights, axis=1)
        target = rest * sums[:, -1]
        chosen = np.minimum((sums <= target[:, None]).sum(axis=1), num_sources - 1)
        # Rounding can bring the target to the end, past sources without an eligible sample.
        chosen = np.where(
            _at(weights, chosen) > 0, chosen, num_sources - 1 - (weights[:, ::-1] > 0).argmax(1)
        )
        weight = np.maximum(_at(weights, chosen), np.finfo(np.float64).tiny)
        left = (target - (_at(sums, chosen) - weight)) / weight
        return first + chosen, np.clip(left, 0, np.nextafter(1, 0))

    def _all_strata(self, num_levels: int) -> NDArray[np.int64]:
        num_strata = self._strata.num_groups * self._strata.num_sources
        return np.broadcast_to(np.arange(num_strata), (num_levels, num_strata))

    def _counts(
        self, stratum: NDArray[np.int64], sigma: Levels
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        level = np.broadcast_to(sigma, stratum.shape).ravel()
        flat = stratum.ravel()
        from_floor = self._floors.count(flat, level).reshape(stratum.shape)
        from_window = self._windows.count(flat, -level).reshape(stratum.shape)
        return from_floor, from_window


def as_float32(sigma: ArrayLike) -> Levels:
    """Return levels rounded to float32 numbers, as float64: what a network is going to see."""
    return np.asarray(sigma).astype(np.float32).astype(np.float64)


def require_every_level(drawer: Drawer, prior: PriorCdf, num_samples: int) -> None:
    """Check that each level of a prior has an eligible sample.

    Raises:
        NoEligibleSample: naming the levels, their share of the prior, and how many samples the pool
            has.
    """
    gap = drawer.gap()
    if gap is None:
        return
    # The gap is open: levels at its ends have a sample, and some priors have levels there alone.
    below, above = prior.cdf(np.array([gap[0], np.nextafter(gap[1], 0)]))
    if above > below:
        raise NoEligibleSample(
            f"none of {num_samples} samples may be used at {gap[0]:.4g} < sigma < {gap[1]:.4g}, "
            f"{above - below:.2%} of the prior's levels: {_ADVICE}"
        )


def outside_gap(sigma: Levels, gap: tuple[float, float] | None) -> Levels:
    """Return levels with those inside the gap moved to its nearer end, float32 numbers.

    Once `require_every_level` passed, only rounding brings a level of the prior into the gap.
    """
    sigma = as_float32(sigma)
    if gap is None:
        return sigma
    low, high = gap
    inside = (sigma > low) & (sigma < high)
    # The ends rounded to the usable side.
    nearer = np.where(sigma - low < high - sigma, _round_down(low), _round_up(high))
    return np.where(inside, nearer, sigma)


def _orders(usable: Usable, strata: Strata) -> tuple[SortedPrefixes, SortedPrefixes]:
    """Sort the samples of each stratum by floor, and those with a window by window."""
    finite, free, windowed = _count_kinds(usable, strata)
    walk = _Walk(usable, strata)
    parts = list(usable.chunks())
    floor_starts, window_starts = _starts(finite), _starts(windowed)
    floors = SortedPrefixes(
        sort_by(walk.floor_keys, parts, finite),
        floor_starts,
        floor_starts[:-1] + free,
        lambda index: usable.kappa * usable.sigma_min[index],
    )
    windows = SortedPrefixes(
        sort_by(walk.window_keys, parts if windowed.any() else [], windowed),
        window_starts,
        window_starts[:-1],
        lambda index: -usable.sigma_max[index].astype(np.float64),
    )
    return floors, windows


def _count_kinds(usable: Usable, strata: Strata) -> NDArray[np.int64]:
    """Count per stratum the samples with a floor, with floor 0, and with a window; (3, T)."""
    num_strata = strata.num_groups * strata.num_sources
    counts = np.zeros((3, num_strata), np.int64)
    for here in usable.chunks():
        floor, window = usable.floor_and_window_of(here)
        number = strata.number(here) if num_strata > 1 else None
        # Beyond float32 a floor is as good as none, and a window below it too.
        kinds = (floor <= _LARGEST, floor == 0, window >= _SMALLEST)
        for count, chosen in zip(counts, kinds, strict=True):
            if number is None:
                count += np.count_nonzero(chosen)
            else:
                count += np.bincount(number[chosen], minlength=num_strata)
    return counts


class _Walk:
    """Walks through the samples stratum by stratum and says by what to sort them."""

    def __init__(self, usable: Usable, strata: Strata) -> None:
        self._usable = usable
        self._grouped: NDArray[np.uint32] | None = None
        if strata.num_groups * strata.num_sources > 1:
            numbers = np.concatenate([strata.number(here) for here in usable.chunks()])
            self._grouped = np.argsort(numbers, kind="stable").astype(np.uint32)

    def floor_keys(self, here: slice) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Return keys and indices of those with a floor; bits of floats ascend with them."""
        index, place = self._at(here)
        floor = self._usable.floor_of(place)
        some = floor <= _LARGEST
        return _round_up(floor[some]).view(np.uint32), index[some]

    def window_keys(self, here: slice) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Return keys, descending in the window, and indices of those with a window."""
        index, place = self._at(here)
        window = self._usable.window_of(place)
        some = window >= _SMALLEST
        return ~_round_down(window[some]).view(np.uint32), index[some]

    def _at(self, here: slice) -> tuple[NDArray[np.uint32], slice | NDArray[np.uint32]]:
        if self._grouped is not None:
            return self._grouped[here], self._grouped[here]
        # A slice costs no gather.
        return np.arange(here.start, here.stop, dtype=np.uint32), here


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _at(values: Levels, column: NDArray[np.int64]) -> Levels:
    return np.take_along_axis(values, column[:, None], axis=1)[:, 0]


def _round_up(level: ArrayLike) -> NDArray[np.float32]:
    """Round to float32, never down."""
    level = np.asarray(level, np.float64)
    near = level.astype(np.float32)
    return np.where(near < level, np.nextafter(near, np.float32(np.inf)), near)


def _round_down(level: ArrayLike) -> NDArray[np.float32]:
    """Round to float32, never up."""
    level = np.asarray(level, np.float64)
    near = level.astype(np.float32)
    return np.where(near > level, np.nextafter(near, np.float32(0)), near)


_LARGEST, _SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)

_ADVICE = (
    "add reference images (they have sigma_min 0), choose a policy that accepts more, "
    "or cut the prior with prior.lowest and prior.highest"
)
