"""What a classifier looks at: pixels, or the latents of an autoencoder over them.

Damage happens to pixels. A classifier of latents is taught and controlled by damage that is planted
in pixels and then encoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ambient_omni.classifier.data import PackedImages
from ambient_omni.classifier.severity import Plantable
from ambient_omni.data.config import LatentConfig
from ambient_omni.data.latents import LatentCodec, LatentSpace, latent_space
from ambient_omni.data.packs import PackSet, Space, to_x0
from ambient_omni.data.transforms import Transform
from ambient_omni.progress import progress
from schemas.root import Root

_ENCODED_AT_ONCE = 16


@dataclass(frozen=True)
class View:
    """The pixels of a transform; or their latents, where `latent_space` and `latents` are there."""

    transform: Transform
    latent_space: LatentSpace | None = None
    latents: LatentConfig | None = None

    @classmethod
    def of(cls, transform: Transform, latents: LatentConfig | None) -> View:
        """Return the view of some settings.

        Raises:
            BadInput: there is no such autoencoder, or the resolution does not fit it.
        """
        space = None if latents is None else latent_space(latents, transform)
        return cls(transform, space, latents)

    @property
    def space(self) -> Space:
        """What the packs hold and levels are measured in."""
        return self.latent_space or self.transform

    def in_pixels(self, root: Root, images: PackedImages) -> PackedImages:
        """Return the pixels of images of this view.

        Raises:
            PackMissing: a batch has no complete pack of pixels.
        """
        if self.latents is None:
            return images
        batches = [pack.batch for pack in images.packs.packs]
        return images.seen_through(PackSet.open(root.packs, self.transform, batches))

    def plantable(self, root: Root, images: PackedImages) -> Plantable:
        """Return images of this view as what damage can be planted in."""
        return Plantable(self.in_pixels(root, images), self.rows_of)

    def rows_of(self, pixels_NHWC: NDArray[np.uint8]) -> NDArray[Any]:
        """Return pixels as rows of the packs: as they are, or encoded, float16 (N, C, H, W).

        Raises:
            BadInput: the autoencoder cannot be loaded.
        """
        if self.latents is None:
            return pixels_NHWC
        starts = progress(
            range(0, len(pixels_NHWC), _ENCODED_AT_ONCE), label="encoding damage", unit="batch"
        )
        return np.concatenate(
            [self._encoded(pixels_NHWC[start : start + _ENCODED_AT_ONCE]) for start in starts]
        )

    def _encoded(self, pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float16]:
        found = self._codec.encode(torch.from_numpy(to_x0(pixels_NHWC)))
        return found.cpu().numpy().astype(np.float16)

    @cached_property
    def _codec(self) -> LatentCodec:
        assert self.latents is not None
        device = torch.accelerator.current_accelerator(check_available=True)
        return LatentCodec.open(self.latents).to(device or torch.device("cpu"))
