"""Settings of pilot trainings."""

from __future__ import annotations

import itertools
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from ambient_omni.config import Frozen
from ambient_omni.training.config import TrainConfig

SMALL: dict[str, Any] = {
    "network": {"widths": (32, 48), "pixel_width": 8},
    "num_images": 12_000,
    "evaluate_every_images": 3_000,
    "log_every_images": 3_000,
    "held_out": {"num_noises": 2, "max_images": 128},
    "samples": {"num_images": 1, "num_steps": 2},
}
"""What a pilot is unless its settings say otherwise: minutes on two cores at 32 pixels."""

_GIVEN_BY_THE_PILOT = ("name", "policy_id", "batches")


class PilotConfig(Frozen):
    """What `python -m pipelines pilot` does.

    The pilot answers for runs with its own numbers of images and passes: few references that are
    seen a hundred times are learned by heart, and then the pool helps. A pilot that stops earlier
    favours the references.
    """

    classifier_id: str = Field(description="The noise classifier whose evidence is weighed.")
    batches: tuple[str, ...] = Field(min_length=1, description="Reference and pool batches.")
    thresholds: tuple[Annotated[float, Field(ge=0, lt=0.5)], ...] = Field(
        default=(0.0, 0.3, 0.45),
        min_length=1,
        description="P(trusted) above which pool samples are accepted, a training each; 0: all.",
    )
    edges: tuple[float, ...] | None = Field(
        default=None,
        description="Levels that part the bands, ascending; null: a band for each held-out level.",
    )
    detail_tolerance: float = Field(
        default=0.1,
        ge=0,
        description="How much too weak a candidate may put fine detail out, as a share of it.",
    )
    training: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings of a training run, over the pilot's small ones; see `SMALL`.",
    )
    run_images: int | None = Field(
        default=None, ge=1, description="num_images of the run that it is made for, to compare."
    )

    @field_validator("thresholds")
    @classmethod
    def _ascend(cls, thresholds: tuple[float, ...]) -> tuple[float, ...]:
        if any(low >= high for low, high in itertools.pairwise(thresholds)):
            raise ValueError("thresholds must ascend")
        return thresholds

    @model_validator(mode="after")
    def _training_fits(self) -> PilotConfig:
        given = [name for name in _GIVEN_BY_THE_PILOT if name in self.training]
        if given:
            raise ValueError(f"training.{given[0]} is filled in by the pilot; leave it out")
        sigmas = self.train_config("x", "x").held_out.sigmas
        edges = self.edges or ()
        bands = [-1.0, *edges, float("inf")]
        if any(low >= high for low, high in itertools.pairwise(bands)):
            raise ValueError("edges must be levels and ascend")
        empty = [
            low
            for low, high in itertools.pairwise(bands)
            if not any(low <= sigma < high for sigma in sigmas)
        ]
        if empty:
            raise ValueError(f"no level of held_out.sigmas lies in the band from {max(*empty, 0)}")
        return self

    def train_config(self, name: str, policy_id: str) -> TrainConfig:
        """Return the run of one candidate."""
        given = {"name": name, "policy_id": policy_id, "batches": self.batches}
        return TrainConfig.model_validate(_over(SMALL, self.training) | given)

    def band_edges(self) -> tuple[float, ...]:
        """Return the edges, by default in the middle between held-out levels."""
        if self.edges is not None:
            return self.edges
        sigmas = sorted(self.train_config("x", "x").held_out.sigmas)
        return tuple((low * high) ** 0.5 for low, high in itertools.pairwise(sigmas))


def _over(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Merge settings; a network of another kind replaces the whole network."""
    merged = dict(base)
    for name, value in given.items():
        old = merged.get(name)
        known = isinstance(old, dict) and isinstance(value, dict) and name != "network"
        merged[name] = _over(old, value) if known else value  # type: ignore[arg-type]
    return merged
