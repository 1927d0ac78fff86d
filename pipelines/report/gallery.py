"""Images of the pool on the page: groups from usable everywhere to never."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ambient_omni.data.packs import PackSet
from pipelines.report.drawing.mosaic import encode
from pipelines.report.pictures import data_uri
from pipelines.report.pool import Pool

IMAGES_PER_GROUP = 20
NUM_LEVEL_GROUPS = 6
# Larger training images are shown smaller, so that the page stays a few megabytes.
THUMBNAIL_SIDE = 96


@dataclass(frozen=True)
class GalleryImage:
    """One image; `about` is untrusted text: its caption and, if known, what was done to it."""

    uri: str
    level: str
    about: str


@dataclass(frozen=True)
class GalleryGroup:
    """Images of neighbouring levels."""

    title: str
    num_images: int
    images: list[GalleryImage]


def level_words(sigma_min: float) -> str:
    """Return a level as words."""
    if not np.isfinite(sigma_min):
        return "never"
    return "every level" if sigma_min == 0 else f"σ ≥ {sigma_min:.2g}"


def gallery(pool: Pool, pack: PackSet, truth_words: Sequence[str] | None) -> list[GalleryGroup]:
    """Return groups of images from usable everywhere to never, evenly spread over each group.

    Args:
        pool: the images.
        pack: their pixels.
        truth_words: what was really done to each, if known (N,).
    """
    order, levels = pool.by_level, pool.sigma_min[pool.by_level]
    groups = [("Usable at every noise level", order[levels == 0])]
    finite = order[(levels > 0) & ~np.isnan(levels)]
    for part in np.array_split(finite, min(NUM_LEVEL_GROUPS, max(1, len(finite)))):
        if len(part):
            low, high = pool.sigma_min[part[0]], pool.sigma_min[part[-1]]
            groups.append((f"Usable from σ = {low:.2g} to {high:.2g} upwards", part))
    groups.append(("Usable at no high noise level", order[np.isnan(levels)]))
    return [
        GalleryGroup(title, len(places), thumbnails(_spread(places), pool, pack, truth_words))
        for title, places in groups
        if len(places)
    ]


def thumbnails(
    places: NDArray[np.int64], pool: Pool, pack: PackSet, truth_words: Sequence[str] | None
) -> list[GalleryImage]:
    """Return the images at some places of the pool."""
    pixels = pack.take(pack.index_of(pool.sample_rows[places]))
    captions = pool.table["caption"].take(places).to_pylist()
    return [
        GalleryImage(
            data_uri(encode(image, THUMBNAIL_SIDE)),
            level_words(float(pool.sigma_min[place])),
            " · ".join(filter(None, [caption, truth_words[place] if truth_words else None])),
        )
        for image, place, caption in zip(pixels, places, captions, strict=True)
    ]


def _spread(places: NDArray[np.int64]) -> NDArray[np.int64]:
    count = min(IMAGES_PER_GROUP, len(places))
    chosen: NDArray[np.int64] = places[np.linspace(0, len(places) - 1, count).astype(int)]
    return chosen
