"""Cutting windows out of images.

Legend: N images, B batch, P positions, C channels, H height, W width, s side of a window.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadInput

Images = NDArray[np.float32]


def cut(x0_BCHW: Images, corners_B2: NDArray[np.integer], size: int) -> Images:
    """Return one window of each image, (B, C, s, s); corners are (top, left)."""
    windows = np.lib.stride_tricks.sliding_window_view(x0_BCHW, (size, size), axis=(2, 3))
    return np.ascontiguousarray(
        windows[np.arange(len(x0_BCHW)), :, corners_B2[:, 0], corners_B2[:, 1]]
    )


def random_corners(
    count: int, shape_HW: tuple[int, int], size: int, draw: np.random.Generator
) -> NDArray[np.int64]:
    """Return (count, 2) corners, each place equally likely.

    Raises:
        BadInput: the image is smaller than the window.
    """
    require_fit(shape_HW, size)
    return np.stack([draw.integers(side - size + 1, size=count) for side in shape_HW], axis=1)


def grid_corners(shape_HW: tuple[int, int], size: int) -> NDArray[np.int64]:
    """Return (P, 2) corners of a grid that covers the image, by halves of a window, row-major.

    Raises:
        BadInput: the image is smaller than the window.
    """
    require_fit(shape_HW, size)
    tops, lefts = (_places(side, size) for side in shape_HW)
    return np.stack(np.meshgrid(tops, lefts, indexing="ij"), axis=-1).reshape(-1, 2)


def grid_shape(shape_HW: tuple[int, int], size: int) -> tuple[int, int]:
    """Return (rows, columns) of `grid_corners`."""
    tops, lefts = (_places(side, size) for side in shape_HW)
    return len(tops), len(lefts)


def central_corner(shape_HW: tuple[int, int], size: int) -> NDArray[np.int64]:
    """Return the (1, 2) corner of the window in the middle."""
    require_fit(shape_HW, size)
    return np.array([[(side - size) // 2 for side in shape_HW]])


def shuffled(crops_BCss: Images, draw: np.random.Generator) -> Images:
    """Return crops whose positions are in a random order: the same colours, no structure."""
    flat = crops_BCss.reshape(*crops_BCss.shape[:2], -1)
    order = draw.random((len(flat), 1, flat.shape[2])).argsort(axis=2)
    mixed: Images = np.take_along_axis(flat, order, axis=2).reshape(crops_BCss.shape)
    return mixed


def require_fit(shape_HW: tuple[int, int], size: int) -> None:
    """Check that a window fits into an image.

    Raises:
        BadInput: it does not.
    """
    if size > min(shape_HW):
        raise BadInput(
            f"crops of {size} do not fit into images of {shape_HW[0]} x {shape_HW[1]}: choose "
            "smaller sizes, or a larger transform.resolution"
        )


def _places(side: int, size: int) -> NDArray[np.int64]:
    count = 1 + -(-(side - size) // max(1, size // 2))
    return np.rint(np.linspace(0, side - size, count)).astype(np.int64)
