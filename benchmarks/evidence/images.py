"""The images of the study: real ones at 16 x 16, split by photograph, and their damaged copies.

Splits never share a photograph (landscapes) or a base code point (OpenMoji). A seed draws other
references and another pool from their splits; validation and test tiles are the same for all seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from ambient_omni import rng
from ambient_omni.damage import damage
from benchmarks.common import cache_folder
from benchmarks.photos import landscapes, step_of
from schemas.ids import hash_fraction

SIDE = 16
DATA_VERSION = 1
"""Raise it whenever the pixels change: every cell is computed anew."""

MIXED = "mixed"
"""A pool as the web has it: every image has one of `MIX`, all equally often."""

MIX: tuple[tuple[str, float] | None, ...] = (
    None, None, ("gaussian_blur", 0.6), ("gaussian_blur", 1.0), ("gaussian_blur", 1.6),
    ("jpeg", 75.0), ("jpeg", 90.0), ("motion_blur", 4.0), ("down_up", 2.0), ("sensor_noise", 25.0),
)  # fmt: skip

DataSet = Literal["landscapes", "openmoji"]
Split = Literal["reference", "pool", "validation", "test"]

_SHARES: dict[Split, float] = {"reference": 0.35, "pool": 0.35, "validation": 0.1, "test": 0.2}
# Photographs are scaled down threefold first: their own JPEG blocks would pass for damage.
_SHRINK = 3
# Neighbouring pixels of flat sky differ by less (RMS grey levels): no damage shows there.
_LEAST_STEP = 6.0
# Drawn large and averaged down, so that edges are as sharp as 16 pixels allow.
_OVERSAMPLING = 4
_NUM_VALIDATION, _NUM_TEST = 1_600, 2_000

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Tiles:
    """N images: `pixels` uint8 (N, 16, 16, 3), `names` of theirs, `origins` they were cut from."""

    pixels: Pixels
    names: tuple[str, ...]
    origins: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: NDArray[np.integer]) -> Pixels:
        """Return uint8 (len(indices), 16, 16, 3)."""
        return self.pixels[indices]

    def at(self, indices: NDArray[np.integer]) -> Tiles:
        """Return some of them."""
        return Tiles(
            self.pixels[indices],
            tuple(self.names[i] for i in indices),
            tuple(self.origins[i] for i in indices),
        )

    def with_pixels(self, pixels: Pixels) -> Tiles:
        """Return other pixels under the same names."""
        return Tiles(pixels, self.names, self.origins)


@cache
def split_of(data: DataSet, split: Split) -> Tiles:
    """Return all images of a split, the order fixed; those of validation and test are capped."""
    every = _all(data)
    mine = np.flatnonzero([_split_of(origin) == split for origin in every.origins])
    # Photographs in disorder, so that the first few hundred are not of one scene.
    order = mine[rng.permutation(len(mine), 0, "evidence-order", data, split)]
    cap = {"validation": _NUM_VALIDATION, "test": _NUM_TEST}.get(split)
    return every.at(order[:cap])


def draw(data: DataSet, split: Split, count: int, seed: int) -> Tiles:
    """Return `count` images of a split, other ones for every seed.

    Raises:
        ValueError: the split has fewer.
    """
    tiles = split_of(data, split)
    if count > len(tiles):
        raise ValueError(f"{split} of {data} has {len(tiles)} images, {count} are asked for")
    return tiles.at(rng.permutation(len(tiles), seed, "evidence-draw", data, split)[:count])


def damaged(tiles: Tiles, kind: str, severity: float, seed: int) -> Tiles:
    """Damage every image alike; directions, noise and what a mixed pool gives it are its own."""
    return tiles.with_pixels(
        np.stack(
            [
                one_damaged(kind, severity, image, rng.generator(seed, "evidence-damage", name))
                for image, name in zip(tiles.pixels, tiles.names, strict=True)
            ]
        )
    )


def one_damaged(
    kind: str, severity: float, image_HWC: Pixels, generator: np.random.Generator
) -> Pixels:
    """Return a damaged copy; kinds are `mixed`, `colour_cast` and `ambient_omni.damage`'s."""
    if kind == MIXED:
        chosen = MIX[int(generator.integers(len(MIX)))]
        return image_HWC if chosen is None else damage(*chosen, image_HWC, generator)
    if kind != "colour_cast":
        return damage(kind, severity, image_HWC, generator)
    # A low-frequency kind: the channels' gains, as of a wrong white balance. Warm, always.
    gains = np.exp(severity * np.array([0.5, 0.0, -0.5]))
    pixels: Pixels = np.clip(np.rint(image_HWC * gains), 0, 255).astype(np.uint8)
    return pixels


@cache
def _all(data: DataSet) -> Tiles:
    file = cache_folder("evidence-images") / f"{data}-{DATA_VERSION}.npz"
    with FileLock(file.with_suffix(".lock")):
        if not file.exists():
            _make(data, file)
    with np.load(file) as kept:
        return Tiles(kept["pixels"], tuple(kept["names"].tolist()), tuple(kept["origins"].tolist()))


def _make(data: DataSet, file: Path) -> None:
    makers: dict[DataSet, Callable[[], Iterator[tuple[str, str, Pixels]]]] = {
        "landscapes": _photo_tiles,
        "openmoji": _drawings,
    }
    names, origins, pixels = zip(*makers[data](), strict=True)
    aside = file.with_suffix(".new.npz")
    np.savez_compressed(
        aside, names=np.array(names), origins=np.array(origins), pixels=np.stack(pixels)
    )
    aside.replace(file)


def _photo_tiles() -> Iterator[tuple[str, str, Pixels]]:
    for path in sorted(landscapes().glob("*.jpg")):
        small = np.asarray(Image.open(path).convert("RGB").reduce(_SHRINK))
        for row in range(small.shape[0] // SIDE):
            for column in range(small.shape[1] // SIDE):
                down, across = row * SIDE, column * SIDE
                tile = np.ascontiguousarray(small[down : down + SIDE, across : across + SIDE])
                if step_of(tile) >= _LEAST_STEP:
                    yield f"{path.stem}/{row}/{column}", path.stem, tile


def _drawings() -> Iterator[tuple[str, str, Pixels]]:
    from pipelines.demo_data import drawings, render

    for drawing in drawings():
        large = Image.fromarray(render(drawing.svg, SIDE * _OVERSAMPLING))
        yield drawing.name, drawing.base, np.asarray(large.reduce(_OVERSAMPLING))


def _split_of(origin: str) -> Split:
    place, edge = hash_fraction(origin, "evidence-split"), 0.0
    for split, share in _SHARES.items():
        edge += share
        if place < edge:
            return split
    return "test"
