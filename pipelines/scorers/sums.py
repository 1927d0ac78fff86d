"""Sums over images of one size that the classical measures are made of, in one pass.

An image is walked in strips of rows whose planes stay in the processor's cache, in memory that is
kept from image to image: new planes for every step cost more than the arithmetic.

Luma is counted in thousandths: 299 R + 587 G + 114 B is a whole number, and so is every difference
below, all under 2^24, which float32 holds exactly. Rows are summed in float32, images in float64.

Shapes: B images, H height, W width, S rows of a strip.
"""

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Sum = NDArray[np.float64]

BLOCK = 8  # side of a JPEG block, pixels
MILLI = 1000.0  # luma is summed in thousandths

_WEIGHTS = np.array([299, 587, 114], np.float32)  # ITU-R BT.601
_STRIP_PIXELS = 2**17
_LARGE_PIXELS = 2**13


@dataclass
class Sums:
    """Sums of B images, float64 (B,); luma in thousandths.

    Attributes:
        luma: of luma.
        luma_deviation: of (luma - mean)^2.
        saturation: of (max - min) / max, black counting as 0.
        laplacian: of the 4-neighbour Laplacian of luma over the interior.
        laplacian_square: of its square.
        double_laplacian: of the magnitude of the mask [[1, -2, 1], [-2, 4, -2], [1, -2, 1]].
        border_steps: of luma's steps to the next row and column, across borders of 8x8 blocks.
        inner_steps: of all other such steps.
        histogram: (B, 256), pixels by luma rounded to 0..255.
    """

    luma: Sum
    luma_deviation: Sum
    saturation: Sum
    laplacian: Sum
    laplacian_square: Sum
    double_laplacian: Sum
    border_steps: Sum
    inner_steps: Sum
    histogram: Sum


def sums_of(rgb_BHW3: Bytes) -> Sums:
    """Return the sums of uint8 RGB images of one size."""
    count, height, width, _ = rgb_BHW3.shape
    sums = Sums(*(np.zeros(count) for _ in fields(Sums)))
    sums.histogram = np.zeros((count, 256))
    at_once = max(1, _STRIP_PIXELS // (height * width))
    for start in range(0, count, at_once):
        piece = slice(start, start + at_once)
        _add_images(sums, piece, rgb_BHW3[piece])
    return sums


def num_steps(height: int, width: int) -> tuple[int, int]:
    """Return how many steps cross borders of blocks, and how many do not."""
    rows, columns = (height - 1) // BLOCK, (width - 1) // BLOCK
    border = rows * width + columns * height
    return border, (height - 1) * width + (width - 1) * height - border


class _Scratch(threading.local):
    """Memory of the planes of a strip, one set a thread; it only ever grows."""

    def __init__(self) -> None:
        self._kept: dict[str, NDArray[np.uint8]] = {}

    def plane(self, name: str, shape: tuple[int, ...]) -> Plane:
        """Return float32 of that shape, with whatever stands in it."""
        return self._bytes(name, 4 * math.prod(shape)).view(np.float32).reshape(shape)

    def bytes(self, name: str, shape: tuple[int, ...]) -> Bytes:
        """Return uint8 of that shape, with whatever stands in it."""
        return self._bytes(name, math.prod(shape)).reshape(shape)

    def _bytes(self, name: str, count: int) -> Bytes:
        kept = self._kept.get(name)
        if kept is None or len(kept) < count:
            kept = self._kept[name] = np.empty(count, np.uint8)
        return kept[:count]


_SCRATCH = _Scratch()


def _add_images(sums: Sums, piece: slice, rgb_BHW3: Bytes) -> None:
    count, height, width, _ = rgb_BHW3.shape
    moments = _Moments(count)
    for first, last in _strips(count, height, width):
        # One row more on each side, where there is one, for the neighbours.
        top, bottom = max(first - 1, 0), min(last + 1, height)
        channels_3BSW = _SCRATCH.bytes("channels", (3, count, bottom - top, width))
        np.copyto(channels_3BSW, rgb_BHW3[:, top:bottom].transpose(3, 0, 1, 2))
        luma_BSW = _luma(channels_3BSW)
        own = slice(first - top, last - top)
        moments.add(luma_BSW[:, own])
        sums.histogram[piece] += _histogram(luma_BSW[:, own])
        sums.saturation[piece] += _saturation(channels_3BSW[:, :, own])
        _add_differences(sums, piece, luma_BSW, own, first)
    sums.luma[piece], sums.luma_deviation[piece] = moments.luma, moments.deviation()


def _strips(count: int, height: int, width: int) -> Iterator[tuple[int, int]]:
    rows = max(1, _STRIP_PIXELS // (count * width))
    for first in range(0, height, rows):
        yield first, min(first + rows, height)


def _luma(channels_3BSW: Bytes) -> Plane:
    floats = _SCRATCH.plane("floats", channels_3BSW.shape)
    np.copyto(floats, channels_3BSW)
    luma = _SCRATCH.plane("luma", channels_3BSW.shape[1:])
    np.dot(_WEIGHTS, floats.reshape(3, -1), out=luma.reshape(-1))
    return luma


def _row_sums(plane_BSW: Plane) -> Plane:
    """Return (B, S); a product with ones is twice as fast as a sum."""
    return np.asarray(plane_BSW @ np.ones(plane_BSW.shape[2], np.float32))


def _total(plane_BSW: Plane) -> Sum:
    return np.asarray(_row_sums(plane_BSW).sum(axis=-1, dtype=np.float64))


def _total_square(plane_BSW: Plane) -> Sum:
    return np.asarray(np.vecdot(plane_BSW, plane_BSW).sum(axis=-1, dtype=np.float64))


class _Moments:
    """Sum and squared deviation of luma, strip by strip, each about its own rounded mean."""

    def __init__(self, count: int) -> None:
        self.luma = np.zeros(count)
        self._parts: list[tuple[int, Sum, Sum, Sum]] = []

    def add(self, luma_BSW: Plane) -> None:
        num = luma_BSW.shape[1] * luma_BSW.shape[2]
        total = _total(luma_BSW)
        # A whole number: of a flat strip exactly nothing is left.
        pivot = np.rint(total / num)
        rest = _SCRATCH.plane("rest", luma_BSW.shape)
        np.subtract(luma_BSW, pivot.astype(np.float32)[:, None, None], out=rest)
        self.luma += total
        self._parts.append((num, pivot, total - num * pivot, _total_square(rest)))

    def deviation(self) -> Sum:
        mean = self.luma / sum(num for num, *_ in self._parts)
        parts = (
            square + 2 * (pivot - mean) * first + num * (pivot - mean) ** 2
            for num, pivot, first, square in self._parts
        )
        return np.maximum(sum(parts), 0.0)


def _histogram(luma_BSW: Plane) -> Sum:
    levels = _SCRATCH.plane("rest", luma_BSW.shape)
    np.multiply(luma_BSW, np.float32(1 / MILLI), out=levels)
    np.rint(levels, out=levels)
    whole = _SCRATCH.bytes("levels", luma_BSW.shape)
    np.copyto(whole, levels, casting="unsafe")
    count, num = len(whole), whole[0].size
    # Pillow counts bytes three times as fast as numpy, which widens them first, but one image at
    # a time.
    if num >= _LARGE_PIXELS:
        return np.array([Image.fromarray(one).histogram() for one in whole], np.float64)
    places = whole.reshape(count, num) + 256 * np.arange(count)[:, None]
    found = np.bincount(places.reshape(-1), minlength=256 * count)
    return found.reshape(count, 256).astype(np.float64)


def _saturation(channels_3BSW: Bytes) -> Sum:
    red, green, blue = channels_3BSW
    highest, lowest = (_SCRATCH.bytes(name, red.shape) for name in ("highest", "lowest"))
    np.maximum(np.maximum(red, green, out=highest), blue, out=highest)
    np.minimum(np.minimum(red, green, out=lowest), blue, out=lowest)
    np.subtract(highest, lowest, out=lowest)
    np.maximum(highest, 1, out=highest)
    share, below = (_SCRATCH.plane(name, red.shape) for name in ("rest", "other"))
    np.copyto(share, lowest)
    np.copyto(below, highest)
    np.divide(share, below, out=share)
    return _total(share)


def _add_differences(sums: Sums, piece: slice, luma_BSW: Plane, own: slice, first_row: int) -> None:
    """Add steps to the right of the strip's own rows and down from them, and second differences."""
    _, rows, width = luma_BSW.shape
    down = _difference(luma_BSW, 1, "down")
    across = _difference(luma_BSW, 2, "across")
    if rows > 2 and width > 2:
        _add_curvature(sums, piece, down, across)
    num_down = min(own.stop, rows - 1) - own.start
    mine = np.abs(down[:, own.start : own.start + num_down], out=down[:, :num_down])
    _add_by_border(sums, piece, _row_sums(mine), first_row)
    mine = np.abs(across[:, own], out=across[:, own])
    _add_by_border(sums, piece, mine.sum(axis=1), 0)


def _add_curvature(sums: Sums, piece: slice, down: Plane, across: Plane) -> None:
    """Add what second differences say of the rows and columns that have both neighbours."""
    twice_down = _difference(down, 1, "twice down")
    laplacian = _difference(across[:, 1:-1], 2, "rest")
    np.add(laplacian, twice_down[:, :, 1:-1], out=laplacian)
    sums.laplacian[piece] += _total(laplacian)
    sums.laplacian_square[piece] += _total_square(laplacian)
    both = _difference(_difference(twice_down, 2, "other"), 2, "rest")
    sums.double_laplacian[piece] += _total(np.abs(both, out=both))


def _difference(plane_BSW: Plane, axis: int, name: str) -> Plane:
    shape = list(plane_BSW.shape)
    shape[axis] -= 1
    out = _SCRATCH.plane(name, tuple(shape))
    if axis == 1:
        return np.subtract(plane_BSW[:, 1:], plane_BSW[:, :-1], out=out)
    return np.subtract(plane_BSW[:, :, 1:], plane_BSW[:, :, :-1], out=out)


def _add_by_border(sums: Sums, piece: slice, steps_BK: Plane, first: int) -> None:
    # Step k lies between pixels k and k + 1, so a border of blocks is every eighth from the 7th.
    border = steps_BK[:, (BLOCK - 1 - first) % BLOCK :: BLOCK].sum(axis=1, dtype=np.float64)
    sums.border_steps[piece] += border
    sums.inner_steps[piece] += steps_BK.sum(axis=1, dtype=np.float64) - border
