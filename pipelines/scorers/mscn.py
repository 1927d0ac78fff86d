"""Natural scene statistics: normalised luma and fits of generalised Gaussians, over many images.

MSCN: mean-subtracted, contrast-normalised. Shapes: B images, H height, W width; `...` any.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

# Mittal, Moorthy, Bovik, TIP 21 (2012): a window of 7 x 7, standard deviation 7/6.
_RADIUS, _WINDOW_STD = 3, 7 / 6
_ALPHAS = np.arange(0.2, 10.0, 0.001)


def mscn(y_BHW: Array, floor: float) -> Array:
    """Subtract the local mean and divide by the local deviation plus `floor`; zeros outside."""
    mean = _blurred(y_BHW)
    deviation = np.sqrt(np.abs(_blurred(y_BHW * y_BHW) - mean * mean))
    normalised: Array = (y_BHW - mean) / (deviation + floor)
    return normalised


def _blurred(y_BHW: Array) -> Array:
    from scipy.ndimage import correlate1d

    taps = np.exp(-(np.arange(-_RADIUS, _RADIUS + 1) ** 2) / (2 * _WINDOW_STD**2))
    taps /= taps.sum()
    down = correlate1d(y_BHW, taps, axis=1, mode="constant")
    blurred: Array = correlate1d(down, taps, axis=2, mode="constant")
    return blurred


def fit_asymmetric(x: Array, axes: tuple[int, ...]) -> tuple[NDArray[np.float64], ...]:
    """Fit asymmetric generalised Gaussians by moments, over `axes`.

    Lasmar, Stitou, Berthoumieu, ICIP 2009: the shape alpha solves phi(alpha) = R with
    phi(a) = G(2/a)^2 / (G(1/a) G(3/a)) and R = r (g^3 + 1)(g + 1) / (g^2 + 1)^2, where
    g = left / right deviation and r = mean|x|^2 / mean x^2.

    Returns:
        alpha (0.2..10), left deviation, right deviation; NaN where all values are one.
    """
    square = x * x
    is_left = x < 0
    num_left = is_left.sum(axis=axes)
    total = square.sum(axis=axes, dtype=np.float64)
    left_total = np.where(is_left, square, 0).sum(axis=axes, dtype=np.float64)
    count = np.prod([x.shape[axis] for axis in axes])
    with np.errstate(invalid="ignore", divide="ignore"):
        left = np.sqrt(left_total / num_left)
        right = np.sqrt((total - left_total) / (count - num_left))
        g = left / right
        r = (np.abs(x).sum(axis=axes, dtype=np.float64) / count) ** 2 / (total / count)
        ratio = r * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
    alpha = np.interp(ratio, _ratios(), _ALPHAS)
    return np.where(np.isnan(ratio), np.nan, alpha), left, right


@cache
def _ratios() -> NDArray[np.float64]:
    from scipy.special import gamma

    found: NDArray[np.float64] = gamma(2 / _ALPHAS) ** 2 / (gamma(1 / _ALPHAS) * gamma(3 / _ALPHAS))
    return found


def mean_of_fit(
    alpha: NDArray[np.float64], left: NDArray[np.float64], right: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the mean (b_r - b_l) G(2/a) / G(1/a) with b = deviation * sqrt(G(1/a) / G(3/a))."""
    from scipy.special import gamma

    mean: NDArray[np.float64] = (
        (right - left)
        * np.sqrt(gamma(1 / alpha) / gamma(3 / alpha))
        * (gamma(2 / alpha) / gamma(1 / alpha))
    )
    return mean
