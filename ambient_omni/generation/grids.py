"""Many images on one picture, with what each was made from below it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# Height of a line of text, pixels.
_LINE = 12
_TEXT_SIZE = 10
# Wider images can be looked at as they are.
_SMALL = 128


def save_grid(
    images: NDArray[np.uint8],
    path: Path,
    *,
    captions: Sequence[str] = (),
    scale: int | None = None,
    gap: int = 2,
) -> None:
    """Write images (N, H, W, 3) as one PNG, in rows of about the square root of N.

    Args:
        images: uint8.
        path: where to.
        captions: one line below each image, cut to its width; none for none.
        scale: side of the square that every pixel becomes; none = 2 for images of up to 128
            pixels, so that they can be looked at, and 1 for others.
        gap: white pixels between images.
    """
    count, height, width, _ = images.shape
    scale = scale or (2 if width <= _SMALL else 1)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    line = _LINE if captions else 0
    step_y, step_x = height * scale + line + gap, width * scale + gap
    canvas = Image.new("RGB", (columns * step_x - gap, rows * step_y - gap), "white")
    for number, image in enumerate(images):
        top, left = step_y * (number // columns), step_x * (number % columns)
        big = image.repeat(scale, axis=0).repeat(scale, axis=1)
        canvas.paste(Image.fromarray(big), (left, top))
        if captions:
            label = _caption(captions[number], width * scale)
            canvas.paste(label, (left, top + height * scale))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)


def title(facts: Mapping[str, Any]) -> str:
    """Return what an image was asked to be: its prompt, or its label; "" for neither."""
    return str(facts.get("text") or facts.get("label") or "")


def _caption(text: str, width: int) -> Image.Image:
    line = Image.new("RGB", (width, _LINE), "white")
    # One line, and no more letters than pixels: a prompt may be a book, and drawing it takes long.
    text = " ".join(text[: 2 * width].split())[:width]
    ImageDraw.Draw(line).text((0, 0), text, "black", ImageFont.load_default(_TEXT_SIZE))
    return line
