"""What to know before a classifier's curves are believed.

A classifier answers what it was asked: reference or pool. Where that is not the question of
quality, its curves are right and useless. Nothing here refuses; it says what was found.

Legend: L levels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEW_REFERENCES = 200
# Above this share of the grid of levels no damage that is planted may be visible for the check of
# contents to mean anything; below it contents and damage cannot be told apart.
_TOP_LEVELS = 0.25
_CLEAR = 0.15


def cautions(
    *,
    num_trusted: int,
    sigmas_L: Floats,
    tv_low_L: Floats,
    tv_high_L: Floats,
    worst_planted_tv_L: Floats,
) -> list[str]:
    """Return sentences, each with its evidence.

    Args:
        num_trusted: references that were trained on.
        sigmas_L: levels.
        tv_low_L: lower end of the band of the lower bound of TV between reference and pool.
        tv_high_L: upper end.
        worst_planted_tv_L: the most that any kind of heavy planted damage shows at a level.
    """
    found = []
    if num_trusted < FEW_REFERENCES:
        found.append(
            f"only {num_trusted} references: levels are rough below some {FEW_REFERENCES}, and "
            "the network knows its references by heart"
        )
    # Of some twenty bands one or two miss 0 by chance, so not every level has to hold it.
    if np.median(tv_low_L) <= 0 and tv_low_L.max() < _CLEAR:
        found.append(
            "the pool looks as good as the reference at every level (total variation at most "
            f"{tv_high_L.max():.2f}, while planted damage is found): everything is usable"
        )
    top = max(1, round(_TOP_LEVELS * len(sigmas_L)))
    beyond = (
        np.flatnonzero(tv_low_L[-top:] > worst_planted_tv_L[-top:] + _CLEAR) + len(sigmas_L) - top
    )
    if len(beyond):
        level = int(beyond[-1])
        found.append(
            f"reference and pool differ at sigma {sigmas_L[level]:.2g} (total variation at least "
            f"{tv_low_L[level]:.2f}), where even heavy planted damage hardly shows "
            f"({worst_planted_tv_L[level]:.2f}): the classifier sees contents, not quality; choose "
            "references with the contents of the pool"
        )
    return found
