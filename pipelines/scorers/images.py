"""Some decoded images and what scorers share of them: stacks of one size, views, network outputs.

Shapes: N images, B images of one size, H height, W width.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.scorers.pixels import Pixels

Made = TypeVar("Made")

# Stacks of one size are measured in pieces: the float planes of a piece stay near the caches, and
# memory is bounded whatever a chunk holds.
_PIECE_PIXELS = 2**18


class Images:
    """N uint8 RGB images (H, W, 3) of any sizes, their captions, and intermediates made once."""

    def __init__(
        self,
        arrays: Sequence[NDArray[np.uint8]],
        captions: Sequence[str | None] | None = None,
    ) -> None:
        self.arrays = arrays
        self.captions = [None] * len(arrays) if captions is None else list(captions)
        self._made: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self.arrays)

    def stacks(self) -> Iterator[tuple[list[int], Pixels]]:
        """Yield places of images of one size, and their pixels; every image once."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, array in enumerate(self.arrays):
            groups.setdefault(array.shape, []).append(place)
        for shape, places in groups.items():
            step = max(1, _PIECE_PIXELS // max(1, shape[0] * shape[1]))
            for start in range(0, len(places), step):
                part = places[start : start + step]
                arrays = [self.arrays[i] for i in part]
                yield part, Pixels(arrays[0][None] if len(arrays) == 1 else np.stack(arrays))

    def once(self, key: Any, make: Callable[[], Made]) -> Made:
        """Return what `make` gives, made at the first call with that key.

        One resize a size and one forward an encoder, however many scorers ask.
        """
        if key not in self._made:
            self._made[key] = make()
        made: Made = self._made[key]
        return made

    def squashed(self, side: int) -> NDArray[np.uint8]:
        """Return all images at (side, side), bilinear, aspect ignored: uint8 (N, side, side, 3)."""
        return self.once(
            ("squashed", side),
            lambda: _stacked(
                [_resized(a, side, Image.Resampling.BILINEAR) for a in self.arrays], side
            ),
        )

    def squares(self, side: int) -> NDArray[np.uint8]:
        """Return the central squares at (side, side), bicubic: uint8 (N, side, side, 3)."""
        return self.once(
            ("squares", side),
            lambda: _stacked([central_square(a, side) for a in self.arrays], side),
        )


def central_square(array: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return the largest central square of (H, W, 3) at (side, side), bicubic, antialiased."""
    height, width = array.shape[:2]
    edge = min(height, width)
    left, top = (width - edge) / 2, (height - edge) / 2
    box = (left, top, left + edge, top + edge)
    return _resized(array, side, Image.Resampling.BICUBIC, box)


def _resized(
    array: NDArray[np.uint8],
    side: int,
    resampling: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> NDArray[np.uint8]:
    if array.shape[:2] == (side, side):
        return array
    return np.asarray(Image.fromarray(array).resize((side, side), resampling, box=box))


def _stacked(views: Sequence[NDArray[np.uint8]], side: int) -> NDArray[np.uint8]:
    return np.stack(views) if views else np.empty((0, side, side, 3), np.uint8)
