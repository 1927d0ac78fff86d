"""What a training run is made of."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ambient_omni.config import Frozen
from ambient_omni.data.transforms import Transform
from ambient_omni.generation.config import SampleConfig
from ambient_omni.models.config import NetworkConfig
from ambient_omni.noise import usable
from ambient_omni.noise.levels import LogNormalPrior
from ambient_omni.noise.usable import Objective


class OptimizerConfig(Frozen):
    """AdamW and its learning-rate schedule, in images so that the batch size can change."""

    learning_rate: float = Field(default=2e-3, gt=0, description="Peak learning rate.")
    betas: tuple[float, float] = (0.9, 0.99)
    epsilon: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_images: int = Field(default=1_000, ge=0, description="Images of linear warm-up.")
    decay: Literal["constant", "cosine", "inverse_sqrt"] = Field(
        default="cosine",
        description="cosine: to 0 at the end; inverse_sqrt: 1/sqrt(images) after decay_images.",
    )
    decay_images: int = Field(default=50_000, ge=1, description="Where inverse_sqrt begins.")
    gradient_clip: float = Field(default=1.0, gt=0, description="Largest global gradient norm.")


class EmaConfig(Frozen):
    """Exponential moving average of the weights, the ones that are evaluated and sampled."""

    half_life_images: int = Field(default=4_000, ge=1)
    warmup_ratio: float = Field(
        default=0.05,
        gt=0,
        description="The half-life is at most this share of the images seen so far.",
    )


class HeldOutConfig(Frozen):
    """Denoising loss on images that are never trained on."""

    reference_set: str = Field(default="validation", description="Selects the checkpoint.")
    sigmas: tuple[float, ...] = Field(
        default=(0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4), min_length=1, description="Noise levels."
    )
    num_noises: int = Field(
        default=2, ge=1, description="Noisings per image and level, in ± pairs."
    )
    max_images: int = Field(default=256, ge=1, description="Images used, chosen by their content.")
    seed: int = 0

    @model_validator(mode="after")
    def _levels_are_positive(self) -> HeldOutConfig:
        if min(self.sigmas) <= 0 or len(set(self.sigmas)) < len(self.sigmas):
            raise ValueError("held_out.sigmas must be positive and distinct")
        return self


class TrainConfig(Frozen):
    """One training run. Everything but `name` decides the run's id."""

    name: str = Field(default="run", description="What people call it.")
    policy_id: str = Field(description="The annotation policy that the run obeys.")
    batches: tuple[str, ...] = Field(min_length=1, description="Ingest batches to train on.")
    transform: Transform = Transform()
    network: NetworkConfig = NetworkConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    held_out: HeldOutConfig = HeldOutConfig()
    samples: SampleConfig = SampleConfig()
    prior: LogNormalPrior = LogNormalPrior()
    objective: Objective = Field(
        default="gated", description="gated, or ambient: hide x_0 behind σ_min."
    )
    max_amplification: float = Field(
        default=4.0, gt=1, description="Ambient only: bound a on σ²/(σ²-σ_min²)."
    )
    conditional: bool = Field(
        default=False, description="Condition on samples.label; all need one."
    )
    horizontal_flip: bool = Field(default=True, description="Mirror half of the images drawn.")
    batch_size: int = Field(default=32, ge=1, description="Images per step, over all processes.")
    num_images: int = Field(default=60_000, ge=1, description="Budget: images drawn in all.")
    evaluate_every_images: int = Field(
        default=10_000, ge=1, description="Held-out loss and checkpoint."
    )
    log_every_images: int = Field(default=1_000, ge=1, description="A line in metrics.jsonl.")
    keep_checkpoints: int = Field(default=2, ge=1, description="Newest ones kept beside the best.")
    max_nonfinite_steps: int = Field(
        default=10, ge=0, description="Skipped steps before giving up."
    )
    precision: Literal["no", "bf16", "fp16"] = Field(default="no", description="Mixed precision.")
    tensorboard: bool = Field(default=False, description="Also write tensorboard scalars.")
    seed: int = 0

    @model_validator(mode="after")
    def _network_fits_images(self) -> TrainConfig:
        self.network.require_fit(self.transform.resolution)
        return self

    @property
    def kappa(self) -> float:
        """Margin above sigma_min."""
        return usable.kappa(self.objective, self.max_amplification)

    @property
    def num_steps(self) -> int:
        """Steps that the budget makes, at least one."""
        return -(-self.num_images // self.batch_size)


class EvaluateJob(Frozen):
    """What `evaluate` does."""

    run_id: str
    reference_set: str = "evaluation"
