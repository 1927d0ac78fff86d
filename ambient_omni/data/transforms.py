"""How an image becomes the fixed-size pixels that noise levels and trainers speak about."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from schemas.ids import canonical_hash

_FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# The scale of the data: uint8 0..255 becomes -1..1 (`packs.to_x0`).
_SCALE = "pm1"


class Transform(BaseModel):
    """Resize and crop to a square. Frozen; its hash names packs, its noise space names levels.

    Downscaling erases blur, noise and compression artefacts: the same photograph is good from a
    lower noise level on at 32 pixels than at 512. So the resolution, filter and crop are part of
    the noise space, and a level that was found under one transform is refused under another.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resolution: int = Field(default=32, ge=1, description="Side of the square, pixels.")
    filter: Literal["box", "bilinear", "bicubic", "lanczos"] = Field(
        default="lanczos", description="Resampling filter; antialiased when it shrinks."
    )
    crop: Literal["center", "stretch"] = Field(
        default="center",
        description="center: largest central square; stretch: whole image, aspect ratio lost.",
    )

    @property
    def transform_id(self) -> str:
        """Hash of everything that decides the output."""
        return canonical_hash({**self.model_dump(), "scale": _SCALE})

    @property
    def noise_space(self) -> str:
        """What σ is measured in, e.g. ``pixel:32x32:lanczos:center:pm1``."""
        side = self.resolution
        return f"pixel:{side}x{side}:{self.filter}:{self.crop}:{_SCALE}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the output."""
        return (self.resolution, self.resolution, 3)

    @property
    def row_dtype(self) -> str:
        """Type of the output."""
        return "uint8"

    def how_to_build(self, batch: str) -> str:
        """Say what makes the pack of a batch."""
        return f"build it with `python -m pipelines pack --batch {batch}`"

    @property
    def x0_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of x_0."""
        return (3, self.resolution, self.resolution)

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn uint8 RGB (H, W, 3) of any size into uint8 RGB (resolution, resolution, 3).

        Raises:
            ValueError: `pixels` is not uint8 (H, W, 3).
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"expected uint8 (H, W, 3), got {pixels.dtype} {pixels.shape}")
        if pixels.shape == self.shape:
            return np.ascontiguousarray(pixels)
        image = Image.fromarray(pixels)
        side = self.resolution
        # The crop happens inside the resampling, in fractions of a pixel: no rounding to the left.
        resized = image.resize((side, side), _FILTERS[self.filter], box=self._box(*image.size))
        return np.array(resized)

    def _box(self, width: int, height: int) -> tuple[float, float, float, float]:
        if self.crop == "stretch":
            return (0.0, 0.0, float(width), float(height))
        edge = min(width, height)
        left, top = (width - edge) / 2, (height - edge) / 2
        return (left, top, left + edge, top + edge)
