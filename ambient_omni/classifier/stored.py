"""Noise classifiers on disk: a folder each, and a row of noise_classifiers that vouches for it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from ambient_omni.classifier.calibration import Calibration
from ambient_omni.classifier.config import ClassifierConfig
from ambient_omni.classifier.data import VERSION
from ambient_omni.classifier.grader import Fold, NoiseClassifier
from ambient_omni.classifier.network import NoiseClassifierNetwork
from ambient_omni.classifier.view import View
from ambient_omni.data.config import LatentConfig
from ambient_omni.data.latents import LatentSpace
from ambient_omni.data.transforms import Transform
from schemas.errors import BadInput, ClassifierRefused
from schemas.root import Root, write_json

_META = "classifier.json"


def load(root: Root, classifier_id: str) -> NoiseClassifier:
    """Load a trained classifier.

    Raises:
        BadInput: there is none of that id.
        ClassifierRefused: its files are not those that its row speaks of, or another version
            made it.
    """
    rows = root.tables.read("noise_classifiers", where={"classifier_id": classifier_id}).to_pylist()
    if not rows:
        raise BadInput(f"there is no noise classifier {classifier_id!r}; train it first")
    folder = root.classifiers / classifier_id
    if not is_stored(root, classifier_id):
        raise ClassifierRefused(
            f"the files of noise classifier {classifier_id} are missing or altered in {folder}: "
            "remove the folder and train it again"
        )
    meta = json.loads((folder / _META).read_text())
    require_current(root, classifier_id)
    config = ClassifierConfig.model_validate(meta["config"])
    folds = []
    for number, arrays in enumerate(meta["calibrations"]):
        network = load_network(folder / fold_file(number), config, meta["channels"])
        calibration = Calibration(**{name: np.array(values) for name, values in arrays.items()})
        folds.append(Fold(network, calibration))
    return NoiseClassifier(config, rows[0]["noise_space"], folds, classifier_id, meta["twins"])


def is_current(root: Root, classifier_id: str) -> bool:
    """Say whether a classifier is there and this version of the code made it, and so may ask it."""
    file = root.classifiers / classifier_id / _META
    return file.exists() and _meta(root, classifier_id).get("version") == VERSION


def require_current(root: Root, classifier_id: str) -> None:
    """Refuse a classifier of another version.

    Raises:
        BadInput: there is none of that id.
        ClassifierRefused: another version made it.
    """
    if _meta(root, classifier_id).get("version") != VERSION:
        raise ClassifierRefused(f"this is {_another(classifier_id)}")


def require_current_levels(root: Root, policy_id: str) -> None:
    """Refuse the levels of a policy that reads a classifier of another version.

    Raises:
        ClassifierRefused: another version made one of its classifiers.
    """
    rows = root.tables.read("policies", ["parameters"], {"policy_id": policy_id}).to_pylist()
    rules = [json.loads(row["parameters"]) for row in rows]
    asked = sorted({found for rule in rules for found in _classifiers_in(rule)})
    if not asked:
        return
    for row in root.tables.read(
        "noise_classifiers", ["classifier_id", "method_version"], {"classifier_id": asked}
    ).to_pylist():
        if (row["method_version"] or _version_beside(root, row["classifier_id"])) != VERSION:
            raise ClassifierRefused(
                f"the levels of policy {policy_id} are those of {_another(row['classifier_id'])}"
            )


def _version_beside(root: Root, classifier_id: str) -> int:
    """Return the version in a classifier's folder, for rows from before they had one."""
    file = root.classifiers / classifier_id / _META
    return int(json.loads(file.read_text()).get("version", 1)) if file.exists() else 1


def _classifiers_in(rule: Any) -> Iterator[str]:
    """Yield the noise classifiers that a rule or one of its parts reads."""
    for name, part in rule.items() if isinstance(rule, dict) else ():
        if name == "classifier_id":
            yield part
        yield from _classifiers_in(part)


def _another(classifier_id: str) -> str:
    return (
        f"noise classifier {classifier_id}, which was made by another version of how classifiers "
        "are calibrated (before version 2, levels are off by up to half an octave): train a new "
        "one (train-classifier, or ambient-omni candidate), promote it where one is promoted, "
        "and annotate anew"
    )


def config_of(root: Root, classifier_id: str) -> ClassifierConfig:
    """Return the settings of a classifier.

    Raises:
        BadInput: there is none of that id.
    """
    return ClassifierConfig.model_validate(_meta(root, classifier_id)["config"])


def _meta(root: Root, classifier_id: str) -> dict[str, Any]:
    file = root.classifiers / classifier_id / _META
    if not file.exists():
        raise BadInput(f"there is no noise classifier {classifier_id!r}; train it first")
    meta: dict[str, Any] = json.loads(file.read_text())
    return meta


def space_of(root: Root, classifier_id: str) -> View:
    """Return what a classifier grades: the pixels of a transform, or the latents of a VAE.

    Raises:
        BadInput: there is no classifier of that id.
    """
    meta = _meta(root, classifier_id)
    # Classifiers from before latents have neither.
    space, latents = meta.get("latent_space"), meta.get("latents")
    return View(
        Transform.model_validate(meta["transform"]),
        space and LatentSpace.model_validate(space),
        latents and LatentConfig.model_validate(latents),
    )


def fold_file(number: int) -> str:
    """Return the file name of a fold's weights."""
    return f"fold-{number}.safetensors"


def save_network(network: NoiseClassifierNetwork, file: Path) -> None:
    """Write weights under their name only when they are complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    save_file({name: t.contiguous() for name, t in network.state_dict().items()}, aside)
    aside.replace(file)


def load_network(file: Path, config: ClassifierConfig, channels: int) -> NoiseClassifierNetwork:
    """Return a fold's network in evaluation mode."""
    network = NoiseClassifierNetwork(config.network, channels)
    try:
        network.load_state_dict(load_file(file))
    except RuntimeError as error:
        raise ClassifierRefused(
            f"the weights {file} are not of this version's network: remove the folder of the "
            "classifier and train it again"
        ) from error
    return network.eval()


def store(
    root: Root,
    classifier_id: str,
    config: ClassifierConfig,
    view: View,
    calibrations: Sequence[Calibration],
    twins: Mapping[str, str],
) -> None:
    """Write what a classifier is beside its weights."""
    write_json(
        root.classifiers / classifier_id / _META,
        {
            "version": VERSION,
            "config": config.model_dump(mode="json"),
            "transform": view.transform.model_dump(mode="json"),
            "latent_space": view.latent_space and view.latent_space.model_dump(mode="json"),
            "latents": view.latents and view.latents.model_dump(mode="json"),
            "channels": view.space.x0_shape[0],
            "twins": dict(twins),
            "calibrations": [
                {"scale": c.scale.tolist(), "offset": c.offset.tolist()} for c in calibrations
            ],
        },
    )


def is_stored(root: Root, classifier_id: str) -> bool:
    """Say whether the row is there and the files are the ones it speaks of."""
    rows = root.tables.read(
        "noise_classifiers", ["num_folds", "weights_sha256"], {"classifier_id": classifier_id}
    ).to_pylist()
    folder = root.classifiers / classifier_id
    if not rows or not (folder / _META).exists():
        return False
    count = rows[0]["num_folds"]
    if not all((folder / fold_file(number)).exists() for number in range(count)):
        return False
    expected: str = rows[0]["weights_sha256"]
    return weights_hash(root, classifier_id, count) == expected


def weights_hash(root: Root, classifier_id: str, num_folds: int) -> str:
    """Return the SHA-256 over all files that a classifier's answers depend on.

    What annotators need beside it can be measured anew, and is not among them.
    """
    digest = hashlib.sha256()
    for number in range(num_folds):
        digest.update((root.classifiers / classifier_id / fold_file(number)).read_bytes())
    digest.update((root.classifiers / classifier_id / _META).read_bytes())
    return digest.hexdigest()
