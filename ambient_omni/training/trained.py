"""Loading what a run has learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from ambient_omni.models.model import Model
from ambient_omni.models.preconditioning import Denoiser
from ambient_omni.training import checkpoints
from ambient_omni.training.config import TrainConfig
from ambient_omni.training.models import new_model, space_of
from ambient_omni.training.run_record import find_run
from schemas.errors import BadInput
from schemas.root import Root


@dataclass(frozen=True)
class TrainedModel:
    """The averaged weights of one checkpoint, in evaluation mode, on the CPU."""

    model: Model
    config: TrainConfig
    label_names: tuple[str, ...]
    checkpoint: Path
    parents: dict[str, Any]

    @property
    def denoiser(self) -> Denoiser:
        """The model's denoiser."""
        return cast(Denoiser, self.model.denoiser)

    @property
    def x0_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what is denoised."""
        return space_of(self.config).x0_shape


def load_trained(root: Root, run_id: str, checkpoint: Path | None = None) -> TrainedModel:
    """Load the selected checkpoint of a run, or the one given.

    Raises:
        BadInput: there is no such run, or it has no checkpoint yet.
        CheckpointRefused: the checkpoint is damaged or does not belong to the run.
    """
    row = find_run(root, run_id)
    if checkpoint is None:
        if row["checkpoint"] is None:
            raise BadInput(f"run {run_id} has no checkpoint yet (status {row['status']})")
        checkpoint = root.path / row["checkpoint"]
    return load_checkpoint(checkpoint, noise_space=row["noise_space"])


@torch.no_grad()
def load_checkpoint(path: Path, noise_space: str | None = None) -> TrainedModel:
    """Load the averaged weights of a checkpoint folder.

    Args:
        path: the folder.
        noise_space: what the caller measures σ in; another one is refused.

    Raises:
        CheckpointRefused: damaged, without averaged weights, or of another noise space or network.
    """
    found = checkpoints.load(path, {} if noise_space is None else {"noise_space": noise_space})
    config = TrainConfig.model_validate(found.parents["config"])
    names = tuple(found.parents["label_names"])
    model = new_model(config, len(names), found.parents.get("sigma_data"))
    weights, tensors = model.weights(), found.tensors("ema")
    checkpoints.require_fit(tensors, weights, path)
    for name, tensor in tensors.items():
        weights[name].copy_(tensor)
    model.denoiser.eval().requires_grad_(False)
    return TrainedModel(model, config, names, path, found.parents)
