"""Loading what a run has learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ambient_omni.models.networks import build_denoiser
from ambient_omni.models.preconditioning import Denoiser
from ambient_omni.training import checkpoints
from ambient_omni.training.config import TrainConfig
from ambient_omni.training.run_record import find_run
from schemas.errors import BadInput
from schemas.root import Root


@dataclass(frozen=True)
class TrainedModel:
    """The averaged weights of one checkpoint, in evaluation mode, on the CPU."""

    denoiser: Denoiser
    config: TrainConfig
    label_names: tuple[str, ...]
    checkpoint: Path
    parents: dict[str, Any]


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


def load_checkpoint(path: Path, noise_space: str | None = None) -> TrainedModel:
    """Load the averaged weights of a checkpoint folder.

    Args:
        path: the folder.
        noise_space: what the caller measures σ in; another one is refused.

    Raises:
        CheckpointRefused: damaged, or of another noise space or network.
    """
    found = checkpoints.load(path, {} if noise_space is None else {"noise_space": noise_space})
    config = TrainConfig.model_validate(found.parents["config"])
    names = tuple(found.parents["label_names"])
    denoiser = build_denoiser(config.network, config.transform.resolution, len(names))
    checkpoints.load_into(denoiser, found.tensors("ema"), path)
    denoiser.eval().requires_grad_(False)
    return TrainedModel(denoiser, config, names, path, found.parents)
