"""Sequential bisection: ask where the answer is least certain, and stop when it is not.

The curve is taken for a power law, logit = -t (m / sigma)^p with t = -logit(tau): it passes the
threshold at m. A posterior over m (with one place for "usable everywhere" and one for "never") is
kept on a grid for each image; each round asks two opposite noisings at the posterior's median.
The noise of an answer, how far curves are from the law, and the prior of m are measured on pilot
images with a full grid.

Legend: N images, B batch, M places of m, R rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ambient_omni.classifier.annotators import (
    Curves,
    Floats,
    Grid,
    Images,
    Oracle,
    antithetic_noises,
    shift_by_shared_noises,
)
from ambient_omni.classifier.config import GridConfig, SequentialConfig
from ambient_omni.noise.crossing import find_crossings

_EXPONENTS = (1.0, 1.5, 2.0, 3.0)
_PLACES_PER_OCTAVE = 8
_BEYOND = 2.0  # octaves past either end of the levels that stand for "everywhere" and "never"
_LEAST_SPREAD = 0.15  # of the bent logit: no curve follows a power law more closely


@dataclass(frozen=True)
class Prior:
    """What is known before the first question.

    Attributes:
        log_places: (M,) ln m.
        log_weight: (M,) log prior probability.
        exponent: p of the law.
        spread: standard deviation of the bent logit of one pair of noisings about the law.
    """

    log_places: Floats
    log_weight: Floats
    exponent: float
    spread: float


class Bisection:
    """Asks two noisings at a time at each image's own level."""

    def __init__(
        self,
        classifier: Oracle,
        config: SequentialConfig,
        seed: int,
        *,
        prior: Prior | None = None,
    ) -> None:
        self._classifier, self._config, self._seed = classifier, config, seed
        self._t = -float(np.log(config.tau / (1 - config.tau)))
        self._prior = prior

    def learn_prior(self, x0_NCHW: Images, sample_ids: Sequence[str]) -> Prior:
        """Grade pilot images on a full grid and keep what they teach."""
        count = self._config.num_pilot_images
        x0, names = x0_NCHW[:count], list(sample_ids[:count])
        grid = GridConfig(num_noises=2)
        shift = shift_by_shared_noises(self._classifier, grid, self._seed, names, x0.__getitem__)
        pilot = Grid(self._classifier, grid, self._seed, shift).curves(x0, names)
        self._prior = _learn(pilot, self._config.tau, self._t)
        return self._prior

    def curves(self, x0_BCHW: Images, sample_ids: Sequence[str]) -> Curves:
        """Return each image's law at the classifier's levels, and what it cost.

        The first call learns the prior from its first images; their pilot costs are not counted.
        """
        prior = self._prior or self.learn_prior(x0_BCHW, sample_ids)
        sigmas = self._classifier.sigmas
        posterior_BM = np.tile(prior.log_weight, (len(x0_BCHW), 1))
        spent = np.zeros(len(x0_BCHW), np.int32)
        noises = antithetic_noises(
            self._config.max_evaluations, x0_BCHW.shape[1:], self._seed
        )  # (R first, R mirrored)
        num_rounds = self._config.max_evaluations // 2
        for number in range(num_rounds):
            _, deviation = _moments(posterior_BM, prior.log_places)
            is_open = deviation > self._config.tolerance_octaves * np.log(2)
            # However sure the prior is: every image is looked at once.
            open_rows = np.flatnonzero(is_open | (number == 0))
            if not len(open_rows):
                break
            at = np.clip(
                _median(posterior_BM[open_rows], prior.log_places), *np.log(sigmas[[0, -1]])
            )
            pair = noises[[number, number + num_rounds]]
            said = self._classifier.ask(
                x0_BCHW[open_rows],
                [sample_ids[int(i)] for i in open_rows],
                np.repeat(np.exp(at)[:, None], 2, axis=1),
                pair,
            ).mean(axis=1)
            posterior_BM[open_rows] += _log_likelihood(said, at, prior, self._t)
            spent[open_rows] += 2
        return self._as_curves(posterior_BM, prior, sigmas, spent)

    def _as_curves(
        self, posterior_BM: Floats, prior: Prior, sigmas: Floats, spent: NDArray[np.int32]
    ) -> Curves:
        mean, deviation = _moments(posterior_BM, prior.log_places)
        logits = _law(np.log(sigmas), mean[:, None], prior.exponent, self._t)
        # d logit / d ln m = -p t (m / sigma)^p = p logit
        errors = np.abs(prior.exponent * logits * deviation[:, None])
        return Curves(sigmas, logits.astype(np.float32), errors.astype(np.float32), spent)


def _learn(pilot: Curves, tau: float, t: float) -> Prior:
    log_sigmas = np.log(pilot.sigmas)
    low, high = log_sigmas[[0, -1]] + np.array([-_BEYOND, _BEYOND]) * np.log(2)
    num_places = int((high - low) / np.log(2) * _PLACES_PER_OCTAVE) + 1
    places = np.linspace(low, high, num_places)
    found = find_crossings(pilot.logits, pilot.sigmas, tau, decay_exponent=2.0).sigma_min
    m = np.where(np.isnan(found), high, np.log(np.maximum(found, np.exp(low))))
    # A quarter of the weight is spread evenly: a pilot of some dozens does not know everything.
    kernel = np.exp(-0.5 * ((places[:, None] - m[None]) / (0.5 * np.log(2))) ** 2)
    kernel /= kernel.sum(axis=0)
    weight = 0.75 * kernel.mean(axis=1) + 0.25 / num_places
    best = min(_EXPONENTS, key=lambda p: _misfit(pilot, m, p, t))
    spread = max(_LEAST_SPREAD, float(np.sqrt(_misfit(pilot, m, best, t))))
    return Prior(places, np.log(weight), best, spread)


def _misfit(pilot: Curves, m: Floats, exponent: float, t: float) -> float:
    """Return the mean square deviation of bent logits from the law, within two octaves of m."""
    log_sigmas = np.log(pilot.sigmas)
    near = np.abs(log_sigmas[None] - m[:, None]) < 2 * np.log(2)
    if not near.any():
        return 1.0
    gap = _bent(pilot.logits, t) - _bent(_law(log_sigmas, m[:, None], exponent, t), t)
    return float(np.median(gap[near] ** 2) / 0.455)  # median of chi-square: few curves are odd


def _law(log_sigma: Floats, log_m: Floats, exponent: float, t: float) -> Floats:
    # e^40 is past every logit a float32 network gives.
    law: Floats = -t * np.exp(np.minimum(exponent * (log_m - log_sigma), 40.0))
    return law


def _bent(logits: NDArray[np.floating], t: float) -> Floats:
    bent: Floats = np.arcsinh(np.asarray(logits, np.float64) / t)
    return bent


def _log_likelihood(said_B: Floats, log_at_B: Floats, prior: Prior, t: float) -> Floats:
    law_BM = _law(log_at_B[:, None], prior.log_places[None], prior.exponent, t)
    gap = (_bent(said_B, t)[:, None] - _bent(law_BM, t)) / prior.spread
    # Student's t with 4 degrees: one odd answer does not decide for good.
    return -2.5 * np.log1p(gap**2 / 4)


def _weights(log_BM: Floats) -> Floats:
    weights: Floats = np.exp(log_BM - log_BM.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def _moments(log_BM: Floats, places_M: Floats) -> tuple[Floats, Floats]:
    weights = _weights(log_BM)
    mean = weights @ places_M
    variance = weights @ places_M**2 - mean**2
    return mean, np.sqrt(np.maximum(variance, 0))


def _median(log_BM: Floats, places_M: Floats) -> Floats:
    first_half = np.cumsum(_weights(log_BM), axis=1) < 0.5
    middle: Floats = places_M[np.minimum(first_half.sum(axis=1), len(places_M) - 1)]
    return middle
