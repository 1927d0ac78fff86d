"""Classes and sources: how much each counts when a sample is drawn at a level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ambient_omni.noise.usable import Levels


@dataclass(frozen=True)
class Strata:
    """N samples by group and source.

    At a level a group is chosen among those with an eligible sample, each with its weight; then a
    sample of it, each with the weight of its source.

    group (N,) and source (N,) unsigned integers; group_weights (G,) and source_weights (S,).
    """

    group: NDArray[np.unsignedinteger]
    source: NDArray[np.unsignedinteger]
    group_weights: Levels
    source_weights: Levels

    @classmethod
    def one(cls, num_samples: int) -> Strata:
        """Return a single stratum: every eligible sample is equally likely."""
        nobody = np.broadcast_to(np.uint8(0), num_samples)
        return cls(nobody, nobody, np.ones(1), np.ones(1))

    @property
    def num_groups(self) -> int:
        """How many groups there are."""
        return len(self.group_weights)

    @property
    def num_sources(self) -> int:
        """How many sources there are."""
        return len(self.source_weights)

    def number(self, index: slice) -> NDArray[np.int64]:
        """Return the number of the stratum of some samples: group · S + source."""
        return self.group[index].astype(np.int64) * self.num_sources + self.source[index]

    def shares(self, eligible: NDArray[np.floating] | NDArray[np.bool_]) -> Levels:
        """Return the probability of each sample, (N,), by definition.

        Args:
            eligible: (N,) weight of each sample at a level; 0 and 1 for hard floors.
        """
        weight: Levels = self.source_weights[self.source] * eligible
        per_group = np.bincount(self.group, weight, self.num_groups)
        if not per_group.any():
            return weight
        chance = np.where(per_group > 0, self.group_weights, 0)
        chance /= chance.sum()
        with np.errstate(invalid="ignore"):
            shares: Levels = np.nan_to_num(chance[self.group] * weight / per_group[self.group])
        return shares


class GroupChoice:
    """Chooses a group at a level: exact, with one search, whatever the number of groups.

    Groups by their lowest floor are one order and by their highest window another, as samples are;
    a prefix sum of weights over each order makes the choice a search.
    """

    def __init__(self, lowest_floor: Levels, highest_window: Levels, weights: Levels) -> None:
        floor = np.where(highest_window >= lowest_floor, 0, lowest_floor)
        window = np.where(floor == 0, 0, highest_window)
        self._weights = weights
        by_floor = np.argsort(floor, kind="stable")
        self._by_floor = by_floor[np.isfinite(floor[by_floor])]
        by_window = np.argsort(-window, kind="stable")
        self._by_window = by_window[window[by_window] > 0]
        self._floors, self._windows = floor[self._by_floor], -window[self._by_window]
        self._floor_sums = np.r_[0, np.cumsum(weights[self._by_floor])]
        self._window_sums = np.r_[0, np.cumsum(weights[self._by_window])]

    def choose(self, sigma: Levels, uniform: Levels) -> tuple[NDArray[np.int64], Levels]:
        """Return a group per level and what is left of the uniform number, in [0, 1).

        Where no group is eligible the group is -1.
        """
        num_floor = np.searchsorted(self._floors, sigma, side="right")
        num_window = np.searchsorted(self._windows, -sigma, side="right")
        from_floor, from_window = self._floor_sums[num_floor], self._window_sums[num_window]
        target = uniform * (from_floor + from_window)
        low = target < from_floor
        group = np.full(len(sigma), -1, np.int64)
        rest = np.zeros(len(sigma))
        for here, order, sums, count, aim in (
            (low, self._by_floor, self._floor_sums, num_floor, target),
            (~low, self._by_window, self._window_sums, num_window, target - from_floor),
        ):
            here = here & (count > 0)
            place = np.searchsorted(sums, aim[here], side="right") - 1
            # Rounding can bring the target to the very end of the prefix.
            place = np.clip(place, 0, count[here] - 1)
            group[here] = order[place]
            left = (aim[here] - sums[place]) / self._weights[group[here]]
            rest[here] = np.clip(left, 0, np.nextafter(1, 0))
        return group, rest
