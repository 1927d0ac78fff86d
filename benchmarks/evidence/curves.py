"""The noise classifier of one problem, from the product's own parts, and what it says.

As `ambient_omni.classifier.making` makes it from packs: folds by photograph, calibrated on
validation images and on pool images of the fold, checked with planted damage.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ambient_omni.classifier.annotators import Grid, shift_by_shared_noises
from ambient_omni.classifier.calibration import Calibration, calibrate
from ambient_omni.classifier.config import ClassifierConfig
from ambient_omni.classifier.data import fold_of
from ambient_omni.classifier.grader import Fold, NoiseClassifier
from ambient_omni.classifier.network import NoiseClassifierNetwork
from ambient_omni.classifier.positive_control import (
    judge_control,
    plant,
    require_found,
    separation,
)
from ambient_omni.classifier.training import Sides, grade, train_fold
from ambient_omni.data.packs import to_x0
from benchmarks.evidence.cells import Form, Problem
from benchmarks.evidence.images import SIDE, Pixels, Tiles
from benchmarks.evidence.scenes import Scene
from schemas.errors import ClassifierRefused
from schemas.ids import hash_fraction

NOISE_SPACE = f"pixel:{SIDE}x{SIDE}:pm1"
_IMAGES_AT_ONCE = 256

Logits = NDArray[np.floating]


def curves(
    problem: Problem, scene: Scene, form: Form
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Train the folds, calibrate, check, and grade the pool.

    Returns:
        Facts: what the classifier can tell, and why its positive control refused it, if it did.
        Arrays: levels (L,), logits (N, L) and their standard errors of the pool.
    """
    config = form.classifier.model_copy(update={"seed": problem.seed})
    made = [_fold(scene, config, number) for number in range(config.num_folds)]
    validation, unseen = (
        np.concatenate([calibration.apply(side[which]) for _, calibration, *side in made], axis)
        for which, axis in ((0, 2), (1, 0))
    )
    folds = [Fold(network, calibration) for network, calibration, *_ in made]
    twins = dict(zip(scene.pool.names, scene.pool.origins, strict=True))
    classifier = NoiseClassifier(config, NOISE_SPACE, folds, "evidence", twins)
    x0, names, grid = to_x0(scene.pool.pixels), scene.pool.names, config.own_grid
    shift = shift_by_shared_noises(classifier, grid, config.seed, names, x0.__getitem__)
    said = Grid(classifier, grid, config.seed, shift).curves(x0, names)
    facts = {
        "tv": separation(validation, unseen).tv_lower_bound.tolist(),
        "refused": _refusal(scene, config, [network for network, *_ in made]),
    }
    return facts, {
        "sigmas": said.sigmas,
        "logits": said.logits,
        "errors": said.logit_standard_error,
    }


def _fold(
    scene: Scene, config: ClassifierConfig, number: int
) -> tuple[NoiseClassifierNetwork, Calibration, Logits, Logits]:
    """Return a network, its calibration, and its raw logits of validation and unseen pool."""
    mine = _mask(fold_of(photo, config.num_folds) == number for photo in scene.pool.origins)
    network = train_fold(_sides(scene.reference, _some(scene.pool, ~mine), config), config, number)
    unseen = _some(scene.pool, mine).pixels[: config.max_graded_images]
    known = scene.validation.pixels[: config.max_graded_images]
    validation, pool = (_grade(network, pixels, config) for pixels in (known, unseen))
    return network, calibrate(validation, pool), validation, pool


def _sides(trusted: Tiles, pool: Tiles, config: ClassifierConfig) -> Sides:
    """Keep some photographs of both sides apart, to stop by."""
    asides = [
        _mask(
            hash_fraction(photo, "classifier-stopping") < config.stopping.fraction
            for photo in tiles.origins
        )
        for tiles in (trusted, pool)
    ]
    if not all(aside.any() for aside in asides):
        return Sides(trusted, pool)
    kept = [_some(tiles, ~aside) for tiles, aside in zip((trusted, pool), asides, strict=True)]
    apart = [_some(tiles, aside) for tiles, aside in zip((trusted, pool), asides, strict=True)]
    return Sides(*kept, *apart)


def _refusal(scene: Scene, config: ClassifierConfig, networks: list[NoiseClassifierNetwork]) -> str:
    """Return what the positive control says of it; empty if planted damage is found."""
    tiles = scene.validation.at(np.arange(min(len(scene.validation), config.max_graded_images)))

    def graded(pixels: Pixels) -> Logits:
        return np.concatenate([_grade(n, pixels, config) for n in networks], axis=2)

    planted = {
        kind: graded(plant(tiles.pixels, tiles.names, kind, severity, config.seed))
        for kind, severity in config.control.severities.items()
    }
    try:
        require_found(judge_control(graded(tiles.pixels), planted, config.control), config.control)
    except ClassifierRefused as error:
        return str(error)
    return ""


def _grade(network: NoiseClassifierNetwork, pixels: Pixels, config: ClassifierConfig) -> Logits:
    parts = range(0, len(pixels), _IMAGES_AT_ONCE)
    return np.concatenate(
        [grade(network, to_x0(pixels[i : i + _IMAGES_AT_ONCE]), config, first=i) for i in parts]
    )


def _mask(values: Any) -> NDArray[np.bool_]:
    return np.fromiter(values, bool)


def _some(tiles: Tiles, mask: NDArray[np.bool_]) -> Tiles:
    return tiles.at(np.flatnonzero(mask))
