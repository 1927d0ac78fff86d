"""Crop classifiers: which crops of foreign images look like the domain's, size by size.

Legend: B images, S sizes, P positions, C channels, H height, W width, s side of a crop.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from ambient_omni.classifier.calibration import Calibration
from ambient_omni.classifier.data import fold_of
from ambient_omni.windows.config import CropClassifierConfig
from ambient_omni.windows.crops import cut, grid_corners, grid_shape
from ambient_omni.windows.network import CropClassifierNetwork
from schemas.errors import BadInput, ClassifierRefused, TableMissing
from schemas.root import Root

META = "crops.json"
_CROPS_AT_ONCE = 1024

Images = NDArray[np.float32]


@dataclass(frozen=True)
class CropSaid:
    """What is said of B images: mean of P(in domain) over crops, and its error, each (B, S)."""

    mean_probability: NDArray[np.float32]
    standard_error: NDArray[np.float32]


@dataclass(frozen=True)
class Fold:
    """One network with its calibration, per size."""

    network: CropClassifierNetwork
    calibration: Calibration


class CropClassifier:
    """K networks that grade crops of images, each those of images that it did not see."""

    def __init__(
        self,
        crop_classifier_id: str,
        sizes: Sequence[int],
        transform_id: str,
        folds: Sequence[Fold],
        groups: Mapping[str, str],
    ) -> None:
        self.crop_classifier_id, self.sizes = crop_classifier_id, tuple(sizes)
        self.transform_id = transform_id
        self._folds, self._groups = tuple(folds), groups

    def folds_of(self, sample_ids: Sequence[str]) -> NDArray[np.int32]:
        """Return the (B,) folds that may grade images."""
        groups = (self._groups.get(name, name) for name in sample_ids)
        return np.array([fold_of(group, len(self._folds)) for group in groups], np.int32)

    def grade(self, x0_BCHW: Images, sample_ids: Sequence[str]) -> CropSaid:
        """Grade images by all their crops; an image gets the same numbers in any batch."""
        side = min(x0_BCHW.shape[2:])
        mean = np.empty((len(x0_BCHW), len(self.sizes)), np.float32)
        error = np.empty_like(mean)
        for place, size in enumerate(self.sizes):
            said_BP = self._crops(x0_BCHW, sample_ids, place)
            mean[:, place] = said_BP.mean(axis=1)
            # Crops overlap by half; only those that do not are counted as independent.
            independent = max(1, (side // size) ** 2)
            error[:, place] = said_BP.std(axis=1) / np.sqrt(independent)
        return CropSaid(mean, error)

    def maps(self, x0_BCHW: Images, sample_ids: Sequence[str], size: int) -> Images:
        """Return P(in domain) of each crop of one size, (B, rows, columns) as `grid_corners`.

        Raises:
            BadInput: the classifier does not know the size.
        """
        if size not in self.sizes:
            raise BadInput(
                f"crop classifier {self.crop_classifier_id} knows the sizes {list(self.sizes)}, "
                f"not {size}"
            )
        shape = grid_shape((x0_BCHW.shape[2], x0_BCHW.shape[3]), size)
        said = self._crops(x0_BCHW, sample_ids, self.sizes.index(size))
        return said.reshape(-1, *shape).astype(np.float32)

    def _crops(self, x0_BCHW: Images, sample_ids: Sequence[str], place: int) -> NDArray[np.float64]:
        """Return P(in domain) of every crop of the grid of one size, (B, P)."""
        corners = grid_corners((x0_BCHW.shape[2], x0_BCHW.shape[3]), self.sizes[place])
        allowed = self.folds_of(sample_ids)
        said = np.empty((len(x0_BCHW), len(corners)))
        for number, fold in enumerate(self._folds):
            mine = np.flatnonzero(allowed == number)
            for column, corner in enumerate(corners):
                crops = cut(x0_BCHW[mine], np.tile(corner, (len(mine), 1)), self.sizes[place])
                calibrated = fold.calibration
                logits = logits_of(fold.network, crops) * calibrated.scale[place]
                said[mine, column] = _sigmoid(logits + calibrated.offset[place])
        return said


def load_crop_classifier(root: Root, crop_classifier_id: str) -> CropClassifier:
    """Load a trained crop classifier.

    Raises:
        TableMissing: there is none of that id.
        ClassifierRefused: its files are not those that its row speaks of.
    """
    where = {"crop_classifier_id": crop_classifier_id}
    if not root.tables.read("crop_classifiers", ["crop_classifier_id"], where).num_rows:
        raise TableMissing(f"there is no crop classifier {crop_classifier_id!r}; run windows first")
    folder = root.classifiers / crop_classifier_id
    if not is_stored(root, crop_classifier_id):
        raise ClassifierRefused(
            f"the files of crop classifier {crop_classifier_id} are missing or altered in "
            f"{folder}: remove the folder and run windows again"
        )
    meta = json.loads((folder / META).read_text())
    config = CropClassifierConfig.model_validate(meta["config"])
    folds = [
        Fold(
            load_network(folder / fold_file(number), config, meta["channels"], meta["sizes"]),
            Calibration(**{name: np.array(values) for name, values in arrays.items()}),
        )
        for number, arrays in enumerate(meta["calibrations"])
    ]
    return CropClassifier(
        crop_classifier_id, meta["sizes"], meta["transform_id"], folds, meta["groups"]
    )


@torch.no_grad()
def logits_of(network: CropClassifierNetwork, crops_BCss: Images) -> NDArray[np.float64]:
    """Return (B,) raw logits of crops."""
    parts = [
        network(torch.from_numpy(crops_BCss[start : start + _CROPS_AT_ONCE]))
        for start in range(0, len(crops_BCss), _CROPS_AT_ONCE)
    ]
    return torch.cat(parts).double().numpy() if parts else np.empty(0)


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = 0.5 * (1 + np.tanh(0.5 * logits))
    return result


def fold_file(number: int) -> str:
    """Return the name of a fold's weights."""
    return f"fold-{number}.safetensors"


def save_network(network: CropClassifierNetwork, file: Path) -> None:
    """Write weights under their name only when they are complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    save_file({name: t.contiguous() for name, t in network.state_dict().items()}, aside)
    aside.replace(file)


def load_network(
    file: Path, config: CropClassifierConfig, channels: int, sizes: Sequence[int]
) -> CropClassifierNetwork:
    """Load the weights of a fold, in evaluation mode."""
    network = CropClassifierNetwork(config.network, channels, sizes)
    network.load_state_dict(load_file(file))
    return network.eval()


def is_stored(root: Root, classifier_id: str) -> bool:
    """Say whether the row is there and the files are the ones it speaks of."""
    columns = ["num_folds", "weights_sha256"]
    where = {"crop_classifier_id": classifier_id}
    rows = root.tables.read("crop_classifiers", columns, where).to_pylist()
    folder = root.classifiers / classifier_id
    files = [META, *(fold_file(n) for n in range(rows[0]["num_folds"]))] if rows else []
    if not rows or not all((folder / name).exists() for name in files):
        return False
    known: str = rows[0]["weights_sha256"]
    return weights_hash(folder, rows[0]["num_folds"]) == known


def weights_hash(folder: Path, num_folds: int) -> str:
    """Return the hash of all folds' weights and of what belongs to them."""
    digest = hashlib.sha256()
    for name in (*(fold_file(number) for number in range(num_folds)), META):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()
