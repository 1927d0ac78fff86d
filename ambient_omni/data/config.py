"""Settings of how samples are drawn and how they reach the trainer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ambient_omni.config import Frozen

ClassBalance = Literal["none", "pool", "uniform"]


class SamplingConfig(Frozen):
    """Which of the samples that a level allows is drawn. By default each is equally likely."""

    soft_floors: bool = Field(
        default=False,
        description="Let a sample in gradually around its sigma_min, as its slope says.",
    )
    class_balance: ClassBalance = Field(
        default="none",
        description="At every level, none: classes as the annotations leave them; pool: each class "
        "as often as among all training samples; uniform: every class equally often.",
    )
    source_weights: dict[str, float] = Field(
        default_factory=dict,
        description="How often a sample of a source is drawn against one of weight 1, by source.",
    )

    @model_validator(mode="after")
    def _weights_are_positive(self) -> SamplingConfig:
        wrong = {name: weight for name, weight in self.source_weights.items() if not weight > 0}
        if wrong:
            raise ValueError(f"source_weights must be positive, got {wrong}: leave the batch out")
        if self.soft_floors and self.class_balance != "none":
            # Cells per class would be as many times larger as there are classes.
            raise ValueError(
                "soft_floors go with source_weights, not with class_balance: choose one"
            )
        return self


class LoaderConfig(Frozen):
    """How batches are read. No setting but `kind` and `buffer_samples` changes what is drawn."""

    kind: Literal["pack", "streaming"] = Field(
        default="pack",
        description="pack: exact random access to mapped packs; streaming: chunk by chunk, for "
        "pools that are larger than the local disk.",
    )
    num_workers: int = Field(
        default=0, ge=0, description="Processes that prepare batches; 0 = the trainer's own."
    )
    prefetch: int = Field(default=2, ge=1, description="Batches prepared ahead, per worker.")
    buffer_samples: int = Field(
        default=65_536,
        ge=1,
        description="Streaming: samples that each process draws from at a time, in whole chunks.",
    )
    max_missing_samples: int = Field(
        default=0,
        ge=0,
        description="Samples that may vanish or change under a run before it stops.",
    )


class LatentConfig(Frozen):
    """Which autoencoder makes the latents."""

    vae: str = Field(
        description="Folder or hub id of an AutoencoderKL, or of a pipeline that has one in vae/."
    )
    revision: str | None = Field(default=None, description="Of a hub id: branch, tag or commit.")
