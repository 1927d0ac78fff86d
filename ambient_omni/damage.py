"""Damage such as images pick up on the web, with a known severity.

Used where the truth must be known: to plant damage in held-out reference images (the noise
classifier's positive control) and to build the demo's pool. Every kind has one number, its
severity; a greater one is always worse. Legend: H height, W width, C channels (3).
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import AfterValidator

from schemas.known import instead_of

ImageHWC = np.ndarray
"""An image: uint8, (H, W, 3), RGB."""


@dataclass(frozen=True)
class Damage:
    """One way to damage an image.

    Attributes:
        kind: The name, as in `DAMAGES`.
        unit: What severity is measured in.
        blur_like: Whether it removes high frequencies and adds nothing.
        apply: `(image_HWC uint8, severity, generator) -> image_HWC uint8`.
    """

    kind: str
    unit: str
    blur_like: bool
    apply: Callable[[ImageHWC, float, np.random.Generator], ImageHWC]


def require_kind(kind: str) -> str:
    """Return a kind of damage that is known.

    Raises:
        ValueError: it is not.
    """
    if kind not in DAMAGES:
        raise ValueError(f"there is no kind of damage {kind!r}{instead_of(kind, DAMAGES)}")
    return kind


DamageKind = Annotated[str, AfterValidator(require_kind)]
"""A key of `DAMAGES`, in settings."""


def damage(
    kind: str, severity: float, image_HWC: ImageHWC, generator: np.random.Generator
) -> ImageHWC:
    """Return a damaged copy of an image.

    Args:
        kind: A key of `DAMAGES`.
        severity: How bad, in the kind's unit; greater is worse, must be positive.
        image_HWC: uint8 (H, W, 3).
        generator: From `ambient_omni.rng`; draws noise and directions, so that the result is
            a function of its address. Kinds without randomness do not touch it.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: The kind is unknown, the severity is not positive or the image has another
            type or shape.
    """
    require_kind(kind)
    if not severity > 0:
        raise ValueError(f"severity of {kind} must be positive, got {severity}")
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3:
        raise ValueError(f"expected uint8 (H, W, 3), got {image_HWC.dtype} {image_HWC.shape}")
    return DAMAGES[kind].apply(image_HWC, severity, generator)


def gaussian_blur(image_HWC: ImageHWC, severity: float, generator: np.random.Generator) -> ImageHWC:
    """Convolve with a Gaussian of standard deviation `severity` pixels; edges are repeated."""
    height, width, _ = image_HWC.shape
    rows_HH = _blur_matrix(height, severity)
    columns_WW = _blur_matrix(width, severity)
    blurred = np.einsum("ih,hwc,jw->ijc", rows_HH, image_HWC.astype(np.float64), columns_WW)
    return _to_uint8(blurred)


def motion_blur(image_HWC: ImageHWC, severity: float, generator: np.random.Generator) -> ImageHWC:
    """Average along a straight path of `severity` pixels in a random direction."""
    angle = generator.uniform(0.0, np.pi)
    # Two positions a pixel of path: closer ones change the average by less than a grey level.
    num_steps = max(2, int(np.ceil(2 * severity)) + 1)
    offsets = np.linspace(-severity / 2, severity / 2, num_steps)
    image = image_HWC.astype(np.float64)
    moved = [_shift(image, d * np.sin(angle), d * np.cos(angle)) for d in offsets]
    return _to_uint8(np.mean(moved, axis=0))


def down_up(image_HWC: ImageHWC, severity: float, generator: np.random.Generator) -> ImageHWC:
    """Scale down by the factor `severity` (> 1) and back up: Lanczos down, bicubic up."""
    height, width, _ = image_HWC.shape
    small = (max(1, round(width / severity)), max(1, round(height / severity)))
    image = Image.fromarray(image_HWC).resize(small, Image.Resampling.LANCZOS)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def jpeg(image_HWC: ImageHWC, severity: float, generator: np.random.Generator) -> ImageHWC:
    """Store as JPEG of quality `100 - severity` (4:2:0 chroma, as the web does) and read back."""
    quality = int(np.clip(round(100 - severity), 1, 100))
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(buffer).convert("RGB"))


def sensor_noise(image_HWC: ImageHWC, severity: float, generator: np.random.Generator) -> ImageHWC:
    """Add independent Gaussian noise of `severity` grey levels (of 255), then clip."""
    noise = generator.standard_normal(image_HWC.shape) * severity
    return _to_uint8(image_HWC.astype(np.float64) + noise)


def _blur_matrix(size: int, width_px: float) -> np.ndarray:
    """Return the (size, size) matrix of a Gaussian filter with repeated edges; rows sum to 1."""
    # Beyond four standard deviations lies 6e-5 of the mass: below one grey level.
    reach = max(1, int(np.ceil(4 * width_px)))
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / width_px) ** 2)
    kernel /= kernel.sum()
    matrix = np.zeros((size, size))
    sources = np.clip(np.arange(size)[:, None] + offsets[None, :], 0, size - 1)
    np.add.at(matrix, (np.arange(size)[:, None], sources), kernel[None, :])
    return matrix


def _shift(image_HWC: np.ndarray, down_px: float, right_px: float) -> np.ndarray:
    """Move an image by a fraction of pixels (bilinear); edges are repeated."""
    height, width, _ = image_HWC.shape
    rows = np.clip(np.arange(height) - down_px, 0, height - 1)
    columns = np.clip(np.arange(width) - right_px, 0, width - 1)
    top = np.minimum(rows.astype(np.intp), max(height - 2, 0))
    left = np.minimum(columns.astype(np.intp), max(width - 2, 0))
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    below_H11 = (rows - top)[:, None, None]
    beside_1W1 = (columns - left)[None, :, None]
    upper = image_HWC[top][:, left] * (1 - beside_1W1) + image_HWC[top][:, right] * beside_1W1
    lower = image_HWC[bottom][:, left] * (1 - beside_1W1) + image_HWC[bottom][:, right] * beside_1W1
    moved: np.ndarray = upper * (1 - below_H11) + lower * below_H11
    return moved


def _to_uint8(image: np.ndarray) -> ImageHWC:
    whole: ImageHWC = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return whole


DAMAGES: Mapping[str, Damage] = MappingProxyType(
    {
        d.kind: d
        for d in (
            Damage("gaussian_blur", "standard deviation in pixels", True, gaussian_blur),
            Damage("motion_blur", "length of the path in pixels", True, motion_blur),
            Damage("down_up", "scale factor", True, down_up),
            Damage("jpeg", "100 - JPEG quality", False, jpeg),
            Damage("sensor_noise", "standard deviation in grey levels of 255", False, sensor_noise),
        )
    }
)
"""Every kind of damage by name."""
