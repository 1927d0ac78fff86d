"""How much context denoising needs at each noise level, measured on the user's own data.

Below some level only the neighbourhood matters: to guess a pixel that is hidden under little
noise, its neighbours are enough. So an image whose small crops look right teaches the truth there,
whatever it shows. Here one network sees windows of many sides and denoises their middle; the
context that a level needs is the smallest side whose held-out loss is that of the whole image.

Legend: N images, B batch, L levels, S sides of windows, K noisings, C channels, H height, W width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ambient_omni import rng
from ambient_omni.classifier.data import ClassifierData, PackedImages
from ambient_omni.code_version import code_version
from ambient_omni.data.packs import Space, to_x0
from ambient_omni.models.preconditioning import SIGMA_DATA, edm_weight
from ambient_omni.noise.crossing import monotone_fit
from ambient_omni.windows.config import ReceptiveFieldConfig
from ambient_omni.windows.crops import central_corner, cut, random_corners
from ambient_omni.windows.fitting import fit
from ambient_omni.windows.network import CentreDenoiser, centre
from schemas.errors import BadInput
from schemas.ids import canonical_hash
from schemas.registry import contract
from schemas.root import Root

Floats = NDArray[np.float64]

_IMAGES_AT_ONCE = 256
_MARGIN = 1.25  # levels just beyond the ends are trained too


@dataclass(frozen=True)
class ReceptiveField:
    """What was measured.

    Attributes:
        contexts: S sides of windows, full context last.
        sigmas: L levels.
        loss: (S, L) unit-normalised held-out loss.
        excess_error: (S, L) paired standard error, over images, of the excess over full context.
        needed: (L,) the context that each level needs; never falling.
    """

    contexts: tuple[int, ...]
    sigmas: tuple[float, ...]
    loss: Floats
    excess_error: Floats
    needed: NDArray[np.int64]


def measure_receptive_field(
    root: Root,
    config: ReceptiveFieldConfig,
    *,
    foreign_batches: tuple[str, ...],
    reference_set: str,
    space: Space,
) -> str:
    """Measure the receptive field of a reference set, write its row, and return its id.

    Does nothing when the same images, pixels and settings were measured before.

    Raises:
        NotEnoughReferences, BadInput, TableMissing, PackMissing: as of a noise classifier's data;
            or the images are too small.
        TrainingFailed: the loss is not finite.
    """
    data = ClassifierData.read(root, foreign_batches, reference_set)
    inputs = {
        "config": config.model_dump(mode="json"),
        "transform": space.transform_id,
        "trusted": canonical_hash(sorted(data.trusted.sample_ids)),
        "validation": canonical_hash(sorted(data.validation.sample_ids)),
    }
    field_id = f"context-{canonical_hash(inputs)}"
    where = {"receptive_field_id": field_id}
    if root.tables.read("receptive_fields", ["receptive_field_id"], where).num_rows:
        return field_id
    with root.lock("receptive_field", field_id):
        trusted, validation = (
            members.images(root, space) for members in (data.trusted, data.validation)
        )
        found = receptive_field(trusted, validation, config)
        row = {
            "receptive_field_id": field_id,
            "reference_set": reference_set,
            "noise_space": space.noise_space,
            "sigmas": list(found.sigmas),
            "needed_context": found.needed.tolist(),
            "losses": json.dumps(
                {
                    "contexts": list(found.contexts),
                    "loss": found.loss.tolist(),
                    "excess_standard_error": found.excess_error.tolist(),
                }
            ),
            "config": json.dumps(config.model_dump(mode="json")),
            "code_version": code_version(),
        }
        rows = contract("receptive_fields").table([row])
        root.tables.upsert("receptive_fields", rows, job="receptive_field")
    return field_id


def receptive_field(
    trusted: PackedImages, validation: PackedImages, config: ReceptiveFieldConfig
) -> ReceptiveField:
    """Train on trusted images, measure on held-out ones.

    Raises:
        BadInput: the images are constant, or too small for two windows.
        TrainingFailed: the loss is not finite.
    """
    held = validation.first_by_content(config.max_images)
    x0_NCHW = to_x0(held.take(np.arange(len(held))))
    contexts = config.contexts_in(min(x0_NCHW.shape[2:]))
    if len(contexts) < 2:
        raise BadInput(
            f"images of {x0_NCHW.shape[2]} x {x0_NCHW.shape[3]} have no window smaller than "
            "themselves: give smaller contexts, or a larger transform.resolution"
        )
    if not x0_NCHW.std(axis=(1, 2, 3)).any():
        raise BadInput("every held-out image is one colour: there is no context to measure")
    sigma_data = trusted.packs.sigma_data or SIGMA_DATA
    network = _train(trusted, contexts, config, x0_NCHW.shape[1], sigma_data)
    loss_NSL = held_out_losses(network, x0_NCHW, held.sample_ids, contexts, config, sigma_data)
    loss = loss_NSL.mean(axis=0)
    excess = loss_NSL - loss_NSL[:, -1:]
    return ReceptiveField(
        contexts,
        config.sigmas,
        loss,
        excess.std(axis=0, ddof=1) / np.sqrt(len(excess)),
        needed_context(loss, contexts, config.tolerance, relative=config.relative),
    )


def needed_context(
    loss_SL: Floats, contexts: tuple[int, ...], tolerance: float, *, relative: bool = False
) -> NDArray[np.int64]:
    """Return the smallest side from which on the loss is that of full context, (L,).

    More context never hurts, so the loss is made to fall with the side by least squares; and a
    level needs at least what the levels below it need, so that a window up to it is one interval.

    Args:
        loss_SL: by side, full context last, and level.
        contexts: S sides, ascending.
        tolerance: excess that counts as none.
        relative: tolerance as a share of full context's loss.
    """
    falling = -monotone_fit(-loss_SL.T)
    full = falling[:, -1:]
    enough = falling - full <= tolerance * (full if relative else 1.0)
    needed = np.array(contexts)[enough.argmax(axis=1)]
    return np.maximum.accumulate(needed)


@torch.no_grad()
def held_out_losses(
    network: CentreDenoiser,
    x0_NCHW: NDArray[np.float32],
    sample_ids: tuple[str, ...],
    contexts: tuple[int, ...],
    config: ReceptiveFieldConfig,
    sigma_data: float,
) -> Floats:
    """Return unit-normalised losses (N, S, L) of the middle; all windows see the same noise."""
    out = np.zeros((len(x0_NCHW), len(contexts), len(config.sigmas)))
    shape = x0_NCHW.shape[1:]
    for number in range(config.num_noises):
        sign = 1 if number % 2 == 0 else -1
        noise = sign * np.stack(
            [rng.normal(shape, config.seed, "context-noise", i, number // 2) for i in sample_ids]
        )
        for level, sigma in enumerate(config.sigmas):
            x_t = x0_NCHW + np.float32(sigma) * noise
            for place, context in enumerate(contexts):
                out[:, place, level] += _losses(network, x_t, x0_NCHW, context, sigma, sigma_data)
    return out / config.num_noises


def _losses(
    network: CentreDenoiser,
    x_t: NDArray[np.float32],
    x0: NDArray[np.float32],
    context: int,
    sigma: float,
    sigma_data: float,
) -> Floats:
    corner = np.repeat(central_corner(x0.shape[2:], context), len(x0), axis=0)
    windows, targets = (torch.from_numpy(cut(part, corner, context)) for part in (x_t, x0))
    found = []
    for start in range(0, len(windows), _IMAGES_AT_ONCE):
        here = slice(start, start + _IMAGES_AT_ONCE)
        levels = torch.full((len(windows[here]),), sigma)
        found.append(_loss(network, windows[here], targets[here], levels, sigma_data))
    return torch.cat(found).double().numpy()


def _loss(
    network: CentreDenoiser, x_t: Tensor, x0: Tensor, sigma_B: Tensor, sigma_data: float
) -> Tensor:
    error: Tensor = (network(x_t, sigma_B) - centre(x0)).square().mean((1, 2, 3))
    return error * edm_weight(sigma_B, sigma_data)


def _train(
    images: PackedImages,
    contexts: tuple[int, ...],
    config: ReceptiveFieldConfig,
    channels: int,
    sigma_data: float,
) -> CentreDenoiser:
    low = np.log(config.sigmas[0] / _MARGIN)
    high = np.log(config.sigmas[-1] * _MARGIN)

    def loss_of_step(network: CentreDenoiser, step: int) -> Tensor:
        draw = rng.generator(config.seed, "context-batch", step)
        context = contexts[draw.integers(len(contexts))]
        x0 = to_x0(images.take(draw.integers(len(images), size=config.batch_size)))
        x0 = cut(x0, random_corners(len(x0), x0.shape[2:], context, draw), context)
        sigma = np.exp(draw.uniform(low, high, len(x0))).astype(np.float32)
        noise = draw.standard_normal(x0.shape, dtype=np.float32)
        x_t = torch.from_numpy(x0 + sigma[:, None, None, None] * noise)
        return _loss(network, x_t, torch.from_numpy(x0), torch.from_numpy(sigma), sigma_data).mean()

    with rng.torch_seeded(config.seed, "context-weights"):
        network = CentreDenoiser(config.network, channels, contexts[-1], sigma_data)
    num_steps = -(-config.num_windows // config.batch_size)
    return fit(network, loss_of_step, config, num_steps, "receptive field")
