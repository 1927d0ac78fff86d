"""Pictures side by side."""

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def mosaic(
    images: NDArray[np.uint8],
    *,
    num_columns: int | None = None,
    gap: int = 2,
    scale: int = 1,
    background: tuple[int, int, int] = (128, 128, 128),
) -> bytes:
    """Return images as one PNG, in reading order.

    Args:
        images: uint8 (N, H, W, 3), 0..255.
        num_columns: images in a row; by default about a square.
        gap: pixels between them.
        scale: each pixel becomes scale x scale.
        background: colour of the gaps and of empty places.

    Raises:
        ValueError: there is no image.
    """
    if not len(images):
        raise ValueError("a mosaic needs at least one image")
    columns = num_columns or math.ceil(math.sqrt(len(images)))
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    height, width = images.shape[1] * scale + gap, images.shape[2] * scale + gap
    canvas = np.full((rows * height - gap, columns * width - gap, 3), background, np.uint8)
    for number, image in enumerate(images):
        top, left = (number // columns) * height, (number % columns) * width
        big = image.repeat(scale, 0).repeat(scale, 1)
        canvas[top : top + big.shape[0], left : left + big.shape[1]] = big
    return encode(canvas)


def encode(image: NDArray[np.uint8], max_side: int | None = None) -> bytes:
    """Return uint8 (H, W, 3) as PNG, first made smaller where a side is above `max_side`."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    if max_side is not None:
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()
