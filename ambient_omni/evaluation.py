"""Held-out denoising loss per noise level, with noise that depends on image and level alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ambient_omni import rng
from ambient_omni.data.packs import to_x0
from ambient_omni.data.training_data import (
    READ_TABLES,
    ReferenceImages,
    label_numbers,
    read_reference_images,
)
from ambient_omni.models.networks import device_of
from ambient_omni.models.objectives import denoising_loss
from ambient_omni.models.preconditioning import SIGMA_DATA, Denoiser, edm_weight
from ambient_omni.training.config import HeldOutConfig
from ambient_omni.training.trained import load_trained
from schemas.root import Root, write_json

HELD_OUT_FILE = "heldout.json"
_BATCH = 256


class HeldOutLoss(BaseModel):
    """Held-out loss of one model on one reference set; lists are per level, in `sigmas`' order.

    `weighted` is the EDM-weighted squared error, `unweighted` the squared error itself, both means
    over pixels, noisings and images, with the standard error over images. `total` sums `weighted`
    over the levels. `per_image` (N, L) is there for paired comparisons: the noise of an image at a
    level is the same for every model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference_set: str
    checkpoint: str
    num_images: int
    num_noises: int
    sigmas: list[float]
    weighted: list[float]
    weighted_standard_error: list[float]
    unweighted: list[float]
    unweighted_standard_error: list[float]
    total: float
    total_standard_error: float
    sample_rows: list[int]
    per_image: list[list[float]]


@torch.no_grad()
def heldout_loss(
    denoiser: Denoiser,
    x0: NDArray[np.float32],
    sample_ids: Sequence[str],
    sigmas: Sequence[float],
    num_noises: int = 2,
    seed: int = 0,
    labels: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Return the EDM-weighted denoising loss of each image at each level, (N, L) float64.

    The noise is addressed by (sample_id, level): every model, order and batching sees the same.
    Noisings come in pairs z, -z, which cancels what is odd in the noise.

    Args:
        denoiser: the model.
        x0: (N, C, H, W), -1..1.
        sample_ids: N names.
        sigmas: L levels.
        num_noises: noisings per image and level; the mean over them is returned.
        seed: of the noise.
        labels: (N,) class labels for a conditional model.
    """
    out = np.zeros((len(x0), len(sigmas)), np.float64)
    for column, sigma in enumerate(sigmas):
        for number in range(num_noises):
            for start in range(0, len(x0), _BATCH):
                here = slice(start, start + _BATCH)
                z = _noise(x0.shape[1:], sample_ids[here], sigma, number, seed)
                part = None if labels is None else labels[here]
                out[here, column] += _loss(denoiser, x0[here], z, sigma, part)
    return out / num_noises


def evaluate_reference(
    denoiser: Denoiser,
    images: ReferenceImages,
    config: HeldOutConfig,
    checkpoint: str,
    label_names: Sequence[str] = (),
) -> HeldOutLoss:
    """Measure a denoiser on reference images and sum it up.

    Args:
        denoiser: the model.
        images: of the reference set named in `config`.
        config: levels and noisings.
        checkpoint: name of the weights, for the record.
        label_names: the model's classes; empty if unconditional.

    Raises:
        BadInput: the model is conditional and an image has no label that it knows.
    """
    losses = heldout_loss(
        denoiser,
        to_x0(images.pixels),
        images.sample_ids,
        config.sigmas,
        config.num_noises,
        config.seed,
        label_numbers(images.label_names, label_names, "reference images"),
    )
    weight = edm_weight(torch.tensor(config.sigmas, dtype=torch.float64), SIGMA_DATA).numpy()
    error = _standard_error(losses)
    return HeldOutLoss(
        reference_set=config.reference_set,
        checkpoint=checkpoint,
        num_images=len(losses),
        num_noises=config.num_noises,
        sigmas=list(config.sigmas),
        weighted=losses.mean(axis=0).tolist(),
        weighted_standard_error=error.tolist(),
        unweighted=(losses.mean(axis=0) / weight).tolist(),
        unweighted_standard_error=(error / weight).tolist(),
        total=float(losses.sum(axis=1).mean()),
        total_standard_error=float(_standard_error(losses.sum(axis=1))),
        sample_rows=images.sample_rows.tolist(),
        per_image=losses.tolist(),
    )


def evaluate(root: Root, run_id: str, reference_set: str = "evaluation") -> HeldOutLoss:
    """Measure a run's selected checkpoint on a reference set, and keep it in ``heldout.json``.

    The file maps reference sets to `HeldOutLoss`. Levels, noisings and seed are the run's own, so
    that runs which agree on them can be compared image by image.

    Raises:
        BadInput: there is no such run, or it has no checkpoint yet.
        CheckpointRefused: the checkpoint is damaged.
        NotEnoughReferences: the reference set is empty.
        PackMissing: a batch of its members has no complete pack.
    """
    model = load_trained(root, run_id)
    config = model.config.held_out.model_copy(update={"reference_set": reference_set})
    images = read_reference_images(
        root,
        reference_set,
        model.config.transform,
        root.tables.versions(READ_TABLES),
        config.max_images,
    )
    loss = evaluate_reference(
        model.denoiser, images, config, model.checkpoint.name, model.label_names
    )
    keep_heldout(root.runs / run_id, loss)
    return loss


def keep_heldout(folder: Path, loss: HeldOutLoss) -> None:
    """Put a result into a run folder's ``heldout.json``, beside those of other sets."""
    file = folder / HELD_OUT_FILE
    known = json.loads(file.read_text()) if file.exists() else {}
    write_json(file, {**known, loss.reference_set: loss.model_dump()})


def read_heldout(folder: Path) -> dict[str, HeldOutLoss]:
    """Read a run folder's ``heldout.json``: reference set to result; empty if there is none."""
    file = folder / HELD_OUT_FILE
    known = json.loads(file.read_text()) if file.exists() else {}
    return {name: HeldOutLoss.model_validate(value) for name, value in known.items()}


def _noise(
    shape: Sequence[int], sample_ids: Sequence[str], sigma: float, number: int, seed: int
) -> NDArray[np.float32]:
    sign = np.float32(1 if number % 2 == 0 else -1)
    level = f"{sigma:.6g}"
    return np.stack(
        [
            sign * rng.normal(shape, seed, "held-out", name, level, number // 2)
            for name in sample_ids
        ]
    )


def _loss(
    denoiser: Denoiser,
    x0: NDArray[np.float32],
    z: NDArray[np.float32],
    sigma: float,
    labels: NDArray[np.int64] | None,
) -> NDArray[np.float64]:
    device = device_of(denoiser)
    clean = torch.from_numpy(x0).to(device)
    level = torch.full((len(x0),), sigma, device=device)
    classes: Tensor | None = None if labels is None else torch.from_numpy(labels).to(device)
    x_t = clean + sigma * torch.from_numpy(z).to(device)
    loss = denoising_loss(denoiser(x_t, level, classes), clean, level)
    return loss.double().cpu().numpy()


def _standard_error(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(values) < 2:
        return np.zeros(values.shape[1:])
    return np.asarray(values.std(axis=0, ddof=1) / np.sqrt(len(values)))
