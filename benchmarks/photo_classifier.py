"""A noise classifier of natural photographs, one for each seed, and the tiles that it never saw.

Used by `benchmarks.annotation`. Trusted photos (`benchmarks.photos`) stand against a pool of other
photos with damage of every kind and severity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ambient_omni import rng
from ambient_omni.classifier.annotators import Grid, shift_by_shared_noises
from ambient_omni.classifier.calibration import Calibration, calibrate
from ambient_omni.classifier.config import ClassifierConfig, GridConfig
from ambient_omni.classifier.data import VERSION
from ambient_omni.classifier.grader import Fold, NoiseClassifier
from ambient_omni.classifier.network import NoiseClassifierNetwork
from ambient_omni.classifier.training import Sides, grade, train_fold
from ambient_omni.data.packs import to_x0
from benchmarks import photos
from benchmarks.common import cache_folder
from benchmarks.known_noise import NETWORK
from schemas.ids import canonical_hash, hash_fraction

CLASSIFIER = ClassifierConfig.model_validate(
    {
        "num_images": 80_000,
        "ema_decay": 0.995,
        "augment": "geometry",
        "num_levels": 20,
        "num_noises": 2,
        "order": {"num_chains": 6_000, "chains_per_batch": 12},
    }
)
MAX_SEEDS = 3  # no two of them have a held-out tile in common


@dataclass(frozen=True)
class Bench:
    """One trained classifier, and the tiles that only it is measured on.

    Attributes:
        seed: of its training and its noises; it also picks its share of the held-out tiles.
        left_out: a kind of damage that it never saw; "" for none.
    """

    seed: int
    left_out: str = ""

    @property
    def config(self) -> ClassifierConfig:
        """Its settings."""
        ranges = {k: v for k, v in CLASSIFIER.order.ranges.items() if k != self.left_out}
        order = CLASSIFIER.order.model_copy(update={"ranges": ranges})
        return CLASSIFIER.model_copy(update={"seed": self.seed, "order": order})

    def held_out(self, count: int) -> photos.Tiles:
        """Return `count` held-out tiles that no other seed has."""
        tiles = photos.load("held_out")
        order = rng.permutation(len(tiles), 0, "annotation-benchmark")
        return tiles.at(np.sort(order[self.seed :: MAX_SEEDS][:count]))

    def pool(self, *, graded: bool) -> photos.Damaged:
        """Return the pool's tiles that the network grades, or those that it trains on."""
        mix = _pool()
        is_graded = [hash_fraction(p, "classifier-fold") < 0.5 for p in mix.tiles.photos]
        wanted = (np.array(is_graded) == graded) & (mix.kind != (self.left_out or "none"))
        return photos.Damaged(mix.tiles.at(wanted), mix.kind[wanted], mix.place[wanted])

    def file(self, name: str, key: object, suffix: str) -> Path:
        """Return where a result of it is kept."""
        who = [self.config.model_dump(mode="json"), self.left_out, NETWORK, VERSION]
        return cache_folder("annotation") / f"{name}-{canonical_hash([key, who])}{suffix}"


@cache
def _pool() -> photos.Damaged:
    return photos.damaged_mix(photos.load("pool"), undamaged_fraction=0.2, seed=0)


@cache
def classifier(bench: Bench) -> NoiseClassifier:
    """Return one fold: held-out photos are unseen by any, so a second would tell no more."""
    file = bench.file("classifier", "", ".pt")
    if not file.exists():
        sides = Sides(photos.load("trusted"), bench.pool(graded=False).tiles)
        torch.save(train_fold(sides, bench.config, 0).state_dict(), file)
    network = NoiseClassifierNetwork(bench.config.network, 3)
    network.load_state_dict(torch.load(file))
    network.eval()
    folds = [Fold(network, _calibration(bench, network))]
    return NoiseClassifier(bench.config, "tiles", folds, "benchmark")


def _calibration(bench: Bench, network: NoiseClassifierNetwork) -> Calibration:
    file = bench.file("calibration", "", ".npz")
    if not file.exists():
        sides = (photos.load("validation"), bench.pool(graded=True).tiles)
        found = calibrate(*(_graded(network, some(s, 400), bench.config) for s in sides))
        np.savez(file, scale=found.scale, offset=found.offset)
    with np.load(file) as kept:
        return Calibration(kept["scale"], kept["offset"])


def grid(bench: Bench, config: GridConfig) -> Grid:
    """Return a grid that knows by how much its noises move all answers."""
    asked, pool = classifier(bench), some(bench.pool(graded=True).tiles, 400)
    x0 = to_x0(pool.pixels)
    shift = shift_by_shared_noises(asked, config, bench.seed, pool.names(), x0.__getitem__)
    return Grid(asked, config, bench.seed, shift)


def _graded(network, tiles: photos.Tiles, config: ClassifierConfig) -> NDArray[np.float32]:
    parts = _parts(tiles.pixels)
    firsts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
    return np.concatenate(
        [
            grade(network, to_x0(part), config, first=first)
            for part, first in zip(parts, firsts, strict=False)
        ]
    )


def some(tiles: photos.Tiles, count: int) -> photos.Tiles:
    """Return `count` tiles, the same ones each time."""
    order = rng.permutation(len(tiles), 0, "annotation-benchmark")
    return tiles.at(np.sort(order[:count]))


def _parts(pixels) -> list:
    return [pixels[start : start + 256] for start in range(0, len(pixels), 256)]
