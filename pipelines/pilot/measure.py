"""What a trained pilot is worth per level: held-out loss and fine detail, right and wrong."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ambient_omni import rng
from ambient_omni.data.packs import to_x0
from ambient_omni.data.training_data import READ_TABLES, read_reference_images
from ambient_omni.evaluation import read_heldout
from ambient_omni.training.models import space_of
from ambient_omni.training.trained import TrainedModel, load_trained
from pipelines.pilot.detail import fine_detail
from schemas.errors import BadInput
from schemas.root import Root

Floats = NDArray[np.float64]

_IMAGES_AT_ONCE = 128


@dataclass(frozen=True)
class Measured:
    """One run on N held-out images at L levels.

    Attributes:
        sigmas: (L,).
        loss: (N, L) EDM-weighted.
        right: (N, L) product of output and clean image over fine frequencies.
        power: (N, L) the output's own power there.
        whole: (N,) the clean images'.
    """

    sigmas: tuple[float, ...]
    loss: Floats
    right: Floats
    power: Floats
    whole: Floats

    @property
    def fine_error(self) -> Floats:
        """(N, L) squared error of the output over fine frequencies."""
        error: Floats = self.power - 2 * self.right + self.whole[:, None]
        return error


def measure_run(root: Root, run_id: str) -> Measured:
    """Measure the selected checkpoint of a finished, unconditional run on its held-out set.

    Raises:
        BadInput: the run is conditional, or has no checkpoint.
        CheckpointRefused, PackMissing: as of loading it.
    """
    model = load_trained(root, run_id)
    config = model.config
    if model.model.conditioner is not None:
        raise BadInput("a pilot is unconditional: leave training.condition out")
    found = read_heldout(root.runs / run_id)[config.held_out.reference_set]
    images = read_reference_images(
        root,
        config.held_out.reference_set,
        space_of(config),
        root.tables.versions(READ_TABLES),
        config.held_out.max_images,
    )
    x0 = to_x0(images.pixels)
    parts = [_at_level(model, x0, images.sample_ids, sigma) for sigma in found.sigmas]
    return Measured(
        sigmas=tuple(found.sigmas),
        loss=np.array(found.per_image, np.float64),
        right=np.stack([right for right, _, _ in parts], axis=1),
        power=np.stack([power for _, _, power in parts], axis=1),
        whole=parts[0][1],
    )


@torch.no_grad()
def _at_level(
    model: TrainedModel, x0: NDArray[np.float32], sample_ids: tuple[str, ...], sigma: float
) -> tuple[Floats, Floats, Floats]:
    found = []
    for start in range(0, len(x0), _IMAGES_AT_ONCE):
        here = slice(start, start + _IMAGES_AT_ONCE)
        # The noise of an image at a level is the same for every model: paired comparisons.
        noise = np.stack(
            [
                rng.normal(x0.shape[1:], 0, "pilot", name, f"{sigma:.6g}")
                for name in sample_ids[here]
            ]
        )
        x_t = torch.from_numpy(x0[here] + np.float32(sigma) * noise)
        said = model.denoiser(x_t, torch.full((len(x_t),), sigma)).numpy()
        found.append(fine_detail(said, x0[here]))
    right, whole, power = (np.concatenate(part) for part in zip(*found, strict=True))
    return right, whole, power
