"""Training of crop classifiers: domain against foreign, for all sizes at once.

One network for all sizes sees single crops, each sample cut at a place of its own. Its negatives
are crops of the foreign images and, for the positive control, some crops of the domain with their
positions shuffled: a network that has learned nothing says 1/2 everywhere, which would make every
foreign image usable. Crops carry no noise: a window reaches down to level 0.

Legend: N images, B batch, S sizes, K crops of an image, P positions, C channels, H height, W width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as nnf

from ambient_omni import rng
from ambient_omni.classifier.calibration import Calibration, calibrate
from ambient_omni.classifier.data import ClassifierData, PackedImages, fold_of
from ambient_omni.classifier.positive_control import Separation, separation
from ambient_omni.code_version import code_version
from ambient_omni.data.packs import Space, to_x0
from ambient_omni.windows.config import CropClassifierConfig
from ambient_omni.windows.crop_classifier import (
    META,
    Fold,
    Images,
    fold_file,
    is_stored,
    load_network,
    logits_of,
    save_network,
    weights_hash,
)
from ambient_omni.windows.crops import cut, random_corners, shuffled
from ambient_omni.windows.fitting import fit
from ambient_omni.windows.network import CropClassifierNetwork
from schemas.errors import BadInput, ClassifierRefused
from schemas.ids import canonical_hash
from schemas.registry import contract
from schemas.root import Root, write_json


def train_crop_classifier(
    root: Root,
    config: CropClassifierConfig,
    *,
    foreign_batches: Sequence[str],
    reference_set: str,
    space: Space,
) -> str:
    """Train a crop classifier, check it, write its row of crop_classifiers, and return its id.

    Does nothing when the same images, pixels and settings were trained on before; what was stopped
    goes on with the first fold that is missing.

    Raises:
        NotEnoughReferences, TableMissing, PackMissing: as of a noise classifier's data.
        BadInput: too few foreign images, or no size is smaller than the images.
        ClassifierRefused: shuffled crops are not found.
        TrainingFailed: the loss is not finite.
    """
    data = ClassifierData.read(root, foreign_batches, reference_set)
    sizes = config.sizes_in(min(space.x0_shape[1:]))
    if not sizes:
        raise BadInput(
            f"no crop size of {list(config.sizes)} is smaller than the images, "
            f"{space.x0_shape[1]} x {space.x0_shape[2]}: give smaller sizes"
        )
    classifier_id = _classifier_id(data, config, space)
    folder = root.classifiers / classifier_id
    if is_stored(root, classifier_id):
        return classifier_id
    with root.lock("crop_classifier", classifier_id):
        maker = _Maker(root, config, space, data, sizes)
        folds = [maker.fold(number, folder) for number in range(config.num_folds)]
        measured = maker.measure(folds)
        meta = {
            "config": config.model_dump(mode="json"),
            "sizes": list(sizes),
            "channels": space.x0_shape[0],
            "transform_id": space.transform_id,
            "groups": dict(data.twins),
            "calibrations": [
                {"scale": f.calibration.scale.tolist(), "offset": f.calibration.offset.tolist()}
                for f in folds
            ],
        }
        write_json(folder / META, meta)
        row = {
            "crop_classifier_id": classifier_id,
            "reference_set": reference_set,
            "foreign_batches": list(foreign_batches),
            "noise_space": space.noise_space,
            "num_folds": config.num_folds,
            "sizes": list(sizes),
            **measured,
            "config": json.dumps(config.model_dump(mode="json")),
            "weights_sha256": weights_hash(folder, config.num_folds),
            "code_version": code_version(),
        }
        rows = contract("crop_classifiers").table([row])
        root.tables.upsert("crop_classifiers", rows, job="crop_classifier")
    return classifier_id


def calibrated(
    inside_NSK: NDArray[np.floating],
    foreign_NSK: NDArray[np.floating],
    planted_NSK: NDArray[np.floating],
    planted_share: float,
) -> Calibration:
    """Return the map from raw logits to those of domain against foreign, per size.

    Fitted on the question that was trained, planted crops and all: where foreign crops are the
    domain's, a fit without them would tone everything down, and noise would pass as well. With a
    share w of planted crops among the negatives the odds of any other crop are p / ((1 - w) q);
    ln(1 - w) takes that back.
    """
    count = max(1, round(planted_share / (1 - planted_share) * len(foreign_NSK)))
    planted = np.resize(planted_NSK, (count, *planted_NSK.shape[1:]))
    found = calibrate(inside_NSK, np.concatenate([foreign_NSK, planted]), reach=0)
    return Calibration(found.scale, found.offset + np.log1p(-planted_share))


def told_apart(inside_NSK: NDArray[np.floating], planted_NSK: NDArray[np.floating]) -> Separation:
    """Measure how well crops of the domain are told from planted ones, per size.

    Not at P = 1/2: where foreign crops are the domain's, the domain's own logits lie around 0,
    however clear the planted ones are. The border of each size is the best one on half of the
    images, and is judged by the other half.
    """
    halves = [(inside_NSK[first::2], planted_NSK[first::2]) for first in (0, 1)]
    inside, planted = (np.moveaxis(side, 1, 0).reshape(side.shape[1], -1) for side in halves[0])
    borders = np.empty(len(inside))
    for size, (one, other) in enumerate(zip(inside, planted, strict=True)):
        tried = np.sort(np.concatenate([one, other]))
        below = [np.searchsorted(np.sort(x), tried, side="right") / len(x) for x in (one, other)]
        apart = below[1] - below[0]
        best = np.flatnonzero(apart == apart.max())
        # In the middle between the sides, not at the edge of one.
        borders[size] = (tried[best[0]] + tried[min(best[-1] + 1, len(tried) - 1)]) / 2
    shift = borders[None, :, None]
    return separation(halves[1][0] - shift, halves[1][1] - shift)


class _Maker:
    """Trains, calibrates and measures the folds of one classifier."""

    def __init__(
        self,
        root: Root,
        config: CropClassifierConfig,
        space: Space,
        data: ClassifierData,
        sizes: Sequence[int],
    ) -> None:
        self._config, self._sizes, self._channels = config, tuple(sizes), space.x0_shape[0]
        self._trusted, self._validation, self._foreign = (
            members.images(root, space) for members in (data.trusted, data.validation, data.pool)
        )
        count = config.num_folds
        self._fold_of = np.array([fold_of(g, count) for g in self._foreign.groups])
        self._said: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []

    def fold(self, number: int, folder: Path) -> Fold:
        """Train a fold, or load it where that was done, and calibrate it on what it did not see."""
        file = folder / fold_file(number)
        if not file.exists():
            seen = self._foreign.subset(np.flatnonzero(self._fold_of != number))
            save_network(self._train(seen, number), file)
        network = load_network(file, self._config, self._channels, self._sizes)
        unseen = self._foreign.subset(np.flatnonzero(self._fold_of == number))
        if not len(unseen):
            raise BadInput(f"no foreign image falls into fold {number}: use fewer folds")
        count = self._config.max_graded_images
        inside, outside = (
            self._grade(network, images.first_by_content(count), f"crops-{name}")
            for name, images in (("validation", self._validation), ("foreign", unseen))
        )
        held = self._validation.first_by_content(count)
        planted = self._grade(network, held, "planted-calibration", shuffled)
        calibration = calibrated(inside, outside, planted, self._config.planted_share)
        self._said.append((calibration.apply(inside), calibration.apply(outside)))
        return Fold(network, calibration)

    def measure(self, folds: Sequence[Fold]) -> dict[str, Any]:
        """Return the row's figures of what the folds can tell.

        Raises:
            ClassifierRefused: shuffled crops of held-out references are not found.
        """
        inside = np.concatenate([said[0] for said in self._said], axis=2)
        told = separation(inside, np.concatenate([said[1] for said in self._said]))
        held = self._validation.first_by_content(self._config.max_graded_images)
        planted = np.concatenate(
            [f.calibration.apply(self._grade(f.network, held, "planted", shuffled)) for f in folds],
            axis=2,
        )
        found = told_apart(inside, planted)
        bound, error = found.tv_lower_bound, found.tv_standard_error
        if not bound[-1] - 2 * error[-1] > self._config.bar:
            raise ClassifierRefused(
                f"the crop classifier does not find shuffled crops of side {self._sizes[-1]} "
                f"(lower bound of the total variation {bound[-1]:.2f}±{error[-1]:.2f}; needed: "
                f"above {self._config.bar} by two standard errors): train it longer (num_crops), "
                "give more references, or larger crops where images are flat"
            )
        control = {"bar": self._config.bar, "tv_lower_bound": bound.tolist()}
        return {
            "tv_lower_bound": told.tv_lower_bound.tolist(),
            "tv_standard_error": told.tv_standard_error.tolist(),
            "control": json.dumps(control | {"tv_standard_error": error.tolist()}),
        }

    def _train(self, foreign: PackedImages, fold: int) -> CropClassifierNetwork:
        config = self._config
        half = config.batch_size // 2
        num_planted = max(1, round(config.planted_share * half))

        def loss_of_step(network: CropClassifierNetwork, step: int) -> Tensor:
            draw = rng.generator(config.seed, "crops-batch", fold, step)
            size = self._sizes[draw.integers(len(self._sizes))]
            domain = self._random_crops(self._trusted, half + num_planted, size, draw)
            other = self._random_crops(foreign, half - num_planted, size, draw)
            planted = shuffled(domain[half:], draw)
            crops = np.concatenate([domain[:half], planted, other])
            is_domain = torch.arange(len(crops)) < half
            logits = network(torch.from_numpy(crops))
            return nnf.binary_cross_entropy_with_logits(logits, is_domain.float())

        with rng.torch_seeded(config.seed, "crops-weights", fold):
            network = CropClassifierNetwork(config.network, self._channels, self._sizes)
        num_steps = -(-config.num_crops // config.batch_size)
        return fit(network, loss_of_step, config, num_steps, f"crops {fold + 1}/{config.num_folds}")

    def _random_crops(
        self, images: PackedImages, count: int, size: int, draw: np.random.Generator
    ) -> Images:
        x0 = to_x0(images.take(draw.integers(len(images), size=count)))
        return cut(x0, random_corners(count, (x0.shape[2], x0.shape[3]), size, draw), size)

    def _grade(
        self,
        network: CropClassifierNetwork,
        images: PackedImages,
        purpose: str,
        change: Callable[[Images, np.random.Generator], Images] | None = None,
    ) -> NDArray[np.float64]:
        """Return (N, S, K) raw logits of random crops."""
        x0 = to_x0(images.take(np.arange(len(images))))
        out = np.empty((len(x0), len(self._sizes), self._config.crops_per_image))
        for place, size in enumerate(self._sizes):
            for number in range(self._config.crops_per_image):
                draw = rng.generator(self._config.seed, purpose, size, number)
                shape = (x0.shape[2], x0.shape[3])
                crops = cut(x0, random_corners(len(x0), shape, size, draw), size)
                out[:, place, number] = logits_of(network, change(crops, draw) if change else crops)
        return out


def _classifier_id(data: ClassifierData, config: CropClassifierConfig, space: Space) -> str:
    inputs = {
        "config": config.model_dump(mode="json"),
        "transform": space.transform_id,
        "trusted": canonical_hash(sorted(data.trusted.sample_ids)),
        "validation": canonical_hash(sorted(data.validation.sample_ids)),
        "foreign": canonical_hash(sorted(data.pool.sample_ids)),
        "groups": canonical_hash(dict(data.twins)),
    }
    return f"crops-{canonical_hash(inputs)}"
