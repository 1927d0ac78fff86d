"""Settings of generation and export."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ambient_omni.config import Frozen

_CHECKPOINT = (
    "Folder of a checkpoint or of an average, relative to the run's; none = the selected one."
)


class SampleConfig(Frozen):
    """How images are generated."""

    num_images: int = Field(default=36, ge=1, description="How many images.")
    num_steps: int = Field(default=18, ge=2, description="Levels of the sampler.")
    each_evaluation: bool = Field(
        default=False, description="Also draw a grid at every evaluation."
    )
    solver: Literal["heun", "euler", "dpm++2m"] = Field(
        default="heun", description="heun evaluates the network twice a step, the others once."
    )
    lowest: float | None = Field(
        default=None,
        gt=0,
        description="Where the sampler stops and answers the estimate of x_0; none = the lowest "
        "trained level. Truncated sampling is a higher one.",
    )
    highest: float | None = Field(
        default=None, gt=0, description="Where it begins; none = the highest trained level."
    )
    rho: float = Field(default=7.0, gt=0, description="Bends the levels towards the low ones.")
    guidance: float = Field(
        default=1.0, ge=0, description="Classifier-free guidance: 1 = none, 0 = no condition."
    )
    prompts: tuple[str, ...] = Field(
        default=(), description="Image i has prompt i modulo their number."
    )
    labels: tuple[str, ...] = Field(
        default=(), description="Image i has label i modulo their number; none = all in turn."
    )
    seed: int = 0

    @model_validator(mode="after")
    def _levels_descend(self) -> SampleConfig:
        if self.lowest is not None and self.highest is not None and self.lowest >= self.highest:
            raise ValueError(f"lowest {self.lowest} is not below highest {self.highest}")
        return self


class GenerateJob(Frozen):
    """What `generate` does."""

    run_id: str
    checkpoint: str | None = Field(default=None, description=_CHECKPOINT)
    out: Path = Field(description="Folder for the images.")
    format: Literal["folder", "tar"] = Field(
        default="folder", description="One PNG each, or WebDataset shards."
    )
    samples: SampleConfig = SampleConfig()
    prompts_file: Path | None = Field(
        default=None, description="A prompt per line, instead of samples.prompts."
    )
    batch_size: int = Field(default=64, ge=1, description="Images at once.")
    images_per_shard: int = Field(default=1000, ge=1, description="Of a tar.")

    @model_validator(mode="after")
    def _prompts_come_from_one_place(self) -> GenerateJob:
        if self.prompts_file is not None and self.samples.prompts:
            raise ValueError("give samples.prompts or prompts_file, not both")
        return self


class ExportJob(Frozen):
    """What `export` does."""

    run_id: str
    checkpoint: str | None = Field(default=None, description=_CHECKPOINT)
    out: Path = Field(description="Folder of the diffusers pipeline; must not exist or be empty.")
