"""Settings of generation."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from ambient_omni.config import Frozen


class SampleConfig(Frozen):
    """How images are generated (deterministic Heun, EDM)."""

    num_images: int = Field(default=36, ge=1, description="Images of a grid.")
    num_steps: int = Field(default=18, ge=2, description="Levels of the sampler.")
    each_evaluation: bool = Field(
        default=False, description="Also draw a grid at every evaluation."
    )
    lowest: float = Field(default=0.002, gt=0)
    highest: float = Field(default=80.0, gt=0)
    rho: float = Field(default=7.0, gt=0)
    seed: int = 0


class GenerateJob(Frozen):
    """What `generate` does."""

    run_id: str
    out: Path = Field(description="Folder for the images.")
    samples: SampleConfig = SampleConfig(num_images=64)
