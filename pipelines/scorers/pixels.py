"""Images of one size, as scorers see them.

Shapes: B images, H height, W width.
"""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipelines.scorers.sums import Sums, sums_of


class Pixels:
    """Images of one size, with the intermediate that several scorers share made once.

    `rgb_BHW3` is uint8, 0..255.
    """

    def __init__(self, rgb_BHW3: NDArray[np.uint8]) -> None:
        self.rgb_BHW3 = rgb_BHW3

    @cached_property
    def luma_BHW(self) -> NDArray[np.float32]:
        """Luma of ITU-R BT.601, float32 (B, H, W), 0..255."""
        weights = np.array([0.299, 0.587, 0.114], np.float32)
        luma: NDArray[np.float32] = self.rgb_BHW3.astype(np.float32) @ weights
        return luma

    @cached_property
    def sums(self) -> Sums:
        """What the classical measures are made of."""
        return sums_of(self.rgb_BHW3)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, H, W)."""
        count, height, width = self.rgb_BHW3.shape[:3]
        return count, height, width
