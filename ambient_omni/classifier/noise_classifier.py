"""The way to a trained noise classifier: named, trained, checked, stored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence

from ambient_omni.classifier.config import ClassifierConfig, Question, TrainClassifierJob
from ambient_omni.classifier.data import VERSION, ClassifierData, fold_of
from ambient_omni.classifier.grader import NoiseClassifier
from ambient_omni.classifier.making import Maker, require_size
from ambient_omni.classifier.prepared import prepare
from ambient_omni.classifier.stored import is_stored, load, space_of, store, weights_hash
from ambient_omni.classifier.view import View
from ambient_omni.code_version import code_version
from ambient_omni.data.config import LatentConfig
from ambient_omni.data.transforms import Transform
from schemas.registry import contract
from schemas.root import Root

__all__ = [
    "ClassifierConfig",
    "NoiseClassifier",
    "TrainClassifierJob",
    "classifier_id_for",
    "fold_of",
    "load",
    "space_of",
    "train_classifier",
]


def classifier_id_for(
    root: Root,
    config: ClassifierConfig,
    *,
    pool_batches: Sequence[str],
    reference_set: str,
    transform: Transform,
    question: Question = "reference_against_pool",
    latents: LatentConfig | None = None,
) -> str:
    """Return the id that `train_classifier` would return, without training.

    Raises:
        NotEnoughReferences, BadInput, TableMissing: as `train_classifier`.
    """
    data = ClassifierData.read(root, pool_batches, reference_set)
    return data.classifier_id(config, View.of(transform, latents).space, question)


def train_classifier(
    root: Root,
    config: ClassifierConfig,
    *,
    pool_batches: Sequence[str],
    reference_set: str,
    transform: Transform,
    question: Question = "reference_against_pool",
    latents: LatentConfig | None = None,
) -> str:
    """Train a noise classifier, check it, and write its row of noise_classifiers.

    Does nothing when the same images, pixels and settings were trained on before. What was
    stopped goes on with the first fold that is missing; one whose files were lost or altered is
    made anew as a whole, keeps its status, and has to grade again.

    Args:
        root: where packs and tables are.
        config: the classifier.
        pool_batches: the negatives.
        reference_set: the positives. Those of "validation" calibrate and check it.
        transform: the pixels.
        question: what it tells apart; see `config.TrainClassifierJob`.
        latents: the autoencoder in whose latents it tells them apart; None for pixels.

    Returns:
        The classifier_id.

    Raises:
        NotEnoughReferences: too few images to train or to check.
        BadInput: too few images in the pool, images too small for the network, or no such
            autoencoder.
        PackMissing: a batch has no complete pack of the transform.
        ClassifierRefused: planted damage is not found.
        JobAlreadyRunning: the same classifier is being trained.
    """
    data = ClassifierData.read(root, pool_batches, reference_set)
    view = View.of(transform, latents)
    require_size(config, view.space)
    classifier_id = data.classifier_id(config, view.space, question)
    if not is_stored(root, classifier_id):
        with root.lock("train_classifier", classifier_id):
            folder, status = root.classifiers / classifier_id, _status(root, classifier_id)
            if status is not None:
                # It was complete once: files that are left may be altered, and vouch for nothing.
                shutil.rmtree(folder, ignore_errors=True)
            maker = Maker(root, config, view, data, folder, question)
            folds = [maker.fold(number) for number in range(config.num_folds)]
            measured = maker.measure(folds)
            calibrations = [fold.calibration for fold in folds]
            store(root, classifier_id, config, view, calibrations, data.twins)
            row = {
                "classifier_id": classifier_id,
                "question": question,
                "reference_set": reference_set,
                "pool_batches": list(pool_batches),
                "noise_space": view.space.noise_space,
                "num_folds": config.num_folds,
                "sigmas": config.sigmas.tolist(),
                **measured,
                "config": json.dumps(config.model_dump(mode="json")),
                "weights_sha256": weights_hash(root, classifier_id, config.num_folds),
                "method_version": VERSION,
                "status": status or "candidate",
                "code_version": code_version(),
            }
            missing = dict.fromkeys(("good_share", "good_share_low", "good_share_high"))
            table = contract("noise_classifiers").table([missing | row])
            root.tables.upsert("noise_classifiers", table, job="train_classifier")
    # While the packs of its pool are there for certain.
    prepare(root, classifier_id, config.own_grid)
    return classifier_id


def _status(root: Root, classifier_id: str) -> str | None:
    """Return the status of a classifier that was complete once."""
    rows = root.tables.read("noise_classifiers", ["status"], {"classifier_id": classifier_id})
    return rows["status"][0].as_py() if rows.num_rows else None
