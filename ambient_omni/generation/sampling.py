"""Images from a model: its levels, what it is told, and guidance. The solvers are in `solvers`.

B batch, C channels, H height, W width; (C, H, W) is what is denoised, pixels or latents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ambient_omni import rng
from ambient_omni.data.packs import to_pixels
from ambient_omni.generation.config import SampleConfig
from ambient_omni.generation.grids import title
from ambient_omni.generation.solvers import SOLVERS, Denoise
from ambient_omni.models.conditions import Condition, LabelConditioner, guided
from ambient_omni.models.model import Model
from ambient_omni.models.networks import device_of
from ambient_omni.models.preconditioning import Parameterisation
from ambient_omni.noise.levels import edm_grid
from ambient_omni.noise.priors import Prior
from schemas.errors import BadInput

Pixels = NDArray[np.uint8]

# Where a sampler begins and ends if the model was trained at every level.
# Source: Karras et al. 2022 (EDM), table 1.
_LOWEST, _HIGHEST = 0.002, 80.0

# Levels within rounding of the end of the trained ones are that end.
_ROUNDING = 1e-6


def level_range(
    config: SampleConfig, parameterisation: Parameterisation, prior: Prior | None = None
) -> tuple[float, float]:
    """Return the lowest and the highest level of the sampler.

    By default as far as the model was trained: over the timesteps of a DDPM schedule, or from
    EDM's 80 down to 0.002, and not beyond what the prior draws.

    Args:
        config: its `lowest` and `highest` count where they are given.
        parameterisation: of the model.
        prior: what the model was trained with, if known.

    Raises:
        BadInput: a level is asked for at which the model was not trained, or there is none.
    """
    low, high = parameterisation.sigma_range
    if prior is not None:
        low, high = max(low, prior.support[0]), min(high, prior.support[1])
    lowest = config.lowest or low or _LOWEST
    highest = config.highest or (high if math.isfinite(high) else _HIGHEST)
    if lowest < low * (1 - _ROUNDING) or highest > high * (1 + _ROUNDING):
        raise BadInput(
            f"samples from sigma {highest:g} down to {lowest:g} are asked for, but the model was "
            f"trained from {high:g} down to {low:g} only: leave out lowest and highest"
        )
    if lowest >= highest:
        raise BadInput(f"the lowest level of the samples, {lowest:g}, is not below {highest:g}")
    return lowest, highest


def start_deviation(sigma: float, parameterisation: Parameterisation) -> float:
    """Return the standard deviation of x_t at the first level: noise and data, √(σ² + σ_d²).

    Models with timesteps begin as diffusers begins them, with unit noise in the
    variance-preserving form, which is σ_d = 1: one seed then makes one image here and there.
    """
    data = 1.0 if parameterisation.config.has_timesteps else parameterisation.sigma_data
    return math.hypot(sigma, data)


@dataclass(frozen=True)
class Sampler:
    """Draws images of one model. Image i depends on the settings and on i alone.

    Attributes:
        model: in evaluation mode, with its codec if it works on latents.
        config: levels, solver, guidance, prompts, labels and seed.
        x0_shape: (C, H, W) of what is denoised.
        label_names: of the model's classes, in their order.
        prior: what the model was trained with, if known.
        batch_size: images at once.
    """

    model: Model
    config: SampleConfig
    x0_shape: tuple[int, int, int]
    label_names: tuple[str, ...] = ()
    prior: Prior | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        self._require_answerable()
        level_range(self.config, self.model.parameterisation, self.prior)

    def facts(self, number: int) -> dict[str, Any]:
        """Return what image `number` was asked to be: its number, and its label or prompt.

        Under the names that image folders, shards and ingest know: `label` and `text`.
        """
        facts: dict[str, Any] = {"number": number}
        if self._labels:
            facts["label"] = self._labels[number % len(self._labels)]
        if self.config.prompts:
            facts["text"] = self.config.prompts[number % len(self.config.prompts)]
        return facts

    def titles(self, count: int) -> list[str]:
        """Return what the first images are asked to be, for a grid; nothing if nothing is."""
        titles = [title(self.facts(number)) for number in range(count)]
        return titles if any(titles) else []

    def first(self, count: int) -> Pixels:
        """Return the first images, uint8 (count, H, W, 3), for a grid."""
        return np.stack(list(self.images(range(count))))

    def images(self, numbers: range) -> Iterator[Pixels]:
        """Yield images uint8 (H, W, 3), batch by batch.

        Raises:
            BadInput: one has values that are no numbers: its settings are beyond what can be told.
        """
        for start in range(numbers.start, numbers.stop, self.batch_size):
            rows = range(start, min(start + self.batch_size, numbers.stop))
            images = self._decode(self.x0(rows)).float().cpu().numpy()
            bad = ~np.isfinite(images).all(axis=(1, 2, 3))
            if bad.any():
                raise BadInput(
                    f"image {rows[int(bad.argmax())]} is not finite: lower samples.guidance and "
                    "samples.highest, or use another checkpoint"
                )
            yield from to_pixels(images)

    def x0(self, numbers: range) -> Tensor:
        """Return what the solver arrives at, (B, C, H, W) float32: pixels -1..1, or latents."""
        noise = rng.normal_rows(numbers, self.x0_shape, self.config.seed, "sampling")
        device = device_of(self.model.denoiser)
        return self.solve(torch.from_numpy(noise).to(device), self.levels(), numbers)

    def levels(self) -> Tensor:
        """Return the levels (num_steps,) float64, descending."""
        config = self.config
        low, high = level_range(config, self.model.parameterisation, self.prior)
        return torch.from_numpy(edm_grid(config.num_steps, low, high, config.rho))

    def solve(self, noise: Tensor, levels: Tensor, numbers: range) -> Tensor:
        """Return x_0 (B, C, H, W) from standard normal noise, over levels of one's own.

        Args:
            noise: (B, C, H, W), standard normal.
            levels: (n,) descending and positive.
            numbers: B image numbers: they say what each image is told.
        """
        deviation = start_deviation(float(levels[0]), self.model.parameterisation)
        solver = SOLVERS[self.config.solver]
        with torch.no_grad():
            denoise = self._denoise(numbers, noise.device)
            return solver(denoise, noise * deviation, levels.to(noise))

    def _denoise(self, numbers: range, device: torch.device) -> Denoise:
        """Return the guided estimate of x_0 of these images."""
        model, scale = self.model, self.config.guidance
        condition = self._condition(numbers)
        if condition is None:
            return lambda x, sigma: model.denoiser(x, sigma, None)
        told = condition.to(device)
        assert model.conditioner is not None
        null = model.conditioner.null(len(numbers)).to(device)
        return lambda x, sigma: guided(model.denoiser, x, sigma, told, null, scale)

    def _condition(self, numbers: range) -> Condition | None:
        conditioner = self.model.conditioner
        if conditioner is None:
            return None
        if not isinstance(conditioner, LabelConditioner):
            if not self.config.prompts:
                return conditioner.null(len(numbers))
            return conditioner.encode(captions=[self.facts(n)["text"] for n in numbers])
        index = {name: number for number, name in enumerate(self.label_names)}
        labels = [index[self.facts(number)["label"]] for number in numbers]
        return conditioner.encode(labels=torch.tensor(labels))

    @property
    def _labels(self) -> tuple[str, ...]:
        if not isinstance(self.model.conditioner, LabelConditioner):
            return ()
        return self.config.labels or self.label_names

    def _decode(self, x0: Tensor) -> Tensor:
        return x0 if self.model.codec is None else self.model.codec.decode(x0)

    def _require_answerable(self) -> None:
        conditioner, config = self.model.conditioner, self.config
        takes_labels = isinstance(conditioner, LabelConditioner)
        if config.labels and not takes_labels:
            raise BadInput("labels are asked for, but the model was not trained on labels")
        if config.prompts and (conditioner is None or takes_labels):
            raise BadInput("prompts are given, but the model was not trained on captions")
        if config.guidance != 1 and conditioner is None:
            raise BadInput("guidance needs a model that was trained on labels or captions")
        if config.guidance != 1 and not takes_labels and not config.prompts:
            raise BadInput("guidance goes towards prompts, and none is given: give samples.prompts")
        unknown = [label for label in config.labels if label not in self.label_names]
        if unknown:
            known = ", ".join(self.label_names[:10])
            raise BadInput(f"the model has no label {unknown[0]!r}; it has {known}")
        if self.model.codec is None and self.x0_shape[0] != 3:
            raise BadInput(
                f"what the model makes has {self.x0_shape[0]} channels and no VAE to decode it"
            )
