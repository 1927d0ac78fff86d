"""Windows for foreign images: how far each foreign image may be used, from the product's parts.

As `ambient_omni.windows.crop_training` does it from packs: a crop classifier in two folds, and the
receptive field of denoising on the references.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as nnf

from ambient_omni import rng
from ambient_omni.classifier.data import PackedImages, fold_of
from ambient_omni.data.packs import to_x0
from ambient_omni.windows.config import CropClassifierConfig, ReceptiveFieldConfig
from ambient_omni.windows.crop_classifier import CropClassifier, Fold, logits_of
from ambient_omni.windows.crop_training import calibrated
from ambient_omni.windows.crops import cut, random_corners, shuffled
from ambient_omni.windows.fitting import fit
from ambient_omni.windows.network import CropClassifierNetwork
from ambient_omni.windows.receptive_field import receptive_field
from benchmarks.evidence.cells import Form, Problem
from benchmarks.evidence.curves import NOISE_SPACE
from benchmarks.evidence.images import SIDE, Pixels, Tiles
from benchmarks.evidence.scenes import Scene
from pipelines.freezing import window_levels
from pipelines.policies import CropWindow, FixedPerSource
from pipelines.policies.by_window import decide_windows

_SIZES = (4, 8, 12)
_TOLERANCE = 0.02
"""Share of the loss that counts as none: a short training tells no finer."""


@dataclass(frozen=True)
class _ArrayPacks:
    pixels: Pixels
    sigma_data: None = None

    def take(self, indices: NDArray[np.integer]) -> Pixels:
        return self.pixels[indices]


def windows(
    problem: Problem, scene: Scene, form: Form
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return sigma_max of the pool (N,), and what led to it."""
    config = CropClassifierConfig(sizes=_SIZES, num_crops=form.num_crops, seed=problem.seed)
    folds = [_fold(scene, config, number) for number in range(config.num_folds)]
    groups = dict(zip(scene.pool.names, scene.pool.origins, strict=True))
    classifier = CropClassifier("evidence", _SIZES, "evidence", folds, groups)
    said = classifier.grade(to_x0(scene.pool.pixels), scene.pool.names)
    field = receptive_field(
        _packed(scene.reference),
        _packed(scene.validation),
        ReceptiveFieldConfig(
            num_windows=form.num_crops, num_noises=4, max_images=256, tolerance=_TOLERANCE,
            relative=True, seed=problem.seed,
        ),
    )  # fmt: skip
    levels = window_levels(np.array(field.sigmas), field.needed, np.array(_SIZES))
    policy = CropWindow(
        noise_space=NOISE_SPACE,
        floor=FixedPerSource(noise_space=NOISE_SPACE, levels={"*": None}),
        crop_classifier_id="evidence", receptive_field_id="evidence", sizes=_SIZES,
        sigma_max=tuple(levels.tolist()),
    )  # fmt: skip
    facts = {
        "levels_of_sizes": levels.tolist(),
        "needed_context": field.needed.tolist(),
        "mean_probability": said.mean_probability.mean(axis=0).tolist(),
    }
    return facts, {"sigma_max": decide_windows(policy, said.mean_probability)}


def _fold(scene: Scene, config: CropClassifierConfig, number: int) -> Fold:
    mine = np.array([fold_of(o, config.num_folds) == number for o in scene.pool.origins])
    seen, unseen = (scene.pool.at(np.flatnonzero(part)) for part in (~mine, mine))
    network = _train(scene.reference, seen, config, number)
    count = config.max_graded_images
    held, foreign = (tiles.pixels[:count] for tiles in (scene.validation, unseen))
    inside, outside, planted = (
        _grade(network, pixels, config, purpose, mix)
        for pixels, purpose, mix in (
            (held, "crops-validation", False),
            (foreign, "crops-foreign", False),
            (held, "planted-calibration", True),
        )
    )
    return Fold(network, calibrated(inside, outside, planted, config.planted_share))


def _train(
    domain: Tiles, foreign: Tiles, config: CropClassifierConfig, fold: int
) -> CropClassifierNetwork:
    half = config.batch_size // 2
    num_planted = max(1, round(config.planted_share * half))

    def loss_of_step(network: CropClassifierNetwork, step: int) -> Tensor:
        draw = rng.generator(config.seed, "crops-batch", fold, step)
        size = _SIZES[draw.integers(len(_SIZES))]
        inside = _crops(domain, half + num_planted, size, draw)
        other = _crops(foreign, half - num_planted, size, draw)
        crops = np.concatenate([inside[:half], shuffled(inside[half:], draw), other])
        logits = network(torch.from_numpy(crops))
        is_domain = (torch.arange(len(crops)) < half).float()
        return nnf.binary_cross_entropy_with_logits(logits, is_domain)

    with rng.torch_seeded(config.seed, "crops-weights", fold):
        network = CropClassifierNetwork(config.network, 3, _SIZES)
    return fit(network, loss_of_step, config, -(-config.num_crops // config.batch_size), "crops")


def _crops(tiles: Tiles, count: int, size: int, draw: np.random.Generator) -> NDArray[np.float32]:
    x0 = to_x0(tiles.take(draw.integers(len(tiles), size=count)))
    return cut(x0, random_corners(count, (SIDE, SIDE), size, draw), size)


def _grade(
    network: CropClassifierNetwork,
    pixels: Pixels,
    config: CropClassifierConfig,
    purpose: str,
    mix: bool,
) -> NDArray[np.float64]:
    """Return (N, S, K) raw logits of random crops, shuffled if asked to."""
    x0 = to_x0(pixels)
    out = np.empty((len(x0), len(_SIZES), config.crops_per_image))
    for place, size in enumerate(_SIZES):
        for number in range(config.crops_per_image):
            draw = rng.generator(config.seed, purpose, size, number)
            crops = cut(x0, random_corners(len(x0), (SIDE, SIDE), size, draw), size)
            out[:, place, number] = logits_of(network, shuffled(crops, draw) if mix else crops)
    return out


def _packed(tiles: Tiles) -> PackedImages:
    packs = cast(Any, _ArrayPacks(tiles.pixels))
    return PackedImages(packs, np.arange(len(tiles)), tiles.names, tiles.origins)
