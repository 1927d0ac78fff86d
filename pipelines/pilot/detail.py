"""How much true fine detail a denoiser's output holds.

A denoiser that has only seen blurred images can have a low squared error: it leaves out what it is
not sure of. What is missing shows in the spectrum. The plain power of the output is no measure of
detail: a model that has learned its images by heart puts wrong detail everywhere. So the output is
projected on the clean image, frequency by frequency: what is there and right counts, what is made
up does not.

Legend: N images, C channels, H height, W width.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn

Floats = NDArray[np.float64]

FINE = 0.5
"""From which radial frequency on detail is fine, as a share of the highest along an axis."""


def fine_detail(
    denoised_NCHW: NDArray[np.floating], clean_NCHW: NDArray[np.floating]
) -> tuple[Floats, Floats, Floats]:
    """Return (right, whole, power) of fine detail per image, each (N,).

    right: product of output and clean image over fine frequencies; whole: the clean image's own
    power there; power: the output's. right / whole is the share of the true detail that is there.

    A cosine transform, not Fourier's: images do not wrap around, and edges would count as detail.
    """
    output, clean = (
        dctn(np.asarray(images, np.float64), type=2, axes=(2, 3), norm="ortho")
        for images in (denoised_NCHW, clean_NCHW)
    )
    fine = _fine_frequencies(clean.shape[2], clean.shape[3])
    right, whole, power = (
        (product * fine).sum(axis=(1, 2, 3)) for product in (output * clean, clean**2, output**2)
    )
    return right, whole, power


def detail_change(right_N: Floats, right_before_N: Floats, whole_N: Floats) -> tuple[float, float]:
    """Return how much more true detail one model holds than another, and its standard error.

    As a share of the clean images' mean fine power, paired by image; 0 where they have none.
    """
    scale = float(whole_N.mean())
    if scale <= 0:
        return 0.0, 0.0
    change = (right_N - right_before_N) / scale
    error = change.std(ddof=1) / np.sqrt(len(change)) if len(change) > 1 else 0.0
    return float(change.mean()), float(error)


def _fine_frequencies(height: int, width: int) -> NDArray[np.bool_]:
    down = np.arange(height)[:, None] / height
    across = np.arange(width)[None, :] / width
    fine: NDArray[np.bool_] = np.hypot(down, across) >= FINE
    return fine
