"""The noise classifier: trained, checked, stored, loaded, and asked for curves.

Legend: N images, B batch, L levels, K noisings, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from ambient_omni.classifier.annotators import Curves, Grid
from ambient_omni.classifier.calibration import Calibration, calibrate
from ambient_omni.classifier.config import ClassifierConfig, GridConfig, TrainClassifierJob
from ambient_omni.classifier.data import ClassifierData, PackedImages, fold_of
from ambient_omni.classifier.groups import named
from ambient_omni.classifier.network import NoiseClassifierNetwork
from ambient_omni.classifier.positive_control import judge_control, plant, require_found, separation
from ambient_omni.classifier.training import Sides, answer, grade, noise_bank, train_fold
from ambient_omni.code_version import code_version
from ambient_omni.data.packs import to_x0
from ambient_omni.data.transforms import Transform
from ambient_omni.progress import progress
from schemas.errors import BadInput, ClassifierRefused
from schemas.ids import hash_fraction
from schemas.registry import contract
from schemas.root import Root, write_json

__all__ = [
    "ClassifierConfig",
    "NoiseClassifier",
    "TrainClassifierJob",
    "classifier_id_for",
    "fold_of",
    "load",
    "train_classifier",
    "transform_of",
]

_META = "classifier.json"
_IMAGES_AT_ONCE = 256  # 256 images of 32 x 32 are 3 MB: the caches hold a layer of them


@dataclass(frozen=True)
class Fold:
    """One network with its calibration."""

    network: NoiseClassifierNetwork
    calibration: Calibration


class NoiseClassifier:
    """K networks that grade images at levels `sigmas` (L,), each those that it did not see."""

    def __init__(
        self,
        config: ClassifierConfig,
        noise_space: str,
        folds: Sequence[Fold],
        classifier_id: str,
        twins: Mapping[str, str] | None = None,
    ) -> None:
        """`twins`: group by sample_id of images that do not stand alone; see `groups`."""
        self.config = config
        self.noise_space = noise_space
        self.classifier_id = classifier_id
        self.sigmas = config.sigmas
        self._folds = tuple(folds)
        self._twins = twins or {}

    @property
    def num_folds(self) -> int:
        """How many networks there are."""
        return len(self._folds)

    def folds_of(self, sample_ids: Sequence[str]) -> NDArray[np.int32]:
        """Return the (B,) folds that may grade images."""
        groups = named(sample_ids, self._twins)
        return np.array([fold_of(group, self.num_folds) for group in groups], np.int32)

    def curves(
        self,
        x0_BCHW: NDArray[np.float32],
        sample_ids: Sequence[str],
        folds: NDArray[np.integer] | None = None,
    ) -> Curves:
        """Grade images on the classifier's own grid; the same numbers in any batch.

        Args:
            x0_BCHW: images in [-1, 1].
            sample_ids: their B names.
            folds: (B,) who grades; `folds_of(sample_ids)` by default.

        Raises:
            ValueError: lengths differ, or a fold is named that may have trained on its image.
        """
        if folds is not None and not np.array_equal(folds, self.folds_of(sample_ids)):
            raise ValueError("each image needs its name and the fold that `folds_of` gives it")
        grid = Grid(self, GridConfig(num_noises=self.config.num_noises), self.config.seed)
        return grid.curves(x0_BCHW, sample_ids)

    def ask(
        self,
        x0_BCHW: NDArray[np.float32],
        sample_ids: Sequence[str],
        sigmas_BQ: NDArray[np.floating],
        noises_QCHW: NDArray[np.float32],
    ) -> NDArray[np.float64]:
        """Return (B, Q) calibrated logits of P(trusted): image b at its level q under noise q.

        Every image is graded by the fold that did not train on it.

        Raises:
            ValueError: lengths differ.
        """
        if not len(x0_BCHW) == len(sample_ids) == len(sigmas_BQ):
            raise ValueError("each image needs its name and its levels")
        if np.shape(sigmas_BQ)[1] != len(noises_QCHW):
            raise ValueError("each question needs its noise")
        out = np.empty(np.shape(sigmas_BQ))
        folds = self.folds_of(sample_ids)
        for number, fold in enumerate(self._folds):
            mine = np.flatnonzero(folds == number)
            for start in range(0, len(mine), _IMAGES_AT_ONCE):
                part = mine[start : start + _IMAGES_AT_ONCE]
                scale, offset = fold.calibration.at(self.sigmas, sigmas_BQ[part])
                raw = answer(fold.network, x0_BCHW[part], sigmas_BQ[part], noises_QCHW)
                out[part] = scale * raw + offset
        return out

    def to(self, device: str) -> NoiseClassifier:
        """Move the networks to a device, in place; images and answers stay on the CPU side."""
        for fold in self._folds:
            fold.network.to(device)
        return self


def classifier_id_for(
    root: Root,
    config: ClassifierConfig,
    *,
    pool_batches: Sequence[str],
    reference_set: str,
    transform: Transform,
) -> str:
    """Return the id that `train_classifier` would return, without training.

    Raises:
        NotEnoughReferences, BadInput, TableMissing: as `train_classifier`.
    """
    return ClassifierData.read(root, pool_batches, reference_set).classifier_id(config, transform)


def train_classifier(
    root: Root,
    config: ClassifierConfig,
    *,
    pool_batches: Sequence[str],
    reference_set: str,
    transform: Transform,
) -> str:
    """Train a noise classifier, check it, and write its row of noise_classifiers.

    Does nothing when the same images, pixels and settings were trained on before. What was
    stopped goes on with the first fold that is missing.

    Args:
        root: where packs and tables are.
        config: the classifier.
        pool_batches: the negatives.
        reference_set: the positives. Those of "validation" calibrate and check it.
        transform: the pixels.

    Returns:
        The classifier_id.

    Raises:
        NotEnoughReferences: too few images to train or to check.
        BadInput: too few images in the pool.
        PackMissing: a batch has no complete pack of the transform.
        ClassifierRefused: planted damage is not found.
        JobAlreadyRunning: the same classifier is being trained.
    """
    data = ClassifierData.read(root, pool_batches, reference_set)
    classifier_id = data.classifier_id(config, transform)
    if _is_stored(root, classifier_id):
        return classifier_id
    with root.lock("train_classifier", classifier_id):
        maker = _Maker(root, config, transform, data, root.classifiers / classifier_id)
        folds = [maker.fold(number) for number in range(config.num_folds)]
        measured = maker.measure(folds)
        calibrations = [fold.calibration for fold in folds]
        _store(root, classifier_id, config, transform, calibrations, data.twins)
        row = {
            "classifier_id": classifier_id,
            "question": "reference_against_pool",
            "reference_set": reference_set,
            "pool_batches": list(pool_batches),
            "noise_space": transform.noise_space,
            "num_folds": config.num_folds,
            "sigmas": config.sigmas.tolist(),
            **measured,
            "config": json.dumps(config.model_dump(mode="json")),
            "weights_sha256": _weights_hash(root, classifier_id, config.num_folds),
            "status": "candidate",
            "code_version": code_version(),
        }
        root.tables.upsert(
            "noise_classifiers", contract("noise_classifiers").table([row]), job="train_classifier"
        )
    return classifier_id


def load(root: Root, classifier_id: str) -> NoiseClassifier:
    """Load a trained classifier.

    Raises:
        BadInput: there is none of that id.
        ClassifierRefused: its files are not those that its row speaks of.
    """
    rows = root.tables.read("noise_classifiers", where={"classifier_id": classifier_id}).to_pylist()
    if not rows:
        raise BadInput(f"there is no noise classifier {classifier_id!r}; train it first")
    folder = root.classifiers / classifier_id
    if not _is_stored(root, classifier_id):
        raise ClassifierRefused(
            f"the files of noise classifier {classifier_id} are missing or altered in {folder}: "
            "remove the folder and train it again"
        )
    meta = json.loads((folder / _META).read_text())
    config = ClassifierConfig.model_validate(meta["config"])
    folds = []
    for number, arrays in enumerate(meta["calibrations"]):
        network = _load_network(folder / _fold_file(number), config, meta["channels"])
        calibration = Calibration(**{name: np.array(values) for name, values in arrays.items()})
        folds.append(Fold(network, calibration))
    return NoiseClassifier(config, rows[0]["noise_space"], folds, classifier_id, meta["twins"])


def transform_of(root: Root, classifier_id: str) -> Transform:
    """Return the transform that made the pixels a classifier grades.

    Raises:
        BadInput: there is no classifier of that id.
    """
    file = root.classifiers / classifier_id / _META
    if not file.exists():
        raise BadInput(f"there is no noise classifier {classifier_id!r}; train it first")
    return Transform.model_validate(json.loads(file.read_text())["transform"])


class _Maker:
    """Trains, calibrates and measures the folds of one classifier."""

    def __init__(
        self,
        root: Root,
        config: ClassifierConfig,
        transform: Transform,
        data: ClassifierData,
        folder: Path,
    ) -> None:
        self._config, self._folder = config, folder
        self._trusted, self._validation, self._pool = (
            members.images(root, transform)
            for members in (data.trusted, data.validation, data.pool)
        )
        self._channels = transform.shape[2]
        self._noises = noise_bank(config, (self._channels, *transform.shape[:2]))
        self._fold_of_pool = np.array(
            [fold_of(group, config.num_folds) for group in data.pool.groups]
        )
        self._graded_pool: list[NDArray[np.float64]] = []
        self._graded_validation: list[NDArray[np.float64]] = []

    def fold(self, number: int) -> Fold:
        """Train a fold, or load it where that was done, and calibrate it."""
        file = self._folder / _fold_file(number)
        if not file.exists():
            seen = self._pool.subset(np.flatnonzero(self._fold_of_pool != number))
            # A reference that has a twin in the fold would teach its network that twin.
            trusted = self._trusted.without(set(self._unseen(number).groups))
            _save(train_fold(self._sides(trusted, seen), self._config, number), file)
        network = _load_network(file, self._config, self._channels)
        unseen = self._unseen(number)
        unseen = unseen.first_by_content(self._config.max_graded_images)
        if not len(unseen):
            raise BadInput(f"no image of the pool falls into fold {number}: use fewer folds")
        pool, validation = (self._grade(network, _pixels(i)) for i in (unseen, self._validation))
        calibration = calibrate(validation, pool)
        self._graded_pool.append(calibration.apply(pool))
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
            return Sides(trusted, pool)
        return Sides(trusted.without(kept), pool.without(kept), stop_trusted, stop_pool)

    def _unseen(self, number: int) -> PackedImages:
        return self._pool.subset(np.flatnonzero(self._fold_of_pool == number))

    def measure(self, folds: Sequence[Fold]) -> dict[str, Any]:
        """Return the row's figures of what the folds can tell.

        Raises:
            ClassifierRefused: planted damage is not found.
        """
        # Every fold may grade the validation images: none trained on them.
        validation = np.concatenate(self._graded_validation, axis=2)
        told = separation(validation, np.concatenate(self._graded_pool))
        control = self._config.control
        planted = {
            kind: self._grade_planted(folds, kind, severity)
            for kind, severity in control.severities.items()
        }
        findings = judge_control(validation, planted, control)
        require_found(findings, control)
        return {name: values.tolist() for name, values in asdict(told).items()} | {
            "control": json.dumps({"bar": control.bar, "planted": findings})
        }

    def _grade_planted(
        self, folds: Sequence[Fold], kind: str, severity: float
    ) -> NDArray[np.float64]:
        pixels = plant(
            _pixels(self._validation),
            self._validation.sample_ids,
            kind,
            severity,
            self._config.seed,
        )
        graded = [fold.calibration.apply(self._grade(fold.network, pixels)) for fold in folds]
        return np.concatenate(graded, axis=2)

    def _grade(
        self, network: NoiseClassifierNetwork, pixels_NHWC: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        parts = range(0, len(pixels_NHWC), _IMAGES_AT_ONCE)
        return np.concatenate(
            [
                grade(
                    network,
                    to_x0(pixels_NHWC[start : start + _IMAGES_AT_ONCE]),
                    self._config.sigmas,
                    self._noises,
                )
                for start in progress(
                    parts, label="checking the classifier", unit="batch", show=len(parts) > 1
                )
            ]
        )


def _pixels(images: PackedImages) -> NDArray[np.uint8]:
    return images.take(np.arange(len(images)))


def _fold_file(number: int) -> str:
    return f"fold-{number}.safetensors"


def _save(network: NoiseClassifierNetwork, file: Path) -> None:
    """Write weights under their name only when they are complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    save_file({name: t.contiguous() for name, t in network.state_dict().items()}, aside)
    aside.replace(file)


def _load_network(file: Path, config: ClassifierConfig, channels: int) -> NoiseClassifierNetwork:
    network = NoiseClassifierNetwork(config.network, channels)
    network.load_state_dict(load_file(file))
    return network.eval()


def _store(
    root: Root,
    classifier_id: str,
    config: ClassifierConfig,
    transform: Transform,
    calibrations: Sequence[Calibration],
    twins: Mapping[str, str],
) -> None:
    write_json(
        root.classifiers / classifier_id / _META,
        {
            "config": config.model_dump(mode="json"),
            "transform": transform.model_dump(mode="json"),
            "channels": transform.shape[2],
            "twins": dict(twins),
            "calibrations": [
                {"scale": c.scale.tolist(), "offset": c.offset.tolist()} for c in calibrations
            ],
        },
    )


def _is_stored(root: Root, classifier_id: str) -> bool:
    """Say whether the row is there and the files are the ones it speaks of."""
    rows = root.tables.read(
        "noise_classifiers", ["num_folds", "weights_sha256"], {"classifier_id": classifier_id}
    ).to_pylist()
    folder = root.classifiers / classifier_id
    if not rows or not (folder / _META).exists():
        return False
    count = rows[0]["num_folds"]
    if not all((folder / _fold_file(number)).exists() for number in range(count)):
        return False
    expected: str = rows[0]["weights_sha256"]
    return _weights_hash(root, classifier_id, count) == expected


def _weights_hash(root: Root, classifier_id: str, num_folds: int) -> str:
    digest = hashlib.sha256()
    for number in range(num_folds):
        digest.update((root.classifiers / classifier_id / _fold_file(number)).read_bytes())
    digest.update((root.classifiers / classifier_id / _META).read_bytes())
    return digest.hexdigest()
