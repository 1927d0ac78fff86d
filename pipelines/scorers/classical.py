"""Classical measures of an image, out of sums that are made in one pass over its pixels.

Shapes: B images, H height, W width. Luma is 0..255. Each function returns float64 (B,).
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.scorers import pixels as pixels_module
from pipelines.scorers import sums as sums_module
from pipelines.scorers.base import Pack, Scorer
from pipelines.scorers.pixels import Pixels
from pipelines.scorers.sums import BLOCK, MILLI, num_steps

# A step of one luma level is rounding; added to both sides of the ratio it keeps flat images at 1.
_STEP_FLOOR = 1.0


def sharpness(pixels: Pixels) -> NDArray[np.float64]:
    """Variance of the 4-neighbour Laplacian of luma."""
    _, height, width = pixels.shape
    num = (height - 2) * (width - 2)
    mean = pixels.sums.laplacian / num
    variance = np.maximum(pixels.sums.laplacian_square / num - mean**2, 0.0)
    return np.asarray(variance / MILLI**2)


def blockiness(pixels: Pixels) -> NDArray[np.float64]:
    """Mean luma step across borders of the 8x8 grid, over the mean step elsewhere; 1 = no grid.

    The grid begins at the upper left pixel, as JPEG's does; a crop or resize after compression
    moves it and hides it from this measure.
    """
    num_border, num_inner = num_steps(*pixels.shape[1:])
    border = pixels.sums.border_steps / num_border / MILLI
    inner = pixels.sums.inner_steps / num_inner / MILLI
    return np.asarray((border + _STEP_FLOOR) / (inner + _STEP_FLOOR))


def noise_std(pixels: Pixels) -> NDArray[np.float64]:
    """Standard deviation of white noise in luma, by the difference of two Laplacians.

    The mask [[1, -2, 1], [-2, 4, -2], [1, -2, 1]] is blind to constant and linear shading;
    fine texture counts as noise.
    """
    _, height, width = pixels.shape
    # For N(0, s^2) noise the response has variance 36 s^2 and mean magnitude 6 s sqrt(2/pi).
    mean_magnitude = pixels.sums.double_laplacian / ((height - 2) * (width - 2)) / MILLI
    return np.asarray(np.sqrt(np.pi / 2) / 6 * mean_magnitude)


def saturation(pixels: Pixels) -> NDArray[np.float64]:
    """Mean of HSV saturation, (max - min) / max, black counting as 0."""
    _, height, width = pixels.shape
    # Float32 sums of shares may end a hair above their number.
    return np.minimum(pixels.sums.saturation / (height * width), 1.0)


def contrast(pixels: Pixels) -> NDArray[np.float64]:
    """Standard deviation of luma (RMS contrast)."""
    _, height, width = pixels.shape
    return np.asarray(np.sqrt(pixels.sums.luma_deviation / (height * width)) / MILLI)


def brightness(pixels: Pixels) -> NDArray[np.float64]:
    """Mean luma."""
    _, height, width = pixels.shape
    return np.minimum(pixels.sums.luma / (height * width) / MILLI, 255.0)


def entropy(pixels: Pixels) -> NDArray[np.float64]:
    """Shannon entropy, in bits, of the histogram of luma rounded to 256 levels."""
    _, height, width = pixels.shape
    share = pixels.sums.histogram / (height * width)
    bits = -(share * np.log2(share, where=share > 0, out=np.zeros_like(share))).sum(axis=1)
    # The negated sum of one whole level is -0.0.
    return np.asarray(np.maximum(bits, 0.0))


def num_pixels(pixels: Pixels) -> NDArray[np.float64]:
    """Width times height, after EXIF orientation."""
    count, height, width = pixels.shape
    return np.full(count, float(height * width))


def min_side(pixels: Pixels) -> NDArray[np.float64]:
    """Shorter side."""
    count, height, width = pixels.shape
    return np.full(count, float(min(height, width)))


CLASSICAL = Pack(
    name="classical",
    code=(Path(__file__), Path(sums_module.__file__), Path(pixels_module.__file__)),
    scorers=(
        Scorer(
            "sharpness",
            sharpness,
            "higher_is_better",
            minimum=0,
            maximum=None,
            unit="luma^2",
            source="Pech-Pacheco et al., ICPR 2000, Diatom autofocusing in brightfield microscopy",
            min_side=3,
        ),
        Scorer(
            "blockiness",
            blockiness,
            "lower_is_better",
            minimum=0,
            maximum=None,
            unit="ratio",
            source="after Wang, Sheikh, Bovik, ICIP 2002, No-reference quality of JPEG images",
            min_side=BLOCK + 1,
        ),
        Scorer(
            "noise_std",
            noise_std,
            "lower_is_better",
            minimum=0,
            maximum=None,
            unit="luma",
            source="Immerkaer, CVIU 64 (1996), Fast noise variance estimation",
            min_side=3,
        ),
        Scorer(
            "saturation",
            saturation,
            "neither",
            minimum=0,
            maximum=1,
            unit="fraction",
            source="Smith, SIGGRAPH 1978, Color gamut transform pairs (HSV)",
        ),
        Scorer(
            "contrast",
            contrast,
            "higher_is_better",
            minimum=0,
            maximum=None,
            unit="luma",
            source="Peli, JOSA A 7 (1990), Contrast in complex images",
        ),
        Scorer(
            "brightness",
            brightness,
            "neither",
            minimum=0,
            maximum=255,
            unit="luma",
            source="ITU-R BT.601",
        ),
        Scorer(
            "entropy",
            entropy,
            "higher_is_better",
            minimum=0,
            maximum=8,
            unit="bits",
            source="Shannon 1948, A mathematical theory of communication",
        ),
        Scorer(
            "num_pixels",
            num_pixels,
            "higher_is_better",
            minimum=1,
            maximum=None,
            unit="pixels",
            source="definition",
        ),
        Scorer(
            "min_side",
            min_side,
            "higher_is_better",
            minimum=1,
            maximum=None,
            unit="pixels",
            source="definition",
        ),
    ),
)
