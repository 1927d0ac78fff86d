"""Ways to ask a noise classifier about images: many questions and exact, or few and quick.

Every annotator answers with curves: mean over noisings of the calibrated logit of P(trusted), at
levels of its own, with standard errors and the number of network evaluations that were spent. How
a curve becomes a level is `noise.crossing`'s business and the same for all.

Legend: N images, B batch, L levels, Q questions, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ambient_omni import rng
from ambient_omni.classifier.config import (
    AnnotatorConfig,
    ExhaustiveConfig,
    GridConfig,
    SequentialConfig,
)
from ambient_omni.noise.crossing import (
    Crossings,
    crossing_interval,
    find_crossings,
    monotone_fit,
)
from schemas.errors import BadInput

Floats = NDArray[np.float64]
Images = NDArray[np.float32]
Noises = Images | Sequence[Images]
"""Each (C, H, W) if images share it, (B, C, H, W) if every image has its own."""
Take = Callable[[NDArray[np.int64]], Images]
"""Gives the images at some positions, in [-1, 1]."""

# Where |logit| is far above it, `bent` is logarithmic; below it, linear.
_BEND = 0.1

_LEAST_OWN_PAIRS = 2
# Pairs of own noises a fold: their mean is known to a few hundredths of a logit.
_MANY_ANSWERS = 256
_IMAGES_AT_ONCE = 64


@dataclass(frozen=True)
class Curves:
    """What an annotator says of B images.

    Attributes:
        sigmas: (L,) levels, ascending.
        logits: (B, L) float32, mean over noisings of the calibrated logit P(trusted).
        logit_standard_error: (B, L) float32, of that mean.
        evaluations: (B,) int32, network evaluations spent on each image.
    """

    sigmas: Floats
    logits: NDArray[np.float32]
    logit_standard_error: NDArray[np.float32]
    evaluations: NDArray[np.int32]

    def at(self, sigmas: NDArray[np.floating]) -> Curves:
        """Return the curves at other levels, by `read_between`; errors linearly in ln sigma."""
        wanted = np.asarray(sigmas, np.float64)
        if np.array_equal(wanted, self.sigmas):
            return self
        errors = np.stack(
            [np.interp(np.log(wanted), np.log(self.sigmas), e) for e in self.logit_standard_error]
        )
        logits = read_between(self.logits, self.sigmas, wanted)
        return Curves(
            wanted, logits.astype(np.float32), errors.astype(np.float32), self.evaluations
        )


@dataclass(frozen=True)
class Reading:
    """How a curve is read: the threshold and the settings of `noise.crossing.find_crossings`.

    A decay never reaches a threshold of 1/2 or more: there it does not count.
    """

    tau: float = 0.45
    smoothing_octaves: float = 0.25
    decay_exponent: float | None = 2.0

    def crossings(self, curves: Curves) -> Crossings:
        """Read curves."""
        return self.find(curves.logits, curves.logit_standard_error, curves.sigmas)

    def find(
        self,
        logits_NL: NDArray[np.floating],
        standard_error_NL: NDArray[np.floating],
        sigmas_L: NDArray[np.floating],
    ) -> Crossings:
        """Read curves given as arrays."""
        return find_crossings(
            logits_NL,
            sigmas_L,
            self.tau,
            standard_error_NL=standard_error_NL,
            smoothing_octaves=self.smoothing_octaves,
            decay_exponent=self.decay,
        )

    def interval(
        self,
        logits_NL: NDArray[np.floating],
        standard_error_NL: NDArray[np.floating],
        sigmas_L: NDArray[np.floating],
    ) -> tuple[Floats, Floats]:
        """Return the ends of the 90 % interval of sigma_min, (N,) each."""
        return crossing_interval(
            logits_NL,
            sigmas_L,
            self.tau,
            standard_error_NL,
            smoothing_octaves=self.smoothing_octaves,
            decay_exponent=self.decay,
        )

    @property
    def decay(self) -> float | None:
        """The exponent that counts."""
        return self.decay_exponent if self.tau < 0.5 else None


@dataclass(frozen=True)
class Answer:
    """Levels of B images.

    Attributes:
        crossings: sigma_min, null, slope, standard error.
        low: (B,) lower end of the 90 % interval of sigma_min; NaN for null.
        high: (B,) upper end.
        evaluations: (B,) int32.
    """

    crossings: Crossings
    low: Floats
    high: Floats
    evaluations: NDArray[np.int32]


class Oracle(Protocol):
    """What annotators need of a classifier."""

    @property
    def sigmas(self) -> Floats:
        """The (L,) levels it was calibrated at."""

    @property
    def num_folds(self) -> int:
        """How many networks it has."""

    def folds_of(self, sample_ids: Sequence[str]) -> NDArray[np.int32]:
        """Return the (B,) networks that may grade images."""

    def ask(
        self,
        x0_BCHW: Images,
        sample_ids: Sequence[str],
        sigmas_BQ: NDArray[np.floating],
        noises_Q: Noises,
    ) -> Floats:
        """Return (B, Q) calibrated logits: image b at its level q under noise q."""


class Annotator(Protocol):
    """One way to find curves."""

    def curves(self, x0_BCHW: Images, sample_ids: Sequence[str]) -> Curves:
        """Return the curves of images in [-1, 1], all of one size; the batch does not matter."""


def annotate(
    annotator: Annotator, x0_BCHW: Images, sample_ids: Sequence[str], reading: Reading
) -> Answer:
    """Return from which level on each image is usable, how sure that is, and what it cost."""
    found = annotator.curves(x0_BCHW, sample_ids)
    low, high = reading.interval(found.logits, found.logit_standard_error, found.sigmas)
    return Answer(reading.crossings(found), low, high, found.evaluations)


def make_annotator(config: AnnotatorConfig, classifier: Oracle, *, seed: int) -> Annotator:
    """Return the annotator of some settings, as it is before anything was measured for it.

    Raises:
        BadInput: the settings ask for a head: those are trained, see `classifier.head`.
    """
    if isinstance(config, GridConfig):
        return Grid(classifier, config, seed)
    if isinstance(config, ExhaustiveConfig):
        return ExhaustiveSearch(classifier, config, seed)
    if isinstance(config, SequentialConfig):
        from ambient_omni.classifier.bisection import Bisection

        return Bisection(classifier, config, seed)
    raise BadInput("a head has to be distilled first: see `train_head`, or use a grid")


class Grid:
    """Every image at the same levels, each level under noises of its own, with mirror images.

    Images share the noises, so that two curves differ by what they show and not by luck. Levels do
    not: under one noise a whole curve is shifted, and no smoothing over levels would notice. What
    the noises do to all images alike is taken off again: see `shift_by_shared_noises`.
    """

    def __init__(
        self, classifier: Oracle, config: GridConfig, seed: int, shift_FLK: Floats | None = None
    ) -> None:
        """`shift_FLK`: of these very settings and this seed; None takes nothing off."""
        self._classifier, self._config, self._seed = classifier, config, seed
        self._shift_FLK = shift_FLK
        calibrated = classifier.sigmas
        self.sigmas = (
            calibrated
            if config.num_levels is None
            else np.geomspace(calibrated[0], calibrated[-1], config.num_levels)
        )

    def curves(self, x0_BCHW: Images, sample_ids: Sequence[str]) -> Curves:
        """Return curves at the grid's levels."""
        said_BLK = self.answers(x0_BCHW, sample_ids)
        if self._shift_FLK is not None:
            said_BLK -= self._shift_FLK[self._classifier.folds_of(sample_ids)]
        return Curves(
            self.sigmas,
            said_BLK.mean(axis=2).astype(np.float32),
            _error_of_pairs(said_BLK).astype(np.float32),
            np.full(len(x0_BCHW), np.prod(said_BLK.shape[1:]), np.int32),
        )

    def answers(self, x0_BCHW: Images, sample_ids: Sequence[str]) -> Floats:
        """Return (B, L, K) logits as they are, nothing taken off."""
        num_levels, num_noises = len(self.sigmas), self._config.num_noises
        noises = [
            antithetic_noises(num_noises, x0_BCHW.shape[1:], self._seed, level)
            for level in range(num_levels)
        ]
        sigmas_BQ = np.broadcast_to(
            np.repeat(self.sigmas, num_noises), (len(x0_BCHW), num_levels * num_noises)
        )
        said_BQ = self._classifier.ask(x0_BCHW, sample_ids, sigmas_BQ, np.concatenate(noises))
        return said_BQ.reshape(len(x0_BCHW), num_levels, num_noises)


def shift_by_shared_noises(
    classifier: Oracle, config: GridConfig, seed: int, sample_ids: Sequence[str], take: Take
) -> Floats:
    """Return by how much each noise of a grid raises the answers about all images, (F, L, K).

    A few noises that all images share move all curves up or down, level by level, and the levels
    read off them with them, by up to half an octave. The shift is measured on images of the pool:
    their mean answer under a noise of the grid, less that under noises of their own. It differs
    between fold and fold, and between pool and trusted images, so the latter are no help.

    Args:
        classifier: that answers.
        config: of the grid.
        seed: of the grid.
        sample_ids: images of the pool; a few hundred a fold are plenty.
        take: gives some of them.

    Returns:
        Logits; NaN for a fold that may grade none of the images.
    """
    grid, folds = Grid(classifier, config, seed), classifier.folds_of(sample_ids)
    counts = np.bincount(folds, minlength=classifier.num_folds)
    fewest = counts[counts > 0].min(initial=_MANY_ANSWERS)
    num_pairs = max(_LEAST_OWN_PAIRS, -(-_MANY_ANSWERS // int(fewest)))
    own_BL = under_own_noises(classifier, sample_ids, take, grid.sigmas, num_pairs, seed)
    sums = np.zeros((classifier.num_folds, len(grid.sigmas), config.num_noises))
    for part in _parts(len(sample_ids)):
        said_BLK = grid.answers(take(part), [sample_ids[i] for i in part])
        np.add.at(sums, folds[part], said_BLK - own_BL[part, :, None])
    with np.errstate(invalid="ignore"):
        shift: Floats = sums / counts[:, None, None]
    return shift


def under_own_noises(
    classifier: Oracle,
    sample_ids: Sequence[str],
    take: Take,
    sigmas_L: Floats,
    num_pairs: int,
    seed: int,
) -> Floats:
    """Return (N, L) mean logits over pairs of opposite noises that no other image or level has.

    One image's answer is noisier than a grid's; the mean of many is right, whatever they are.
    """
    out = np.zeros((len(sample_ids), len(sigmas_L)))
    for part in _parts(len(sample_ids)):
        x0_BCHW, names = take(part), [sample_ids[i] for i in part]
        shape = x0_BCHW.shape[1:]
        for level, sigma in enumerate(sigmas_L):
            sigmas_BQ = np.full((len(part), 2), sigma)
            for pair in range(num_pairs):
                half = rng.normal_rows(part, shape, seed, "classifier-own", level, pair)
                said_BQ = classifier.ask(x0_BCHW, names, sigmas_BQ, [half, -half])
                out[part, level] += said_BQ.mean(axis=1) / num_pairs
    return out


def _parts(count: int) -> list[NDArray[np.int64]]:
    """Return positions in parts that fit into memory with two noises of each image's own."""
    return np.array_split(np.arange(count), -(-count // _IMAGES_AT_ONCE)) if count else []


def _error_of_pairs(said_BLK: Floats) -> Floats:
    """Return the (B, L) standard error of the mean over K noisings that are K / 2 mirrored pairs.

    What is odd in the noise cancels within a pair, so pairs are what varies. A single pair says
    nothing about that: its two halves are then taken as independent, which is cautious.
    """
    half = said_BLK.shape[2] // 2
    pairs = (said_BLK[..., :half] + said_BLK[..., half:]) / 2
    parts = pairs if half > 1 else said_BLK
    error: Floats = parts.std(axis=2, ddof=1) / np.sqrt(parts.shape[2])
    return error


class ExhaustiveSearch:
    """The yardstick: many levels, fresh noises at each; slow and plain.

    Levels stand evenly in ln sigma. Their answers are averaged over bins that are narrow beside
    the smoothing of the reading (`ExhaustiveConfig.num_bins`), so that the rest of the road is
    that of any other curve. Images of one run share the noises; `run` names them, so that a second
    run is an independent repeat.
    """

    def __init__(
        self, classifier: Oracle, config: ExhaustiveConfig, seed: int, *, run: int = 0
    ) -> None:
        self._classifier, self._config = classifier, config
        self._address = (seed, "oracle-noise", run)
        low, high = np.log(classifier.sigmas[[0, -1]])
        edges = np.linspace(low, high, config.num_levels + 1)
        self._levels = np.exp((edges[:-1] + edges[1:]) / 2)

    def curves(self, x0_BCHW: Images, sample_ids: Sequence[str]) -> Curves:
        """Return curves at the bins' middles."""
        config, count = self._config, len(x0_BCHW)
        seed, purpose, run = self._address
        bins = np.array_split(np.arange(config.num_levels), config.num_bins)
        logits = np.empty((count, config.num_bins), np.float32)
        errors = np.empty_like(logits)
        for number, members in enumerate(bins):
            shape = (len(members) * config.num_noises, *x0_BCHW.shape[1:])
            noises = rng.normal(shape, seed, purpose, run, number)
            levels = np.repeat(self._levels[members], config.num_noises)
            said_BQ = self._classifier.ask(
                x0_BCHW, sample_ids, np.broadcast_to(levels, (count, len(levels))), noises
            )
            logits[:, number] = said_BQ.mean(axis=1)
            errors[:, number] = said_BQ.std(axis=1, ddof=1) / np.sqrt(said_BQ.shape[1])
        middles = np.exp([np.log(self._levels[members]).mean() for members in bins])
        evaluations = np.full(count, config.num_levels * config.num_noises, np.int32)
        return Curves(middles, logits, errors, evaluations)


def antithetic_noises(
    count: int, shape_CHW: Sequence[int], seed: int, *position: int | str
) -> Images:
    """Return (count, C, H, W) noises, the second half being the first with the other sign."""
    half = rng.normal((count // 2, *shape_CHW), seed, "classifier-noise", *position)
    return np.concatenate([half, -half])


def bent(logits: NDArray[np.floating]) -> Floats:
    """Return asinh(logit / 0.1): a power of the level is a straight line in it over ln sigma."""
    bend: Floats = np.arcsinh(np.asarray(logits, np.float64) / _BEND)
    return bend


def unbent(values: Floats) -> Floats:
    """Return the logits of bent ones."""
    logits: Floats = _BEND * np.sinh(values)
    return logits


def read_between(
    logits_NL: NDArray[np.floating], sigmas_L: Floats, wanted_M: NDArray[np.floating]
) -> Floats:
    """Return never-falling curves between their levels, (N, M).

    The logit of a damaged image decays to 0 like a power of the level: a straight line for
    ln(-logit) over ln sigma, and far from one for the logit. So it is read bent, which is the
    former where the logit is large and the latter near 0.
    """
    fitted = bent(monotone_fit(logits_NL))
    at, log_sigmas = np.log(wanted_M), np.log(sigmas_L)
    return unbent(np.stack([np.interp(at, log_sigmas, row) for row in fitted]))
