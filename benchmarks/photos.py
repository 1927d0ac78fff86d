"""Natural photographs as 32 x 32 tiles, with damage of known severity; split by photograph.

273 landscapes of the game Endless Sky (Debian package, public domain and CC-BY-SA) and five
colour photographs that scikit-image ships (BSD-3). They are fetched with apt and pip into
``~/.cache/ambient-omni/bench`` and are no part of the repository.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from ambient_omni import rng
from ambient_omni.damage import damage
from benchmarks.common import cache_folder
from schemas.ids import hash_fraction

TILE = 32
SHRINK = 2
"""Photos are halved first: their own JPEG blocks and soft pixels would pass for damage."""

LEAST_STEP = 6.0
"""A tile is too flat to be damaged where neighbouring pixels differ by less (RMS grey levels)."""

SEVERITIES: dict[str, tuple[float, float]] = {
    "gaussian_blur": (0.4, 2.5),
    "motion_blur": (1.0, 12.0),
    "down_up": (1.2, 5.0),
    "jpeg": (10.0, 95.0),
    "sensor_noise": (3.0, 60.0),
}
"""Ranges of `ambient_omni.damage`; severities are spread evenly in the logarithm, JPEG's evenly."""

_SCIKIT = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
_SHARES = {"trusted": 0.35, "pool": 0.35, "validation": 0.1, "held_out": 0.2}


@dataclass(frozen=True)
class Tiles:
    """N tiles: `pixels` uint8 (N, 32, 32, 3) and the photograph that each comes from."""

    pixels: NDArray[np.uint8]
    photos: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Return uint8 (len(indices), 32, 32, 3)."""
        return self.pixels[indices]

    def at(self, index: NDArray[np.generic]) -> Tiles:
        """Return some of them, by positions or by a mask."""
        return Tiles(self.pixels[index], self.photos[index])

    def names(self) -> list[str]:
        """Return one name a tile: its photograph and its number."""
        return [f"{photo}#{i}" for i, photo in enumerate(self.photos)]


def load(split: str) -> Tiles:
    """Return the tiles of "trusted", "pool", "validation" or "held_out" photos, flat ones left out.

    The photographs of scikit-image are held out, always.
    """
    found = [
        (photo, tile)
        for photo, path in _photographs()
        if _split_of(photo) == split
        for tile in _tiles(path)
        if step_of(tile) >= LEAST_STEP
    ]
    return Tiles(np.stack([tile for _, tile in found]), np.array([photo for photo, _ in found]))


def step_of(tile_HWC: NDArray[np.uint8]) -> float:
    """Return the root mean square difference of neighbouring pixels, in grey levels."""
    tile = tile_HWC.astype(np.float64)
    squares = [np.square(np.diff(tile, axis=axis)).mean() for axis in (0, 1)]
    return float(np.sqrt(np.mean(squares)))


def severity_at(kind: str, place: float) -> float:
    """Return the severity at `place` (0 mildest .. 1 worst) of a kind's range."""
    low, high = SEVERITIES[kind]
    return low + place * (high - low) if kind == "jpeg" else float(low * (high / low) ** place)


@dataclass(frozen=True)
class Damaged:
    """Tiles after damage; `kind` is "" and `place` -1 where a tile was left alone."""

    tiles: Tiles
    kind: NDArray[np.str_]
    place: NDArray[np.float64]


def damaged_mix(tiles: Tiles, undamaged_fraction: float, seed: int) -> Damaged:
    """Damage tiles, every kind equally often and at every severity of its range."""
    out, kinds, places = tiles.pixels.copy(), [], []
    for i, name in enumerate(tiles.names()):
        draw = rng.generator(seed, "photo-damage", name)
        chance, which, place = draw.random(3)
        kind = "" if chance < undamaged_fraction else list(SEVERITIES)[int(which * len(SEVERITIES))]
        kinds.append(kind)
        places.append(place if kind else -1.0)
        if kind:
            out[i] = damage(kind, severity_at(kind, place), out[i], draw)
    return Damaged(Tiles(out, tiles.photos), np.array(kinds), np.array(places))


def damaged_at(
    tiles: Tiles, kind: str, places: Sequence[float] | NDArray[np.float64], seed: int
) -> Tiles:
    """Damage each tile at its place of the kind's range; what is random is the tile's own.

    Two severities of one tile share the direction of motion and the pattern of noise.
    """
    return Tiles(
        np.stack(
            [
                damage(kind, severity_at(kind, place), tile, rng.generator(seed, kind, name))
                for tile, place, name in zip(tiles.pixels, places, tiles.names(), strict=True)
            ]
        ),
        tiles.photos,
    )


def _tiles(path: Path) -> list[NDArray[np.uint8]]:
    image = Image.open(path).convert("RGB")
    small = image.reduce(SHRINK)
    pixels = np.asarray(small)
    rows, columns = pixels.shape[0] // TILE, pixels.shape[1] // TILE
    return [
        np.ascontiguousarray(pixels[r * TILE : (r + 1) * TILE, c * TILE : (c + 1) * TILE])
        for r in range(rows)
        for c in range(columns)
    ]


def _split_of(photo: str) -> str:
    if photo.startswith("scikit/"):
        return "held_out"
    place, edge = hash_fraction(photo, "photo-split"), 0.0
    for split, share in _SHARES.items():
        edge += share
        if place < edge:
            return split
    return "held_out"


def _photographs() -> list[tuple[str, Path]]:
    land = [(f"land/{path.stem}", path) for path in sorted(landscapes().glob("*.jpg"))]
    return land + [(f"scikit/{path.stem}", path) for path in sorted(_scikit().iterdir())]


def landscapes() -> Path:
    """Return the folder of the landscapes, 720 x 360 JPEG; fetched once, by one process."""
    folder = cache_folder("endless-sky")
    unpacked = folder / "unpacked"
    with FileLock(folder / ".lock"):
        if not unpacked.exists():
            for old in folder.glob("*.deb"):  # of a download that was stopped
                old.unlink()
            command = ["apt-get", "download", "-q", "endless-sky-data"]
            subprocess.run(command, cwd=folder, check=True)
            (package,) = folder.glob("*.deb")
            aside = folder / "unpacked.new"
            shutil.rmtree(aside, ignore_errors=True)
            subprocess.run(["dpkg-deb", "-x", package, aside], check=True)
            package.unlink()
            aside.rename(unpacked)
    return unpacked / "usr/share/games/endless-sky/images/land"


def _scikit() -> Path:
    folder = cache_folder("scikit-image")
    wanted = folder / "photos"
    with FileLock(folder / ".lock"):
        if wanted.exists():
            return wanted
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
        subprocess.run([*command, "scikit-image==0.26.0"], check=True)
        (wheel,) = folder.glob("scikit_image-*.whl")
        aside = folder / "photos.new"
        aside.mkdir(exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            for name in _SCIKIT:
                (aside / name).write_bytes(archive.read(f"skimage/data/{name}"))
        wheel.unlink()
        aside.rename(wanted)
    return wanted
