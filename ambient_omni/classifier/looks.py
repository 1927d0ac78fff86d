"""A few looks of the classifier itself, to move a head's curve to where it belongs.

A head is quick and mostly right, but where it is wrong it is wrong by octaves, and it cannot know.
A pair of opposite noisings is noisy and nearly unbiased. So the head's curve is the prior: the true
curve is taken for the head's, moved by delta in ln sigma, with delta Cauchy-distributed about 0 at
the scale of the head's own check. A small deviation is mostly the noise of the looks and is
shrunk; a large one is believed. Looks stand below the crossing, where the logit is far from 0
beside its noise.

Legend: B images, L levels, M places of delta.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ambient_omni.classifier.annotators import (
    Curves,
    Floats,
    Images,
    Oracle,
    Reading,
    antithetic_noises,
    bent,
    unbent,
)
from ambient_omni.noise.crossing import monotone_fit

Ask = Callable[[Floats, int], Floats]
"""Given (B,) levels and the number of the look: (B,) mean logits of a pair of noisings there."""

_BELOW_OCTAVES = 1.5
_FURTHEST_OCTAVES = 5.0
_NUM_PLACES = 401
_LEAST_SCALE_OCTAVES = 0.02
_LEAST_SPREAD = 0.05
_DEGREES = 4.0  # Student's t of a look: one odd answer does not decide for good


def ask_pairs(classifier: Oracle, x0_BCHW: Images, sample_ids: Sequence[str], seed: int) -> Ask:
    """Return how a classifier is asked about images: opposite noisings, the same for all images."""

    def ask(sigma_B: Floats, number: int) -> Floats:
        pair = antithetic_noises(2, x0_BCHW.shape[1:], seed, "look", number)
        sigmas_BQ = np.repeat(sigma_B[:, None], 2, axis=1)
        mean: Floats = classifier.ask(x0_BCHW, sample_ids, sigmas_BQ, pair).mean(axis=1)
        return mean

    return ask


def look(
    curves: Curves,
    ask: Ask,
    *,
    scale_octaves_B: Floats,
    offset_BK: Floats,
    spread_B: Floats,
    reading: Reading,
) -> Curves:
    """Return a head's curves moved to where the classifier's own answers want them.

    Args:
        curves: of the head.
        ask: the classifier.
        scale_octaves_B: median absolute error of the level, of the head that answered.
        offset_BK: by how much each of K looks is off for every image, in bent logits: a look is
            one pair of noises, and images share it. K pairs cost 2 K evaluations.
        spread_B: standard deviation of a look about that.
        reading: where a curve's crossing is.
    """
    places = np.linspace(-1, 1, _NUM_PLACES) * _FURTHEST_OCTAVES * np.log(2)
    scale = np.maximum(scale_octaves_B, _LEAST_SCALE_OCTAVES)[:, None] * np.log(2)
    log_BM = -np.log1p((places / scale) ** 2)
    spread = np.maximum(spread_B, _LEAST_SPREAD)[:, None]
    start = _log_crossings(curves, reading)
    mean = deviation = np.zeros(len(start))
    for number, offset_B in enumerate(offset_BK.T):
        at = _below(start + mean, curves.sigmas)
        seen = bent(ask(np.exp(at), number)) - offset_B
        wanted = _read(curves, at[:, None] - places)
        gap = (seen[:, None] - wanted) / spread
        log_BM -= (_DEGREES + 1) / 2 * np.log1p(gap**2 / _DEGREES)
        mean, deviation = _moments(log_BM, places)
    return _moved(curves, mean, deviation, 2 * offset_BK.shape[1])


def errors_of_looks(
    curves: Curves, truth: Curves, ask: Ask, num_looks: int, reading: Reading
) -> tuple[Floats, float]:
    """Return the offset of each look, and the standard deviation about it; both robust.

    Args:
        curves: of the head: they say where one looks.
        truth: of the exhaustive search, of the same images.
        ask: the classifier.
        num_looks: pairs an image.
        reading: where a curve's crossing is.
    """
    if not num_looks:
        return np.zeros(0), 0.0
    at = _below(_log_crossings(curves, reading), curves.sigmas)
    wanted = _read(truth, at[:, None])[:, 0]
    gap_BK = np.stack([bent(ask(np.exp(at), k)) - wanted for k in range(num_looks)], axis=1)
    offset_K = np.median(gap_BK, axis=0)
    return offset_K, float(1.4826 * np.median(np.abs(gap_BK - offset_K)))


def _log_crossings(curves: Curves, reading: Reading) -> Floats:
    """Return ln of the crossings, (B,); everywhere and never count as the ends of the levels."""
    found = reading.crossings(curves).sigma_min
    start: Floats = np.log(
        np.clip(np.where(np.isnan(found), np.inf, found), *curves.sigmas[[0, -1]])
    )
    return start


def _below(log_level_B: Floats, sigmas_L: Floats) -> Floats:
    low, high = np.log(sigmas_L[[0, -1]])
    below: Floats = np.clip(log_level_B - _BELOW_OCTAVES * np.log(2), low, high)
    return below


def _moved(curves: Curves, delta_B: Floats, deviation_B: Floats, evaluations: int) -> Curves:
    log_sigmas = np.log(curves.sigmas)
    logits = unbent(_read(curves, log_sigmas[None] - delta_B[:, None]))
    # What moves a curve sideways by some ln sigma changes its logit by the slope times that.
    errors = np.abs(np.gradient(logits, log_sigmas, axis=1)) * deviation_B[:, None]
    return Curves(
        curves.sigmas,
        logits.astype(np.float32),
        errors.astype(np.float32),
        (curves.evaluations + evaluations).astype(np.int32),
    )


def _read(curves: Curves, at_BM: Floats) -> Floats:
    """Return (B, M) bent logits of each curve at its own ln levels.

    Beyond its ends a curve goes on as it goes over the octave next to them.
    """
    rows, log_sigmas = bent(monotone_fit(curves.logits)), np.log(curves.sigmas)
    low, high = log_sigmas[[0, -1]]
    inside = _interpolated(rows, log_sigmas, np.clip(at_BM, low, high))
    octave = np.log(2)
    ends = np.tile([low, low + octave, high - octave, high], (len(rows), 1))
    slopes = np.diff(_interpolated(rows, log_sigmas, ends), axis=1)[:, [0, 2]] / octave
    left, right = np.maximum(low - at_BM, 0), np.maximum(at_BM - high, 0)
    read: Floats = inside - left * slopes[:, :1] + right * slopes[:, 1:]
    return read


def _interpolated(rows_BL: Floats, log_sigmas_L: Floats, at_BM: Floats) -> Floats:
    right = np.clip(np.searchsorted(log_sigmas_L, at_BM), 1, len(log_sigmas_L) - 1)
    share = (at_BM - log_sigmas_L[right - 1]) / (log_sigmas_L[right] - log_sigmas_L[right - 1])
    low, high = (np.take_along_axis(rows_BL, index, axis=1) for index in (right - 1, right))
    between: Floats = low + share * (high - low)
    return between


def _moments(log_BM: Floats, places_M: Floats) -> tuple[Floats, Floats]:
    weights = np.exp(log_BM - log_BM.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    mean = weights @ places_M
    return mean, np.sqrt(np.maximum(weights @ places_M**2 - mean**2, 0))
