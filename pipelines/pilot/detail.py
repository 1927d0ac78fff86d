"""Whether a denoiser leaves out fine detail that it could know.

A denoiser that has only seen blurred images can have a low squared error: it leaves out what it is
not sure of. What is missing shows in the spectrum, but neither in the output's power there nor in
how much of it is right: a model that has learned its images by heart puts out more of both, right
and wrong detail alike. What tells the two apart is whether the output would come nearer to the
clean image if its fine frequencies were multiplied by some b. For the best denoiser, the
conditional mean, b is 1 (what it is wrong by is orthogonal to what it says). A model that makes
detail up has b < 1; one that was taught to leave it out has b > 1.

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


def missing_detail(right_N: Floats, power_N: Floats) -> tuple[float, float]:
    """Return b - 1 and its standard error, b = sum right / sum power: how much is left out.

    0.2 says that fine detail is put out a fifth too weak; below 0, more is put out than is right.
    Where nothing is put out b is not known: 0 with an infinite error. Delta method for a ratio of
    sums over images.
    """
    whole = float(power_N.sum())
    if whole <= 0:
        return 0.0, float("inf")
    count, slope = len(power_N), float(right_N.sum()) / whole
    if count < 2:
        return slope - 1, float("inf")
    residual = right_N - slope * power_N
    error = np.sqrt(count / (count - 1) * float(np.square(residual).sum())) / whole
    return slope - 1, float(error)


def _fine_frequencies(height: int, width: int) -> NDArray[np.bool_]:
    down = np.arange(height)[:, None] / height
    across = np.arange(width)[None, :] / width
    fine: NDArray[np.bool_] = np.hypot(down, across) >= FINE
    return fine
