"""From what pilot trainings measured to a threshold per band.

Legend: C candidates from the laxest to the strictest (the last accepts nothing), K bands of levels
from low to high, N images, L levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Candidates by band; each field is (C, K). Gains are against the last candidate.

    gain: relative fall of held-out loss, (reference - candidate) / reference.
    gain_error: its standard error, paired by image.
    fine_gain: the same of the squared error at fine frequencies alone.
    fine_gain_error: its standard error.
    missing: how much too weak the candidate's own fine detail is; see `detail.missing_detail`.
    missing_error: its standard error.
    """

    gain: Floats
    gain_error: Floats
    fine_gain: Floats
    fine_gain_error: Floats
    missing: Floats
    missing_error: Floats


def choose(found: Comparison, detail_tolerance: float) -> list[int]:
    """Return the candidate of each band.

    A candidate is accepted in a band where it lowers the loss by more than its standard error, is
    not worse at fine frequencies by more than that, and does not put fine detail out too weak by
    more than the tolerance, beyond its own error. As levels rise candidates may only get laxer
    (see `PilotCalibrated`), so the best sequence is chosen, not the best of each band: the one
    with the largest sum of gains, each less its error.
    """
    value = found.gain - found.gain_error
    is_worse = found.fine_gain + found.fine_gain_error < 0
    is_soft = found.missing - found.missing_error > detail_tolerance
    value[(value <= 0) | is_worse | is_soft] = -np.inf
    value[-1] = 0.0
    return best_sequence(value)


def best_sequence(value_CK: Floats) -> list[int]:
    """Return the never-rising candidate numbers with the largest sum; ties take the stricter."""
    num_candidates, num_bands = value_CK.shape
    # best[c]: largest sum of the bands so far that ends with candidate c.
    best, steps = value_CK[:, 0].copy(), []
    for band in range(1, num_bands):
        # From candidate p to c <= p; the strictest of equals.
        previous = np.array(
            [c + _last_max(best[c:]) for c in range(num_candidates)], dtype=np.int64
        )
        steps.append(previous)
        best = best[previous] + value_CK[:, band]
    chosen = [_last_max(best)]
    for previous in reversed(steps):
        chosen.append(int(previous[chosen[-1]]))
    return chosen[::-1]


def in_bands(values_NL: Floats, sigmas: Sequence[float], edges: Sequence[float]) -> Floats:
    """Return the mean over each band's levels, (N, K)."""
    band = np.searchsorted(np.array(edges), np.array(sigmas), side="right")
    return np.stack(
        [values_NL[:, band == number].mean(axis=1) for number in range(len(edges) + 1)], axis=1
    )


def relative_gain(loss_NK: Floats, reference_NK: Floats) -> tuple[Floats, Floats]:
    """Return (fall of the loss, standard error) relative to the reference's, each (K,)."""
    scale = reference_NK.mean(axis=0)
    fall = (reference_NK - loss_NK) / scale
    error = fall.std(axis=0, ddof=1) / np.sqrt(len(fall)) if len(fall) > 1 else np.zeros(len(scale))
    return fall.mean(axis=0), error


def _last_max(values: Floats) -> int:
    return len(values) - 1 - int(np.argmax(values[::-1]))
