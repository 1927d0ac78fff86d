"""Loading what a run has learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from ambient_omni.models.model import Model
from ambient_omni.models.preconditioning import Denoiser
from ambient_omni.training import checkpoints
from ambient_omni.training.config import TrainConfig
from ambient_omni.training.models import frozen_weights, new_model, space_of
from ambient_omni.training.run_record import find_run
from schemas.errors import BadInput, CheckpointRefused
from schemas.root import Root


@dataclass(frozen=True)
class TrainedModel:
    """The averaged weights of one checkpoint, in evaluation mode, on the CPU."""

    model: Model
    config: TrainConfig
    label_names: tuple[str, ...]
    checkpoint: Path
    parents: dict[str, Any]
    step: int

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
    expect = {name: row[name] for name in ("run_id", "noise_space")}
    if checkpoint is None:
        if row["checkpoint"] is None:
            raise BadInput(f"run {run_id} has no checkpoint yet (status {row['status']})")
        selected = root.path / row["checkpoint"]
        try:
            return load_checkpoint(selected, expect)
        except CheckpointRefused as error:
            raise CheckpointRefused(
                f"{error}; it is the selected one of run {run_id}: if it is damaged, remove it and "
                "train again (the run goes on from the one before), or name another checkpoint"
            ) from error
    return load_checkpoint(checkpoint, expect)


@torch.no_grad()
def load_checkpoint(path: Path, expect: Mapping[str, Any] | None = None) -> TrainedModel:
    """Load the averaged weights of a checkpoint folder.

    Args:
        path: the folder.
        expect: parents that have to be equal, e.g. ``{"run_id": ...}``.

    Raises:
        CheckpointRefused: damaged, without averaged weights, of another network or other parents,
            or what it was trained with (autoencoder, text encoder, network under its adapters) is
            no longer what lies where its settings say.
    """
    found = checkpoints.load(path, expect)
    config = TrainConfig.model_validate(found.parents["config"])
    _require_same_parts(found, config)
    names = tuple(found.parents["label_names"])
    model = new_model(config, len(names), found.parents.get("sigma_data"))
    weights, tensors = model.weights(), found.tensors("ema")
    checkpoints.require_fit(tensors, weights, path)
    for name, tensor in tensors.items():
        weights[name].copy_(tensor)
    model.denoiser.eval().requires_grad_(False)
    return TrainedModel(model, config, names, path, found.parents, found.step)


def _require_same_parts(found: checkpoints.Checkpoint, config: TrainConfig) -> None:
    made_with = {"noise_space": found.parents["noise_space"]}
    made_with |= found.parents.get("frozen_weights", {})
    here = {"noise_space": space_of(config).noise_space, **frozen_weights(config)}
    if config.init_from is not None and config.init_from.lora is None:
        # All of the network is in the checkpoint.
        made_with.pop("pretrained", None)
    for name, value in made_with.items():
        if here.get(name) != value:
            raise CheckpointRefused(
                f"{found.path} was made with {name} {value}, and what its settings name now is "
                f"{here.get(name)}: put the weights back that it was trained with"
            )
