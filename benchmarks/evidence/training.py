"""One training of the study, from the product's own parts and arrays in memory.

Trainings through packs and tables would spend more time on a root's files than on the network: a
cell here is a few thousand steps of a very small one. So images are arrays; levels, draws, target,
network, parameterisation, optimizer, average and held-out loss are the trainer's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ambient_omni import rng
from ambient_omni.config import Frozen
from ambient_omni.data.packs import to_x0
from ambient_omni.data.samplers import LevelThenSampleBatchSampler
from ambient_omni.evaluation import heldout_loss
from ambient_omni.models.config import PatchedUNetConfig
from ambient_omni.models.model import Model
from ambient_omni.models.networks import build_network
from ambient_omni.models.objectives import denoising_pair, squared_error
from ambient_omni.models.preconditioning import Denoiser
from ambient_omni.models.weighting import NaturalWeight
from ambient_omni.noise.priors import LogNormalPrior
from ambient_omni.training.averages import WeightAverage
from ambient_omni.training.config import EmaConfig, OptimizerConfig
from ambient_omni.training.optimization import ema_decay, learning_rate, make_optimizer
from benchmarks.evidence.images import SIDE, Tiles
from benchmarks.evidence.levels import ArmLevels

SHAPE = (3, SIDE, SIDE)


class TrainingSettings(Frozen):
    """What is the same for every arm."""

    network: PatchedUNetConfig = PatchedUNetConfig(
        patch=2, widths=(48,), pixel_width=24, attention=False
    )
    prior: LogNormalPrior = LogNormalPrior(mean=-0.6, std=1.2)
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=3e-3, warmup_images=3_200, decay="constant"
    )
    ema: EmaConfig = EmaConfig(half_life_images=8_000)
    batch_size: int = Field(default=32, ge=1)
    num_images: int = Field(default=72_000, ge=1, description="Seen by every arm.")
    num_checks: int = Field(default=16, ge=1, description="Looks at the validation loss.")
    check_sigmas: tuple[float, ...] = Field(
        default=(0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 4.0),
        description="Levels of the validation loss; checkpoints are chosen by their sum.",
    )


@dataclass
class Trained:
    """A finished training.

    Attributes:
        weights: of the selected checkpoint, averaged, by name.
        curve: images seen, and validation loss per level, of every check.
        best: which check was selected.
        seconds: CPU seconds of the training, checks included.
    """

    weights: dict[str, Tensor]
    curve: list[tuple[int, list[float]]]
    best: int
    seconds: float


def train(
    images: Tiles,
    levels: ArmLevels,
    validation: Tiles,
    settings: TrainingSettings,
    seed: int,
    told: Callable[[int], None] = lambda _: None,
) -> Trained:
    """Train one arm and keep its best checkpoint by validation loss, at equal budget.

    Args:
        images: references and pool.
        levels: of the arm, one row an image.
        validation: clean images that decide which checkpoint is kept.
        settings: the same for every arm.
        seed: of weights, draws and noise: arms of one seed share all of these.
        told: called with the images seen, from time to time.
    """
    began = time.process_time()
    denoiser = new_denoiser(settings, seed)
    optimizer = make_optimizer(denoiser.parameters(), settings.optimizer)
    parameters = dict(denoiser.named_parameters())
    average = WeightAverage(parameters)
    num_steps = -(-settings.num_images // settings.batch_size)
    sampler = LevelThenSampleBatchSampler(
        levels, settings.prior, settings.batch_size, num_steps=num_steps, seed=seed
    )
    x0 = to_x0(images.pixels)
    every = max(1, num_steps // settings.num_checks)
    curve: list[tuple[int, list[float]]] = []
    best: dict[str, Tensor] = {}
    for step in range(num_steps):
        _step(denoiser, optimizer, sampler, levels, x0, settings, seed, step)
        seen = (step + 1) * settings.batch_size
        average.update(ema_decay(settings.ema, seen, settings.batch_size))
        if (step + 1) % every == 0 or step + 1 == num_steps:
            with average.applied():
                curve.append((seen, validation_loss(denoiser, validation, settings)))
            if sum(curve[-1][1]) <= min(sum(losses) for _, losses in curve):
                best = {name: tensor.clone() for name, tensor in average.tensors.items()}
            told(seen)
    totals = [sum(losses) for _, losses in curve]
    return Trained(best, curve, int(np.argmin(totals)), time.process_time() - began)


def new_denoiser(settings: TrainingSettings, seed: int) -> Denoiser:
    """Return the network at its start, the same for all arms of a seed."""
    with rng.torch_seeded(seed, "evidence-weights"):
        return Denoiser(build_network(settings.network, SHAPE))


def model_of(weights: Mapping[str, Tensor], settings: TrainingSettings) -> Model:
    """Return the product's model of some weights, in evaluation mode."""
    denoiser = new_denoiser(settings, 0)
    denoiser.load_state_dict(dict(weights), strict=False)
    return Model(
        denoiser.eval(),
        None,
        None,
        denoiser.parameterisation,
        NaturalWeight(denoiser.parameterisation),
    )


def validation_loss(
    denoiser: Denoiser, validation: Tiles, settings: TrainingSettings
) -> list[float]:
    """Return the EDM-weighted loss per level of the check's levels."""
    denoiser.eval()
    found = heldout_loss(
        denoiser, to_x0(validation.pixels), validation.names, settings.check_sigmas
    )
    denoiser.train()
    return [float(loss) for loss in found.mean(axis=0)]


def _step(
    denoiser: Denoiser,
    optimizer: torch.optim.Optimizer,
    sampler: LevelThenSampleBatchSampler,
    levels: ArmLevels,
    x0: NDArray[np.float32],
    settings: TrainingSettings,
    seed: int,
    step: int,
) -> None:
    index, level = sampler.draw(step)
    flips = rng.uniform(len(index), seed, "evidence-flip", step) < 0.5
    clean = _flipped(x0[index], flips)
    sigma = torch.from_numpy(level.astype(np.float32))
    fresh = rng.torch_normal(clean.shape, seed, "evidence-noise", step)
    hidden, fixed = levels.hidden_level(index, level), None
    if hidden.any():
        # z belongs to the image, and so turns with it.
        rows = rng.normal_rows(index, SHAPE, seed, "evidence-fixed-noise")
        fixed = torch.from_numpy(_flipped(rows, flips))
    pair = denoising_pair(
        torch.from_numpy(clean), sigma, torch.from_numpy(hidden.astype(np.float32)), fresh, fixed
    )
    error = squared_error(denoiser(pair.x_t, sigma), pair.target)
    loss = (denoiser.parameterisation.natural_weight(sigma) * error).mean()
    for group in optimizer.param_groups:
        seen = step * settings.batch_size
        group["lr"] = learning_rate(settings.optimizer, seen, settings.num_images)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(denoiser.parameters(), settings.optimizer.gradient_clip)
    optimizer.step()


def _flipped(images: NDArray[np.float32], flips: NDArray[np.bool_]) -> NDArray[np.float32]:
    out = images.copy()
    out[flips] = out[flips, :, :, ::-1]
    return out
