"""Settings of the noise classifier; free of torch, so that recipes can name them."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ambient_omni.config import Frozen
from ambient_omni.data.transforms import Transform


class ClassifierNetworkConfig(Frozen):
    """Size of the network; see `classifier.network.NoiseClassifierNetwork`."""

    patch: int = Field(default=2, ge=1, description="Side of the patches of the small CNN.")
    widths: tuple[int, ...] = Field(
        default=(32, 64), min_length=1, description="Channels of the CNN per scale."
    )
    hidden: int = Field(default=128, ge=1, description="Width of the head.")
    dropout: float = Field(default=0.2, ge=0, lt=1)


class ControlConfig(Frozen):
    """The positive control: what is planted, and what must be found."""

    severities: dict[str, float] = Field(
        default={"gaussian_blur": 1.5, "jpeg": 85.0, "sensor_noise": 32.0},
        min_length=1,
        description="Kinds of damage planted in validation references, with their severity.",
    )
    level_fraction: float = Field(
        default=0.3, gt=0, le=1, description="Share of the levels, from the lowest, it looks at."
    )
    bar: float = Field(
        default=0.4,
        gt=0,
        lt=1,
        description="Total variation that the best-found kind must exceed by two standard errors.",
    )


class ClassifierConfig(Frozen):
    """One noise classifier: K networks, each grading what it did not see."""

    network: ClassifierNetworkConfig = ClassifierNetworkConfig()
    num_folds: int = Field(default=2, ge=2, le=16, description="Networks; each skips its fold.")
    num_images: int = Field(default=60_000, ge=1, description="Images drawn per network.")
    batch_size: int = Field(default=64, ge=2, multiple_of=2, description="Half trusted, half pool.")
    learning_rate: float = Field(default=3e-3, gt=0, description="Peak; falls to 0 by a cosine.")
    weight_decay: float = Field(default=0.05, ge=0)
    ema_decay: float = Field(default=0.99, ge=0, lt=1, description="Average of the weights.")
    augment: Literal["none", "flip", "geometry", "geometry_and_channels"] = Field(
        default="geometry_and_channels",
        description="flip: left-right; geometry: all eight symmetries of the square; channels: "
        "also any order of the colours, so that few references are harder to learn by heart.",
    )
    sigma_low: float = Field(default=0.04, gt=0, description="Lowest level of the curves.")
    sigma_high: float = Field(default=10.0, gt=0, description="Highest level of the curves.")
    num_levels: int = Field(default=18, ge=3, description="Levels, even steps in ln sigma.")
    num_noises: int = Field(
        default=4, ge=2, multiple_of=2, description="Noisings per image and level, in ± pairs."
    )
    max_graded_images: int = Field(
        default=256, ge=8, description="Pool images a fold is calibrated and measured on."
    )
    control: ControlConfig = ControlConfig()
    seed: int = 0

    @model_validator(mode="after")
    def _levels_ascend(self) -> ClassifierConfig:
        if self.sigma_high <= self.sigma_low:
            raise ValueError("sigma_high must be above sigma_low")
        return self

    @property
    def sigmas(self) -> NDArray[np.float64]:
        """The (L,) levels of the curves."""
        return np.geomspace(self.sigma_low, self.sigma_high, self.num_levels)


class TrainClassifierJob(Frozen):
    """What `python -m ambient_omni train-classifier` does."""

    classifier: ClassifierConfig = ClassifierConfig()
    pool_batches: tuple[str, ...] = Field(min_length=1, description="Ingest batches of the pool.")
    reference_set: str = Field(default="trusted", description="The positives.")
    transform: Transform = Transform()
