"""Level first, then a sample that allows it: exact, without rejection, O(log N) a draw."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ambient_omni.noise.levels import LogNormalPrior
from ambient_omni.noise.usable import Usable
from schemas.errors import AmbientOmniError

Levels = NDArray[np.float64]


class NoEligibleSample(AmbientOmniError):
    """At some levels of the prior no sample may be used."""


class EligibilityIndex:
    """Draws samples that are usable at given levels, each with the same probability.

    With the floors sorted, the samples usable from below are a prefix of one order; with the
    windows sorted, those usable from above are a prefix of another. `Usable` is normalised so
    that no sample is in both prefixes at any level. So one uniform number picks from their union.
    """

    def __init__(self, usable: Usable) -> None:
        self._by_floor = np.argsort(usable.floor, kind="stable")
        self._floors = usable.floor[self._by_floor]
        windowed = np.flatnonzero(usable.window > 0)
        self._by_window = windowed[np.argsort(-usable.window[windowed], kind="stable")]
        # Negated, so that both orders ascend and one kind of search serves.
        self._windows = -usable.window[self._by_window]

    def count(self, sigma: Levels) -> NDArray[np.int64]:
        """Return how many samples are usable at each level, shape of `sigma`."""
        from_floor, from_window = self._prefixes(sigma)
        return from_floor + from_window

    def draw(self, sigma: Levels, uniform: Levels) -> NDArray[np.int64]:
        """Return one sample index per level, uniform among those usable at it.

        Args:
            sigma: (B,) levels.
            uniform: (B,) independent uniform numbers in [0, 1).

        Raises:
            NoEligibleSample: a level has none.
        """
        from_floor, from_window = self._prefixes(sigma)
        total = from_floor + from_window
        if not total.all():
            raise NoEligibleSample(
                f"no sample may be used at sigma {sigma[total == 0][0]:.4g}: {_ADVICE}"
            )
        # u < 1, but u * total can round up to total.
        pick = np.minimum((uniform * total).astype(np.int64), total - 1)
        chosen = np.empty(len(sigma), np.int64)
        low = pick < from_floor
        chosen[low] = self._by_floor[pick[low]]
        chosen[~low] = self._by_window[(pick - from_floor)[~low]]
        return chosen

    def gap(self) -> tuple[float, float] | None:
        """Return the one open interval of levels without an eligible sample, or None."""
        lowest_floor = float(self._floors[0]) if len(self._floors) else np.inf
        highest_window = float(-self._windows[0]) if len(self._windows) else 0.0
        return None if highest_window >= lowest_floor else (highest_window, lowest_floor)

    def require_every_level(self, prior: LogNormalPrior) -> None:
        """Check that each level of the prior has an eligible sample.

        Raises:
            NoEligibleSample: naming the levels and their share of the prior.
        """
        gap = self.gap()
        if gap is None:
            return
        below, above = prior.cdf(np.array(gap))
        if above > below:
            raise NoEligibleSample(
                f"no sample may be used at {gap[0]:.4g} < sigma < {gap[1]:.4g}, "
                f"{above - below:.2%} of the prior's levels: {_ADVICE}"
            )

    def _prefixes(self, sigma: Levels) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        from_floor = np.searchsorted(self._floors, sigma, side="right")
        from_window = np.searchsorted(self._windows, -sigma, side="right")
        return from_floor, from_window


_ADVICE = (
    "add reference images (they have sigma_min 0), choose a policy that accepts more, "
    "or cut the prior with prior.lowest and prior.highest"
)
