"""Classical measures of an image, vectorised over images of one size.

Shapes: B images, H height, W width. Luma is 0..255. Each function returns float64 (B,).
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.scorers import pixels as pixels_module
from pipelines.scorers.base import Pack, Scorer
from pipelines.scorers.pixels import Pixels

BLOCK = 8  # side of a JPEG block, pixels
# A step of one luma level is rounding; added to both sides of the ratio it keeps flat images at 1.
_STEP_FLOOR = 1.0


def sharpness(pixels: Pixels) -> NDArray[np.float64]:
    """Variance of the 4-neighbour Laplacian of luma."""
    y = pixels.luma_BHW
    laplacian = (
        y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:] - 4 * y[:, 1:-1, 1:-1]
    )
    return np.asarray(laplacian.var(axis=(1, 2), dtype=np.float64))


def blockiness(pixels: Pixels) -> NDArray[np.float64]:
    """Mean luma step across borders of the 8x8 grid, over the mean step elsewhere; 1 = no grid.

    The grid begins at the upper left pixel, as JPEG's does; a crop or resize after compression
    moves it and hides it from this measure.
    """
    y = pixels.luma_BHW
    across = np.abs(np.diff(y, axis=2))
    down = np.abs(np.diff(y, axis=1))
    # Step k lies between pixels k and k + 1, so a border of blocks is every eighth from the 7th.
    at_column = np.arange(across.shape[2]) % BLOCK == BLOCK - 1
    at_row = np.arange(down.shape[1]) % BLOCK == BLOCK - 1
    border = _mean_of(across[:, :, at_column], down[:, at_row, :])
    inside = _mean_of(across[:, :, ~at_column], down[:, ~at_row, :])
    return np.asarray((border + _STEP_FLOOR) / (inside + _STEP_FLOOR))


def noise_std(pixels: Pixels) -> NDArray[np.float64]:
    """Standard deviation of white noise in luma, by the difference of two Laplacians.

    The mask [[1, -2, 1], [-2, 4, -2], [1, -2, 1]] is blind to constant and linear shading;
    fine texture counts as noise.
    """
    y = pixels.luma_BHW
    rows = y[:, :-2] - 2 * y[:, 1:-1] + y[:, 2:]
    response = rows[:, :, :-2] - 2 * rows[:, :, 1:-1] + rows[:, :, 2:]
    # For N(0, s^2) noise the response has variance 36 s^2 and mean magnitude 6 s sqrt(2/pi).
    mean_magnitude = np.abs(response).mean(axis=(1, 2), dtype=np.float64)
    return np.asarray(np.sqrt(np.pi / 2) / 6 * mean_magnitude)


def saturation(pixels: Pixels) -> NDArray[np.float64]:
    """Mean of HSV saturation, (max - min) / max, black counting as 0."""
    # A reduction over an axis of three costs ten times these.
    red, green, blue = (pixels.rgb_BHW3[..., channel] for channel in range(3))
    highest = np.maximum(np.maximum(red, green), blue)
    span = highest - np.minimum(np.minimum(red, green), blue)
    share = span / np.maximum(highest, 1)
    return np.asarray(share.mean(axis=(1, 2), dtype=np.float64))


def contrast(pixels: Pixels) -> NDArray[np.float64]:
    """Standard deviation of luma (RMS contrast)."""
    return np.asarray(pixels.luma_BHW.std(axis=(1, 2), dtype=np.float64))


def brightness(pixels: Pixels) -> NDArray[np.float64]:
    """Mean luma."""
    # The float32 weights sum to a hair above 1.
    mean = pixels.luma_BHW.mean(axis=(1, 2), dtype=np.float64)
    return np.asarray(np.minimum(mean, 255.0))


def entropy(pixels: Pixels) -> NDArray[np.float64]:
    """Shannon entropy, in bits, of the histogram of luma rounded to 256 levels."""
    count, height, width = pixels.shape
    levels = np.rint(pixels.luma_BHW).astype(np.uint8).reshape(count, -1)
    histogram = np.stack([np.bincount(image, minlength=256) for image in levels])
    share = histogram / (height * width)
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


def _mean_of(*parts: NDArray[np.float32]) -> NDArray[np.float64]:
    total = sum(p.sum(axis=(1, 2), dtype=np.float64) for p in parts)
    return np.asarray(total / sum(p.shape[1] * p.shape[2] for p in parts), np.float64)


CLASSICAL = Pack(
    name="classical",
    code=(Path(__file__), Path(pixels_module.__file__)),
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
