"""Held-out denoising loss per noise level, with noise that depends on image and level alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import nn

from ambient_omni import rng
from ambient_omni.data.packs import to_x0
from ambient_omni.data.training_data import (
    READ_TABLES,
    ReferenceImages,
    label_numbers,
    read_reference_images,
)
from ambient_omni.models.conditions import Condition
from ambient_omni.models.model import Model
from ambient_omni.models.networks import device_of
from ambient_omni.models.objectives import squared_error
from ambient_omni.models.preconditioning import SIGMA_DATA, edm_weight
from ambient_omni.training.config import HeldOutConfig
from ambient_omni.training.models import space_of
from ambient_omni.training.trained import load_trained
from schemas.reference_sets import TRUSTED
from schemas.root import Root, write_json

_LOG = logging.getLogger(__name__)

HELD_OUT_FILE = "heldout.json"

# Images at once, and numbers in them: 48 latents of 4x64x64, 256 images of 3x32x32 pixels.
_MAX_BATCH, _MAX_NUMBERS = 256, 3 << 18


class HeldOutLoss(BaseModel):
    """Held-out loss of one model on one reference set; lists are per level, in `sigmas`' order.

    `weighted` is the squared error of x_0 under EDM's weight for data of deviation `sigma_data`,
    whatever the model was trained to say; `unweighted` the squared error itself, both means
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
    sigma_data: float = SIGMA_DATA
    sample_rows: list[int]
    per_image: list[list[float]]

    def total_within(self, lowest: float, highest: float) -> float:
        """Return the sum of `weighted` over the levels from `lowest` to `highest`."""
        pairs = zip(self.sigmas, self.weighted, strict=True)
        return sum(loss for sigma, loss in pairs if lowest <= sigma <= highest)


@torch.no_grad()
def heldout_loss(
    denoiser: nn.Module,
    x0: NDArray[np.float32],
    sample_ids: Sequence[str],
    sigmas: Sequence[float],
    num_noises: int = 2,
    seed: int = 0,
    *,
    sigma_data: float = SIGMA_DATA,
    condition_of: Callable[[slice], Condition | None] = lambda _: None,
) -> NDArray[np.float64]:
    """Return the EDM-weighted denoising loss of each image at each level, (N, L) float64.

    The noise is addressed by (sample_id, level): every model, order and batching sees the same.
    Noisings come in pairs z, -z, which cancels what is odd in the noise.

    Args:
        denoiser: estimates x_0 from (x_t, σ, condition).
        x0: (N, C, H, W), the data's scale.
        sample_ids: N names.
        sigmas: L levels.
        num_noises: noisings per image and level; the mean over them is returned.
        seed: of the noise.
        sigma_data: standard deviation of the data, for the weight.
        condition_of: the condition of some of the images.
    """
    out = np.zeros((len(x0), len(sigmas)), np.float64)
    size = _batch_size(x0.shape[1:])
    for start in range(0, len(x0), size):
        here = slice(start, start + size)
        # Once for all levels: texts are as dear to encode as images are to denoise.
        condition = condition_of(here)
        for column, sigma in enumerate(sigmas):
            weight = float(edm_weight(torch.tensor(sigma, dtype=torch.float64), sigma_data))
            for number in range(num_noises):
                z = _noise(x0.shape[1:], sample_ids[here], sigma, number, seed)
                out[here, column] += weight * _error(denoiser, x0[here], z, sigma, condition)
    return out / num_noises


def reference_losses(
    model: Model,
    images: ReferenceImages,
    config: HeldOutConfig,
    label_names: Sequence[str] = (),
) -> NDArray[np.float64]:
    """Return the loss of each reference image at each level, (N, L), as `heldout_loss` does.

    Args:
        model: of pixels or latents, with whatever condition; in evaluation mode.
        images: of the reference set named in `config`, or some of them.
        config: levels and noisings.
        label_names: the model's classes; empty if unconditional.

    Raises:
        BadInput: the model is conditional, and an image has no label that it knows or no caption.
    """
    return heldout_loss(
        model.denoiser,
        to_x0(images.pixels),
        images.sample_ids,
        config.sigmas,
        config.num_noises,
        config.seed,
        sigma_data=model.parameterisation.sigma_data,
        condition_of=_conditions(model, images, label_names),
    )


def summed_up(
    losses: NDArray[np.float64],
    images: ReferenceImages,
    config: HeldOutConfig,
    checkpoint: str,
    sigma_data: float,
) -> HeldOutLoss:
    """Return what is kept of a measurement.

    Args:
        losses: (N, L), of `reference_losses`.
        images: the N images.
        config: levels and noisings.
        checkpoint: name of the weights, for the record.
        sigma_data: of the model's data.
    """
    weight = edm_weight(torch.tensor(config.sigmas, dtype=torch.float64), sigma_data).numpy()
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
        sigma_data=sigma_data,
        sample_rows=images.sample_rows.tolist(),
        per_image=losses.tolist(),
    )


def evaluate(
    root: Root, run_id: str, reference_set: str = "evaluation", checkpoint: Path | None = None
) -> HeldOutLoss:
    """Measure a run's selected checkpoint on a reference set, and keep it in ``heldout.json``.

    The file maps reference sets to `HeldOutLoss`. Levels, noisings and seed are the run's own, so
    that runs which agree on them can be compared image by image.

    Args:
        root: where the run is.
        run_id: which one.
        reference_set: what is measured on; of `trusted` the run trained on some itself.
        checkpoint: another checkpoint of the run, or an average; its loss is not kept.

    Raises:
        BadInput: there is no such run, or it has no checkpoint yet.
        CheckpointRefused: the checkpoint is damaged.
        NotEnoughReferences: the reference set is empty.
        PackMissing: a batch of its members has no complete pack.
    """
    if reference_set == TRUSTED:
        _LOG.warning("the run trained on images of the set %r: no held-out loss", reference_set)
    model = load_trained(root, run_id, checkpoint)
    config = model.config.held_out.model_copy(update={"reference_set": reference_set})
    images = read_reference_images(
        root,
        reference_set,
        space_of(model.config),
        root.tables.versions(READ_TABLES),
        config.max_images,
    )
    found = model.model.on_accelerator()
    losses = reference_losses(found, images, config, model.label_names)
    sigma_data = found.parameterisation.sigma_data
    loss = summed_up(losses, images, config, model.checkpoint.name, sigma_data)
    if checkpoint is None:
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


def _error(
    denoiser: nn.Module,
    x0: NDArray[np.float32],
    z: NDArray[np.float32],
    sigma: float,
    condition: Condition | None,
) -> NDArray[np.float64]:
    device = device_of(denoiser)
    clean = torch.from_numpy(x0).to(device)
    level = torch.full((len(x0),), sigma, device=device)
    x_t = clean + sigma * torch.from_numpy(z).to(device)
    error = squared_error(denoiser(x_t, level, condition), clean)
    return error.double().cpu().numpy()


def _conditions(
    model: Model, images: ReferenceImages, label_names: Sequence[str]
) -> Callable[[slice], Condition | None]:
    """Return what gives the condition of some of the images."""
    conditioner = model.conditioner
    if conditioner is None:
        return lambda _: None
    numbers = label_numbers(images.label_names, label_names, "reference images")
    labels = None if numbers is None else torch.from_numpy(numbers).to(device_of(model.denoiser))

    def of(here: slice) -> Condition:
        return conditioner.encode(
            labels=None if labels is None else labels[here], captions=images.captions[here]
        )

    return of


def _batch_size(shape: Sequence[int]) -> int:
    return max(1, min(_MAX_BATCH, _MAX_NUMBERS // int(np.prod(shape))))


def _standard_error(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(values) < 2:
        return np.zeros(values.shape[1:])
    return np.asarray(values.std(axis=0, ddof=1) / np.sqrt(len(values)))
