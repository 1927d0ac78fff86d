"""Training, calibration and measurement of the folds of one noise classifier.

Legend: N images, L levels, K noisings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ambient_omni.classifier.calibration import calibrate
from ambient_omni.classifier.cautions import cautions
from ambient_omni.classifier.config import ClassifierConfig, OrderConfig, Question
from ambient_omni.classifier.cosines import COSINE_WINDOWS
from ambient_omni.classifier.data import ClassifierData, PackedImages, fold_of
from ambient_omni.classifier.good_share import estimate_good_share
from ambient_omni.classifier.grader import Fold
from ambient_omni.classifier.network import NoiseClassifierNetwork
from ambient_omni.classifier.positive_control import (
    Band,
    judge_control,
    plant,
    require_found,
    require_told_apart,
    separation,
    separation_at_best,
    separation_band,
)
from ambient_omni.classifier.severity import Plantable
from ambient_omni.classifier.stored import fold_file, load_network, save_network
from ambient_omni.classifier.training import Sides, grade, train_fold
from ambient_omni.classifier.view import View
from ambient_omni.data.packs import Space, to_x0
from ambient_omni.progress import progress
from schemas.errors import BadInput
from schemas.ids import hash_fraction
from schemas.root import Root

_IMAGES_AT_ONCE = 64


class Maker:
    """Trains, calibrates and measures the folds of one classifier."""

    def __init__(
        self,
        root: Root,
        config: ClassifierConfig,
        view: View,
        data: ClassifierData,
        folder: Path,
        question: Question,
    ) -> None:
        if question == "domain_against_foreign":
            # Another domain is not a worse one: there is no order of severities to keep.
            config = config.model_copy(update={"order": OrderConfig(weight=0.0)})
        if view.latents is not None:
            # A mirrored image is no mirrored latent.
            config = config.model_copy(update={"augment": "none"})
        self._config, self._folder, self._question = config, folder, question
        self._root, self._view = root, view
        self._trusted, self._validation, self._pool = (
            members.images(root, view.space)
            for members in (data.trusted, data.validation, data.pool)
        )
        self._channels = view.space.x0_shape[0]
        self._fold_of_pool = np.array(
            [fold_of(group, config.num_folds) for group in data.pool.groups]
        )
        self._validation = self._validation.first_by_content(config.max_graded_images)
        self._graded_pool: list[NDArray[np.float64]] = []
        self._groups_of_graded_pool: list[str] = []
        self._graded_validation: list[NDArray[np.float64]] = []
        self._raw_validation: list[NDArray[np.float32]] = []

    def fold(self, number: int) -> Fold:
        """Train a fold, or load it where that was done, and calibrate it."""
        file = self._folder / fold_file(number)
        if not file.exists():
            seen = self._pool.subset(np.flatnonzero(self._fold_of_pool != number))
            # A reference that has a twin in the fold would teach its network that twin.
            trusted = self._trusted.without(set(self._unseen(number).groups))
            save_network(train_fold(self._sides(trusted, seen), self._config, number), file)
        network = load_network(file, self._config, self._channels)
        unseen = self._unseen(number)
        unseen = unseen.first_by_content(self._config.max_graded_images)
        if not len(unseen):
            raise BadInput(f"no image of the pool falls into fold {number}: use fewer folds")
        pool, validation = (self._grade(network, i.all()) for i in (unseen, self._validation))
        calibration = calibrate(validation, pool)
        self._graded_pool.append(calibration.apply(pool))
        self._groups_of_graded_pool += unseen.groups
        self._raw_validation.append(validation)
        self._graded_validation.append(calibration.apply(validation))
        return Fold(network, calibration)

    def _sides(self, trusted: PackedImages, pool: PackedImages) -> Sides:
        """Keep some groups of both sides apart, to stop by; the same ones on both."""
        fraction = self._config.stopping.fraction
        kept = {
            group
            for group in {*trusted.groups, *pool.groups}
            if hash_fraction(group, "classifier-stopping") < fraction
        }
        stop_trusted, stop_pool = trusted.among(kept), pool.among(kept)
        if not len(stop_trusted) or not len(stop_pool):
            return Sides(trusted, pool, damaged=self._damaged(trusted))
        trusted = trusted.without(kept)
        damaged = self._damaged(trusted)
        return Sides(trusted, pool.without(kept), stop_trusted, stop_pool, damaged)

    def _damaged(self, images: PackedImages) -> Plantable:
        return self._view.plantable(self._root, images)

    def _unseen(self, number: int) -> PackedImages:
        return self._pool.subset(np.flatnonzero(self._fold_of_pool == number))

    def measure(self, folds: Sequence[Fold]) -> dict[str, Any]:
        """Return the row's figures of what the folds can tell.

        Raises:
            ClassifierRefused: planted damage is not found; where the question is one of domains:
                the domains are not told apart.
        """
        # Every fold may grade the validation images: none trained on them.
        validation, pool = (
            np.concatenate(self._graded_validation, 2),
            np.concatenate(self._graded_pool),
        )
        groups = {
            "trusted_groups": self._validation.groups,
            "other_groups": self._groups_of_graded_pool,
        }
        told = separation(validation, pool)
        band = separation_band(validation, pool, **groups, seed=self._config.seed)
        figures = {name: v.tolist() for name, v in (asdict(told) | asdict(band)).items()}
        if self._question == "domain_against_foreign":
            require_told_apart(told, self._config.control)
            return figures | {"control": json.dumps({"planted": {}}), "warnings": []}
        return figures | self._control(folds, band) | self._good_share(validation, pool)

    def _control(self, folds: Sequence[Fold], band: Band) -> dict[str, Any]:
        config = self._config
        control = config.control
        validation = np.concatenate(self._raw_validation, axis=2)
        planted, worst = (
            {kind: self._grade_planted(folds, kind, s) for kind, s in severities.items()}
            for severities in (control.severities, control.worst)
        )
        findings = judge_control(validation, planted, control)
        require_found(findings, control)
        shown = [separation_at_best(validation, logits).tv_lower_bound for logits in worst.values()]
        found = cautions(
            num_trusted=len(self._trusted),
            sigmas_L=config.sigmas,
            tv_low_L=band.tv_low,
            tv_high_L=band.tv_high,
            worst_planted_tv_L=np.max(shown, axis=0),
        )
        row = {"bar": control.bar, "planted": findings}
        return {"control": json.dumps(row), "warnings": found}

    def _good_share(
        self, validation_NLK: NDArray[np.float64], pool_NLK: NDArray[np.float64]
    ) -> dict[str, float | None]:
        if self._question == "clean_against_damage":
            return {"good_share": 0.0, "good_share_low": 0.0, "good_share_high": 0.0}
        # Where damage shows most, at the levels of the control.
        num_low = max(1, round(self._config.control.level_fraction * len(self._config.sigmas)))
        scores = [side[:, :num_low].mean(axis=(1, 2)) for side in (validation_NLK, pool_NLK)]
        found = estimate_good_share(
            *scores,
            trusted_groups=self._validation.groups,
            pool_groups=self._groups_of_graded_pool,
            seed=self._config.seed,
        )
        return {
            "good_share": found.share,
            "good_share_low": found.low,
            "good_share_high": found.high,
        }

    def _grade_planted(
        self, folds: Sequence[Fold], kind: str, severity: float
    ) -> NDArray[np.float32]:
        """Return raw logits of damaged copies of the validation images, by all folds."""
        names, seed = self._validation.sample_ids, self._config.seed
        clean = self._view.in_pixels(self._root, self._validation).all()
        rows = self._view.rows_of(plant(clean, names, kind, severity, seed))
        return np.concatenate([self._grade(fold.network, rows) for fold in folds], axis=2)

    def _grade(self, network: NoiseClassifierNetwork, rows: NDArray[Any]) -> NDArray[np.float32]:
        parts = range(0, len(rows), _IMAGES_AT_ONCE)
        return np.concatenate(
            [
                grade(
                    network,
                    to_x0(rows[start : start + _IMAGES_AT_ONCE]),
                    self._config,
                    first=start,
                )
                for start in progress(
                    parts, label="checking the classifier", unit="batch", show=len(parts) > 1
                )
            ]
        )


def require_size(config: ClassifierConfig, space: Space) -> None:
    """Refuse images that the network's windows or patches do not fit.

    Raises:
        BadInput: too small, or no multiple of the patches on the coarsest scale.
    """
    side = min(space.x0_shape[1:])
    largest = max(window for window, _ in COSINE_WINDOWS)
    coarsest = config.network.patch * 2 ** (len(config.network.widths) - 1)
    if side < largest or side % coarsest:
        raise BadInput(
            f"a noise classifier needs images (or latents) of at least {largest} pixels and a "
            f"multiple of {coarsest} (patch and widths of its network), got {side} in "
            f"{space.noise_space}: choose a larger resolution of the transform, or another patch"
        )
