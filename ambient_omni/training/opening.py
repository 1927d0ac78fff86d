"""What a run opens before its first step, and every refusal that can be known by then."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from ambient_omni.classifier.stored import require_current_levels
from ambient_omni.data.batches import BatchMaker
from ambient_omni.data.training_data import (
    ReferenceImages,
    TrainingData,
    label_numbers,
    open_training_data,
    read_reference_images,
)
from ambient_omni.generation.sampling import Sampler
from ambient_omni.models.model import Model
from ambient_omni.training.config import TrainConfig
from ambient_omni.training.models import new_model, space_of
from ambient_omni.training.run_record import RunRecord
from schemas.errors import BadInput


@dataclass(frozen=True)
class Opened:
    """What a run trains on and begins with. `images` measure the held-out loss."""

    data: TrainingData
    batches: BatchMaker
    images: ReferenceImages
    model: Model

    def fingerprint(self) -> str:
        """Hash of the samples and of their levels: what processes that train together share."""
        digest = hashlib.blake2b(digest_size=16)
        levels = self.data.annotations
        for column in (self.data.sample_rows, levels.sigma_min, levels.sigma_max):
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()


def open_run(run: RunRecord) -> Opened:
    """Open the data and the model of a run, as training and its dry run begin.

    Raises:
        AmbientOmniError: for whatever would stop the run before or at its first evaluation.
    """
    config, space = run.config, space_of(run.config)
    if not run.has_begun:
        # One that has goes on as it began: its levels are pinned.
        require_current_levels(run.root, config.policy_id)
    data = open_training_data(run.root, config, run.versions, space, run.pinned)
    batches = BatchMaker(data, config, config.condition_dropout)
    held_out = config.held_out
    images = read_reference_images(
        run.root, held_out.reference_set, space, run.versions, held_out.max_images
    )
    _require_conditions(config, images, data.label_names)
    _require_selecting_level(config)
    # Packs that were made anew on another machine differ in the last digits.
    sigma_data = run.pinned.sigma_data or data.packs.sigma_data
    model = new_model(config, len(data.label_names), sigma_data)
    # Samples that cannot be drawn are refused now, not when the run has trained.
    config.require_guidable(config.samples)
    Sampler(model, config.samples, space.x0_shape, data.label_names, config.prior)
    return Opened(data, batches, images, model)


def _require_selecting_level(config: TrainConfig) -> None:
    low, high = config.prior.support
    if not any(low <= sigma <= high for sigma in config.held_out.sigmas):
        raise BadInput(
            f"no level of held_out.sigmas lies between {low:g} and {high:g}, which the prior "
            "draws: nothing would select the checkpoint"
        )


def _require_conditions(
    config: TrainConfig, images: ReferenceImages, label_names: tuple[str, ...]
) -> None:
    """Check that the held-out loss can tell the denoiser what its images are of."""
    name = config.held_out.reference_set
    if config.condition.kind == "label":
        label_numbers(images.label_names, label_names, f"images of the set {name!r}")
    without = [
        i for i, text in zip(images.sample_ids, images.captions, strict=True) if text is None
    ]
    if config.condition.kind == "caption" and without:
        raise BadInput(
            f"{len(without)} images of the set {name!r} have no caption, the first is "
            f"{without[0]}: ingest them with captions, or name another held_out.reference_set"
        )
