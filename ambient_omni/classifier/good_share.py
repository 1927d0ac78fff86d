"""Which share of a pool is as good as the reference: learning from positive and unlabelled data.

The pool is pi x (images as good as the reference) + (1 - pi) x (bad ones). Among images that the
classifier finds better than c, the pool has at least pi times the reference's share, whatever c is:
    P_pool(score > c) >= pi P_reference(score > c).
So the smallest ratio of the two over c is an upper bound of pi, and an estimate where some images
are so good that no bad one is among them.
Source: Garg, Wu, Smola, Balakrishnan, Lipton, Mixture Proportion Estimation and PU Learning: A
Modern Approach, 2021, section 4 (best bin estimation).

Legend: N images, M other images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ambient_omni import rng

Floats = NDArray[np.float64]

# The ratio over the few best images is luck: bins hold at least this share of the reference.
_LEAST_SHARE = 0.2
_NUM_BINS = 40
_NUM_RESAMPLES = 200
_BAND = (0.05, 0.95)


@dataclass(frozen=True)
class GoodShare:
    """Estimate and 90 % band of pi; on a classifier that tells nothing it is 1."""

    share: float
    low: float
    high: float


def estimate_good_share(
    trusted_N: NDArray[np.floating],
    pool_M: NDArray[np.floating],
    *,
    trusted_groups: Sequence[str],
    pool_groups: Sequence[str],
    seed: int,
) -> GoodShare:
    """Estimate pi from scores, higher is better, of images that nothing trained on.

    The band resamples groups, not images: near-duplicates go together.
    """
    shares = [_best_ratio(np.asarray(trusted_N), np.asarray(pool_M))]
    sides = ((trusted_N, trusted_groups), (pool_M, pool_groups))
    for number in range(_NUM_RESAMPLES):
        draw = rng.generator(seed, "good-share", number)
        resampled = [np.asarray(s)[resample_groups(g, draw)] for s, g in sides]
        shares.append(_best_ratio(*resampled))
    low, high = np.quantile(shares[1:], _BAND)
    return GoodShare(shares[0], float(low), float(high))


def resample_groups(groups: Sequence[str], draw: np.random.Generator) -> NDArray[np.int64]:
    """Return positions of as many groups as there are, drawn with replacement, all their images."""
    _, number = np.unique(np.asarray(groups), return_inverse=True)
    count = int(number.max()) + 1
    times = np.bincount(draw.integers(count, size=count), minlength=count)
    return np.repeat(np.arange(len(number)), times[number])


def _best_ratio(trusted: Floats, pool: Floats) -> float:
    """Return the smallest P_pool(score > c) / P_trusted(score > c), each with its own error added.

    Without the error the smallest of many noisy ratios is too small.
    """
    cuts = np.quantile(trusted, np.linspace(0, 1 - _LEAST_SHARE, _NUM_BINS))
    trusted_above = (trusted[None] >= cuts[:, None]).mean(axis=1)
    pool_above = (pool[None] >= cuts[:, None]).mean(axis=1)
    ratio = pool_above / trusted_above
    error = np.sqrt(pool_above * (1 - pool_above) / len(pool)) / trusted_above + (
        ratio * np.sqrt((1 - trusted_above) / (trusted_above * len(trusted)))
    )
    best = int(np.argmin(ratio + error))
    return float(min(1.0, ratio[best]))
