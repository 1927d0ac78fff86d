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


def save_grid(
    images: NDArray[np.uint8],
    path: Path,
    *,
    captions: Sequence[str] = (),
    scale: int = 2,
    gap: int = 2,
) -> None:
    """Write images (N, H, W, 3) as one PNG, in rows of about the square root of N.

    Args:
        images: uint8.
        path: where to.
        captions: one line below each image, cut to its width; none for none.
        scale: every pixel becomes this many, so that small images can be looked at.
        gap: white pixels between images.
    """
    count, height, width, _ = images.shape
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
    ImageDraw.Draw(line).text((0, 0), text, "black", ImageFont.load_default(_TEXT_SIZE))
    return line
