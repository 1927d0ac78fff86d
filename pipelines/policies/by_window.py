"""Windows for foreign images: usable below σ_max, because their crops look like the domain's.

Shapes: N samples, S crop sizes.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipelines.policies.base import Decisions, Floats, PolicyBase
from pipelines.policies.by_curve import ClassifierThreshold
from pipelines.policies.by_source import FixedPerSource

Floor = Annotated[ClassifierThreshold | FixedPerSource, Field(discriminator="kind")]


class CropWindow(PolicyBase):
    """A floor by another rule, and a window below the level whose needed context looks right.

    Make one with `measures.freeze_crop_window`, which reads the levels off a measured receptive
    field.
    """

    kind: Literal["crop_window"] = "crop_window"
    floor: Floor = Field(description="the rule of sigma_min, in the same noise space")
    crop_classifier_id: str
    receptive_field_id: str
    epsilon: float = Field(
        default=0.05, ge=0, lt=0.5, description="crops pass where mean P(in domain) > 1/2 - ε"
    )
    sizes: tuple[int, ...] = Field(min_length=1, description="sides of the crops, ascending")
    sigma_max: tuple[float, ...] = Field(
        description="per size, the level up to which denoising needs no more context; 0: none"
    )

    @property
    def parameters(self) -> dict[str, object]:
        """All that decides."""
        return self.model_dump(mode="json", exclude={"name": True, "floor": {"name"}})

    @model_validator(mode="after")
    def _parts_fit(self) -> "CropWindow":
        if len(self.sigma_max) != len(self.sizes):
            raise ValueError("sigma_max must have one level for each of the sizes")
        for name in ("sizes", "sigma_max"):
            values: Sequence[float] = getattr(self, name)
            if any(low > high for low, high in itertools.pairwise(values)) or min(values) < 0:
                raise ValueError(f"{name} must ascend from 0 on")
        if self.floor.noise_space != self.noise_space:
            raise ValueError(
                f"the floor measures in {self.floor.noise_space}, the window in {self.noise_space}"
            )
        return self


def decide_windows(policy: CropWindow, mean_probability_NS: NDArray[np.floating]) -> Floats:
    """Return sigma_max (N,): the level of the largest size that passes with all smaller ones.

    All smaller ones: a large crop that passes while its own parts do not is luck.
    """
    passes = np.asarray(mean_probability_NS) > 0.5 - policy.epsilon
    num_passed = np.cumprod(passes, axis=1).sum(axis=1)
    levels = np.array([0.0, *policy.sigma_max])
    found: Floats = levels[num_passed]
    return found


def with_windows(floor: Decisions, sigma_max_N: Floats) -> Decisions:
    """Put windows beside the decisions of a floor."""
    return replace(floor, sigma_max=sigma_max_N)
