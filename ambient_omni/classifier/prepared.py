"""What an annotator needs beside the classifier, made once and kept in the classifier's folder.

A grid has to know by how much its noises move all answers, bisection what curves look like, and a
head has to be distilled: all learn from the pool that the classifier was trained against, each fold
from the images that it may grade. Executors then only load.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from ambient_omni.classifier.annotators import (
    Annotator,
    Grid,
    Reading,
    make_annotator,
    shift_by_shared_noises,
)
from ambient_omni.classifier.bisection import Bisection, Prior
from ambient_omni.classifier.config import (
    AnnotatorConfig,
    GridConfig,
    HeadConfig,
    SequentialConfig,
    annotator_id,
)
from ambient_omni.classifier.data import ClassifierData, PackedImages
from ambient_omni.classifier.grader import NoiseClassifier
from ambient_omni.classifier.head import (
    Check,
    Head,
    HeadAnnotator,
    HeadNetwork,
    Lessons,
    train_head,
)
from ambient_omni.classifier.stored import load, space_of
from ambient_omni.data.packs import to_x0
from schemas.errors import BadInput, ClassifierRefused
from schemas.ids import hash_fraction
from schemas.root import Root, write_json

_PREPARED = HeadConfig | SequentialConfig | GridConfig
_ARRAYS = ("logit_error", "look_offsets")


def prepare(
    root: Root, classifier_id: str, config: AnnotatorConfig, *, reading: Reading | None = None
) -> None:
    """Make what an annotator needs; does nothing where that is there or nothing is needed.

    Args:
        root: where the classifier and the packs of its pool are.
        classifier_id: the classifier.
        config: the annotator.
        reading: how the check of a head reads curves.

    Raises:
        BadInput: there is no such classifier, or a fold has too few images to learn from.
        NotEnoughReferences: its reference set has shrunk since.
        PackMissing: a batch of its pool has no current pack.
        ClassifierRefused: the head disagrees with the exhaustive search.
        JobAlreadyRunning: another process prepares the same classifier.
    """
    if not isinstance(config, _PREPARED) or _file(root, classifier_id, config).exists():
        return
    with root.lock("prepare_annotator", classifier_id):
        if _file(root, classifier_id, config).exists():
            return
        classifier = load(root, classifier_id)
        pool = _pool(root, classifier_id)
        if isinstance(config, GridConfig):
            _prepare_grid(root, classifier, pool, config)
        elif isinstance(config, SequentialConfig):
            _prepare_bisection(root, classifier, pool, config)
        else:
            _distil(root, classifier, pool, config, reading or Reading())


def annotator_for(root: Root, classifier: NoiseClassifier, config: AnnotatorConfig) -> Annotator:
    """Return the annotator of a classifier.

    Raises:
        BadInput: it was not prepared.
        ClassifierRefused: what was prepared is not of this classifier.
    """
    seed = classifier.config.seed
    if not isinstance(config, _PREPARED):
        return make_annotator(config, classifier, seed=seed)
    file = _file(root, classifier.classifier_id, config)
    if not file.exists():
        raise BadInput(
            f"the {config.kind} annotator of classifier {classifier.classifier_id} was not "
            "prepared: call classifier.prepared.prepare first"
        )
    if isinstance(config, GridConfig):
        return _loaded_grid(classifier, config, file)
    kept = json.loads(file.read_text())
    if isinstance(config, SequentialConfig):
        known = kept["prior"]
        prior = Prior(
            np.array(known["log_places"]),
            np.array(known["log_weight"]),
            known["exponent"],
            known["spread"],
        )
        return Bisection(classifier, config, seed, prior=prior)
    heads = []
    for number, check in enumerate(kept["checks"]):
        network = HeadNetwork(config, kept["channels"])
        network.load_state_dict(load_file(_weights(file, number)))
        network.eval().to(classifier.device)
        arrays = {name: np.array(check[name]) for name in _ARRAYS}
        checked = Check(**{**check, **arrays})
        heads.append(Head(network, checked))
    return HeadAnnotator(classifier, heads, seed=seed)


def _prepare_grid(
    root: Root, classifier: NoiseClassifier, pool: PackedImages, config: GridConfig
) -> None:
    folds, asked = classifier.folds_of(pool.sample_ids), classifier.config
    of_folds = [np.flatnonzero(folds == number) for number in range(classifier.num_folds)]
    some = [pool.subset(mine).first_by_content(asked.max_graded_images) for mine in of_folds]
    missing = [number for number, images in enumerate(some) if not len(images)]
    if missing:
        raise BadInput(
            f"fold {missing[0]} of classifier {classifier.classifier_id} may grade no image of its "
            "pool any more, so nothing can be measured there: train it again on the present pool"
        )
    names = {name for images in some for name in images.sample_ids}
    chosen = pool.subset(np.flatnonzero([name in names for name in pool.sample_ids]))
    shift = shift_by_shared_noises(
        classifier, config, asked.seed, chosen.sample_ids, lambda part: to_x0(chosen.take(part))
    )
    write_json(_file(root, classifier.classifier_id, config), {"shift": shift.tolist()})


def _loaded_grid(classifier: NoiseClassifier, config: GridConfig, file: Path) -> Grid:
    plain = Grid(classifier, config, classifier.config.seed)
    shift = np.array(json.loads(file.read_text())["shift"])
    wanted = (classifier.num_folds, len(plain.sigmas), config.num_noises)
    if shift.shape != wanted or not np.isfinite(shift).all():
        raise ClassifierRefused(f"{file} is not what was measured of this grid: remove it")
    return Grid(classifier, config, classifier.config.seed, shift)


def _prepare_bisection(
    root: Root, classifier: NoiseClassifier, pool: PackedImages, config: SequentialConfig
) -> None:
    pilot = pool.first_by_content(config.num_pilot_images)
    bisection = Bisection(classifier, config, classifier.config.seed)
    prior = bisection.learn_prior(_x0(pilot), pilot.sample_ids)
    plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(prior).items()}
    write_json(_file(root, classifier.classifier_id, config), {"prior": plain})


def _distil(
    root: Root,
    classifier: NoiseClassifier,
    pool: PackedImages,
    config: HeadConfig,
    reading: Reading,
) -> None:
    folds = classifier.folds_of(pool.sample_ids)
    file = _file(root, classifier.classifier_id, config)
    view = space_of(root, classifier.classifier_id)
    checks = []
    for number in range(classifier.num_folds):
        images = pool.subset(np.flatnonzero(folds == number)).first_by_content(config.max_images)
        is_check = np.array(
            [hash_fraction(group, "head-check") < config.check_fraction for group in images.groups]
        )
        if is_check.sum() < config.min_check_images or is_check.all():
            raise BadInput(
                f"fold {number} of classifier {classifier.classifier_id} has {len(images)} pool "
                f"images, {int(is_check.sum())} of them to check a head with; "
                f"{config.min_check_images} are needed: ingest more, or annotate with a grid"
            )
        learn, check = (images.subset(np.flatnonzero(part)) for part in (~is_check, is_check))
        lessons = Lessons.of(
            (learn.all(), learn.sample_ids),
            (check.all(), check.sample_ids),
            view.plantable(root, learn),
            classifier.config.order.ranges,
            config.num_copies,
            classifier.config.seed,
            number,
        )
        head = train_head(
            classifier, lessons, config, reading, seed=classifier.config.seed, fold=number
        )
        weights = {name: t.contiguous().cpu() for name, t in head.network.state_dict().items()}
        aside = file.with_name(f".head-{os.getpid()}")
        save_file(weights, aside)
        aside.replace(_weights(file, number))
        facts = asdict(head.check)
        checks.append(facts | {name: facts[name].tolist() for name in _ARRAYS})
    # Written last: its presence says that all folds are there.
    write_json(file, {"checks": checks, "channels": head.network.num_channels})


def _pool(root: Root, classifier_id: str) -> PackedImages:
    (row,) = root.tables.read(
        "noise_classifiers", ["pool_batches", "reference_set"], {"classifier_id": classifier_id}
    ).to_pylist()
    data = ClassifierData.read(root, row["pool_batches"], row["reference_set"])
    return data.pool.images(root, space_of(root, classifier_id).space)


def _x0(images: PackedImages) -> NDArray[np.float32]:
    return to_x0(images.all())


def _file(root: Root, classifier_id: str, config: AnnotatorConfig) -> Path:
    return root.classifiers / classifier_id / f"annotator-{annotator_id(config)}.json"


def _weights(file: Path, number: int) -> Path:
    return file.with_name(f"{file.stem}-fold-{number}.safetensors")
