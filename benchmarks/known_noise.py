"""Noise of known strength: where the annotation must come out, and where it does.

Used by `benchmarks.annotation`. Two checks with known answers:

* Photos that already carry white noise of strength s and are noised *up to* a level, as an
  ambient trainer does it: from sigma = s on they are clean photos, so that is the crossing.
* Gaussian images with noise *on top*: there the best classifier can be written down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ambient_omni import rng
from ambient_omni.classifier.annotators import Grid, shift_by_shared_noises
from ambient_omni.classifier.calibration import Calibration, calibrate
from ambient_omni.classifier.config import ClassifierConfig, GridConfig
from ambient_omni.classifier.grader import Fold, NoiseClassifier
from ambient_omni.classifier.network import NoiseClassifierNetwork
from ambient_omni.classifier.training import Sides, grade, train_fold
from ambient_omni.data.packs import to_x0
from ambient_omni.noise.crossing import find_crossings
from benchmarks import photos
from benchmarks.common import cache_folder
from schemas.ids import canonical_hash

CARRIED = (0.05, 0.10, 0.20)
TAU = 0.45
ON_TOP = 0.1
NUM_TILES = 200
NETWORK = 2
"""Raised with the network's code: what is kept from before is another network's."""

_SIDE = 32
_UP_TO = ClassifierConfig.model_validate(
    {
        "num_images": 30_000,
        "augment": "geometry",
        "order": {"weight": 0.0},
        "sigma_low": 0.03,
        "sigma_high": 0.5,
        "num_levels": 80,
        "num_noises": 2,
    }
)
_GAUSSIAN = _UP_TO.model_copy(
    update={
        "sigma_low": 0.1,
        "sigma_high": 3.0,
        "num_levels": 24,
        "num_noises": 2,
        "num_images": 90_000,
    }
)


@dataclass(frozen=True)
class Floats:
    """Images that are no pixels any more: float32 (N, C, H, W) about [-1, 1]."""

    x0: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.x0)

    def take(self, indices: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return some."""
        return self.x0[indices]


class NoisedUpTo:
    """A classifier that is asked about images which carry noise `carried` already."""

    def __init__(self, classifier: NoiseClassifier, carried: float) -> None:
        self._classifier, self._carried = classifier, carried
        self.sigmas = classifier.sigmas

    @property
    def num_folds(self) -> int:
        """As the classifier."""
        return self._classifier.num_folds

    def folds_of(self, sample_ids: Sequence[str]) -> NDArray[np.int32]:
        """As the classifier."""
        return self._classifier.folds_of(sample_ids)

    def ask(self, x0_BCHW, sample_ids, sigmas_BQ, noises_Q):
        """As the classifier; all images must be asked at the same levels."""
        level_Q = np.asarray(sigmas_BQ)[0]
        missing_Q = np.sqrt(np.maximum(level_Q**2 - self._carried**2, 0)) / level_Q
        noises = [noise * np.float32(f) for noise, f in zip(noises_Q, missing_Q, strict=True)]
        return self._classifier.ask(x0_BCHW, sample_ids, sigmas_BQ, noises)


def crossings_of_carried_noise() -> dict[float, NDArray[np.float64]]:
    """Return, per strength, the levels found for held-out photos that carry such noise.

    Each strength is a pool of its own. Were they mixed, a third of the pool would be as good as
    the reference at the weakest one's level: there P(trusted) is 3/4, not 1/2, and the threshold
    is passed too early.
    """
    trusted, pool = photos.load("trusted"), photos.load("pool")
    # The scale of the logits is right as it is: thousands of images, and no calibration set
    # carries the very strength that is looked for.
    count = len(_UP_TO.sigmas)
    plain = Calibration(np.ones(count), np.zeros(count))
    tiles = photos.load("held_out")
    tiles = tiles.at(rng.permutation(len(tiles), 0, "known-noise")[:NUM_TILES])
    found = {}
    for strength in CARRIED:
        strengths = np.full(len(pool), strength)
        noisy = Floats(_carrying(pool, strengths, "pool"))
        sides = Sides(trusted, noisy, carried_noise=strengths)
        network = _trained(f"carried-{strength}", _UP_TO, sides)
        classifier = NoiseClassifier(_UP_TO, "tiles", [Fold(network, plain)], "carried")
        x0 = _carrying(tiles, np.full(len(tiles), strength), "held-out")
        asked, names = NoisedUpTo(classifier, strength), tiles.names()
        config = GridConfig(num_noises=2)
        shift = shift_by_shared_noises(asked, config, 0, names, x0.__getitem__)
        curves = Grid(asked, config, 0, shift).curves(x0, names)
        found[strength] = find_crossings(
            curves.logits, curves.sigmas, TAU, smoothing_octaves=0.0
        ).sigma_min
    return found


def gaussian_model() -> tuple[float, float]:
    """Return the level that a trained classifier finds and the one of the best classifier."""
    clean, bad = (_gaussian_images(3_000, side) for side in ("clean", "bad"))
    draw = rng.generator(0, "known-noise", "on-top")
    bad += ON_TOP * draw.standard_normal(bad.shape, dtype=np.float32)
    network = _trained("gaussian", _GAUSSIAN, Sides(Floats(clean[200:]), Floats(bad[200:])))
    trusted_NLK, bad_NLK = (grade(network, side[:200], _GAUSSIAN) for side in (clean, bad))
    mean_L = calibrate(trusted_NLK, bad_NLK).apply(bad_NLK).mean(axis=(0, 2))
    found = find_crossings(mean_L[None], _GAUSSIAN.sigmas, TAU, smoothing_octaves=0.25)
    dense = np.geomspace(_GAUSSIAN.sigma_low, _GAUSSIAN.sigma_high, 2_000)
    # E over bad images of ln p(x | clean) / p(x | bad) = -1/2 sum of (r - ln(1 + r)) over
    # frequencies, r = s^2 / (power + sigma^2): the two differ in variance alone.
    r = ON_TOP**2 / (_spectrum().ravel()[None] + dense[:, None] ** 2)
    best = -0.5 * 3 * (r - np.log1p(r)).sum(axis=1)
    truth = find_crossings(best[None], dense, TAU, smoothing_octaves=0.0)
    return float(found.sigma_min[0]), float(truth.sigma_min[0])


def _spectrum() -> NDArray[np.float64]:
    """Return the (32, 32) variance of each Fourier coefficient: 1 / f^2, like photographs."""
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(_SIDE) * _SIDE] * 2))
    power = 1 / np.maximum(frequency, 1.0) ** 2
    return 0.3**2 * power / power.mean()


def _gaussian_images(count: int, address: str) -> NDArray[np.float32]:
    """Return float32 (count, 3, 32, 32): periodic, channels alike and independent."""
    white = rng.generator(0, "known-noise", address).standard_normal((count, 3, _SIDE, _SIDE))
    coefficients = np.fft.fft2(white, norm="ortho") * np.sqrt(_spectrum())
    return np.fft.ifft2(coefficients, norm="ortho").real.astype(np.float32)


def _carrying(tiles: photos.Tiles, strengths, address: str) -> NDArray[np.float32]:
    x0 = to_x0(tiles.pixels)
    noise = rng.generator(0, "carried-noise", address).standard_normal(x0.shape, dtype=np.float32)
    return (x0 + strengths[:, None, None, None].astype(np.float32) * noise).astype(np.float32)


def _trained(name: str, config: ClassifierConfig, sides: Sides) -> NoiseClassifierNetwork:
    key = canonical_hash([config.model_dump(mode="json"), NETWORK])
    file = cache_folder("annotation") / f"known-noise-{name}-{key}.pt"
    if not file.exists():
        torch.save(train_fold(sides, config, 0).state_dict(), file)
    network = NoiseClassifierNetwork(config.network, 3)
    network.load_state_dict(torch.load(file))
    return network.eval()
