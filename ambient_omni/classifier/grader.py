"""The noise classifier as others use it: asked about images, each by the fold that may answer.

Legend: N images, B batch, L levels, Q questions, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ambient_omni.classifier.annotators import Noises
from ambient_omni.classifier.calibration import Calibration
from ambient_omni.classifier.config import ClassifierConfig
from ambient_omni.classifier.data import fold_of
from ambient_omni.classifier.groups import named
from ambient_omni.classifier.network import NoiseClassifierNetwork
from ambient_omni.classifier.training import answer

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

    def ask(
        self,
        x0_BCHW: NDArray[np.float32],
        sample_ids: Sequence[str],
        sigmas_BQ: NDArray[np.floating],
        noises_Q: Noises,
    ) -> NDArray[np.float64]:
        """Return (B, Q) calibrated logits of P(trusted): image b at its level q under noise q.

        Every image is graded by the fold that did not train on it.

        Raises:
            ValueError: lengths differ.
        """
        if not len(x0_BCHW) == len(sample_ids) == len(sigmas_BQ):
            raise ValueError("each image needs its name and its levels")
        if np.shape(sigmas_BQ)[1] != len(noises_Q):
            raise ValueError("each question needs its noise")
        out = np.empty(np.shape(sigmas_BQ))
        folds = self.folds_of(sample_ids)
        for number, fold in enumerate(self._folds):
            mine = np.flatnonzero(folds == number)
            for start in range(0, len(mine), _IMAGES_AT_ONCE):
                part = mine[start : start + _IMAGES_AT_ONCE]
                scale, offset = fold.calibration.at(self.sigmas, sigmas_BQ[part])
                noises = [n if n.ndim < x0_BCHW.ndim else n[part] for n in noises_Q]
                raw = answer(fold.network, x0_BCHW[part], sigmas_BQ[part], noises)
                out[part] = scale * raw + offset
        return out

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self._folds[0].network.parameters()).device

    def to(self, device: str) -> NoiseClassifier:
        """Move the networks to a device, in place; images and answers stay on the CPU side."""
        for fold in self._folds:
            fold.network.to(device)
        return self
