"""What a training run is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from ambient_omni.config import Frozen
from ambient_omni.data.config import LatentConfig, LoaderConfig, SamplingConfig
from ambient_omni.data.transforms import Transform
from ambient_omni.generation.config import SampleConfig
from ambient_omni.models.config import (
    ConditionConfig,
    LossWeightConfig,
    NetworkConfig,
    ParameterisationConfig,
    PatchedUNetConfig,
    usual_prior,
)
from ambient_omni.models.pretrained_config import PretrainedConfig
from ambient_omni.noise import usable
from ambient_omni.noise.priors import LogNormalPrior, Prior
from ambient_omni.noise.usable import Objective
from ambient_omni.training import posthoc
from schemas.errors import BadInput


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


class PowerEmaConfig(Frozen):
    """Power-function averages and their snapshots (EDM2, section 3). No width: none are kept.

    From the snapshots of two widths others can be had afterwards, at the time of any snapshot:
    `python -m ambient_omni average`. The more snapshots, the wider the range.
    """

    sigma_rels: tuple[float, ...] = Field(
        default=(), description="Relative widths that are tracked; EDM2 tracks 0.05 and 0.1."
    )
    snapshot_every_images: int = Field(
        default=10_000, ge=1, description="Images between snapshots; all are kept."
    )
    snapshot_precision: Literal["float16", "float32"] = Field(
        default="float32",
        description="How snapshots are stored. EDM2 stores float16, which halves them and keeps "
        "three digits of a weight.",
    )

    @model_validator(mode="after")
    def _widths_are_possible(self) -> PowerEmaConfig:
        for sigma_rel in self.sigma_rels:
            posthoc.gamma_of_sigma_rel(sigma_rel)
        if len(set(self.sigma_rels)) < len(self.sigma_rels):
            raise ValueError("power_ema.sigma_rels must be distinct")
        return self


class HeldOutConfig(Frozen):
    """Denoising loss on images that are never trained on."""

    reference_set: str = Field(default="validation", description="Selects the checkpoint.")
    sigmas: tuple[float, ...] = Field(
        default=(0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4),
        min_length=1,
        description="Noise levels; the checkpoint is chosen by those that the prior draws.",
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
    """One training run. What is learned decides the run's id; how it is run does not."""

    name: str = Field(default="run", description="What people call it.")
    policy_id: str = Field(description="The annotation policy that the run obeys.")
    batches: tuple[str, ...] = Field(min_length=1, description="Ingest batches to train on.")
    table_versions: dict[str, int] = Field(
        default={},
        description="Train on the tables as they were at these versions; those that are left out, "
        "as they are when the run begins.",
    )
    transform: Transform = Transform()
    latents: LatentConfig | None = Field(
        default=None, description="Train on latents of an autoencoder; none = on pixels."
    )
    init_from: PretrainedConfig | None = Field(
        default=None,
        description="Fine-tune a pipeline of diffusers; it brings network, parameterisation, "
        "latents and condition. None = begin with a new network.",
    )
    network: NetworkConfig = PatchedUNetConfig()
    condition: ConditionConfig = ConditionConfig()
    parameterisation: ParameterisationConfig = ParameterisationConfig()
    loss_weight: LossWeightConfig = LossWeightConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    power_ema: PowerEmaConfig = PowerEmaConfig()
    held_out: HeldOutConfig = HeldOutConfig()
    samples: SampleConfig = SampleConfig()
    prior: Prior = Field(
        default=LogNormalPrior(),
        description="Distribution of levels; left out, that which is usual for the "
        "parameterisation.",
    )
    objective: Objective = Field(
        default="gated", description="gated, or ambient: hide x_0 behind σ_min."
    )
    max_amplification: float = Field(
        default=4.0, gt=1, description="Ambient only: bound a on σ²/(σ²-σ_min²)."
    )
    loader: LoaderConfig = LoaderConfig()
    sampling: SamplingConfig = SamplingConfig()
    horizontal_flip: bool | None = Field(
        default=None,
        description="Mirror half of the images drawn; none: yes for pixels, no for latents, which "
        "cannot be mirrored.",
    )
    batch_size: int = Field(default=32, ge=1, description="Images per step, over all processes.")
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Images that a process takes at once, gradients accumulated over the rest of "
        "its share; none = all of its share.",
    )
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
    compile: bool = Field(default=False, description="Compile the network with torch.compile.")
    compile_backend: str = Field(default="inductor", description="Of torch.compile.")
    distribution: Literal["ddp", "fsdp"] = Field(
        default="ddp",
        description="Of several processes: ddp, each holds the weights; fsdp, they share them.",
    )
    deterministic: bool = Field(
        default=False,
        description="Only GPU kernels whose results repeat to the bit; on a CPU they always do.",
    )
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        default=(), description="Who gets the metrics beside metrics.jsonl."
    )
    tracker_project: str = Field(default="ambient-omni", description="The trackers' project.")
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _old_names(cls, values: Any) -> Any:
        """Read `tensorboard` and `conditional`, which `trackers` and `condition` took over."""
        if not isinstance(values, Mapping):
            return values
        new = dict(values)
        if new.pop("tensorboard", False):
            new.setdefault("trackers", ("tensorboard",))
        if new.pop("conditional", False):
            # Those runs dropped no condition.
            new.setdefault("condition", {"kind": "label", "dropout": 0.0})
        return new

    @model_validator(mode="before")
    @classmethod
    def _usual_prior(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "prior" in values or "parameterisation" not in values:
            return values
        try:
            stated = ParameterisationConfig.model_validate(values["parameterisation"])
        except ValidationError:
            return values  # the field itself will say what is wrong
        return {**values, "prior": usual_prior(stated)}

    @model_validator(mode="after")
    def _batches_are_distinct(self) -> TrainConfig:
        if len(set(self.batches)) < len(self.batches):
            raise ValueError(f"batches must be distinct, got {', '.join(self.batches)}")
        return self

    @model_validator(mode="after")
    def _network_fits_images(self) -> TrainConfig:
        # With latents the autoencoder decides, and the network says so when it is built.
        if self.latents is None and self.init_from is None:
            self.network.require_fit(self.transform.resolution)
        return self

    @model_validator(mode="after")
    def _ways_to_run_fit(self) -> TrainConfig:
        if self.distribution == "fsdp" and self.precision == "fp16":
            raise ValueError("distribution fsdp does not train in fp16: use bf16")
        if self.distribution == "fsdp" and self.compile:
            raise ValueError("distribution fsdp and compile do not go together yet: choose one")
        if self.batch_size % (self.micro_batch_size or 1):
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )
        return self

    @property
    def kappa(self) -> float:
        """Margin above sigma_min."""
        return usable.kappa(self.objective, self.max_amplification)

    @property
    def conditional(self) -> bool:
        """Whether the denoiser is told class labels."""
        return self.condition.kind == "label"

    @property
    def condition_dropout(self) -> float:
        """Share of the images that are trained without their condition."""
        return 0.0 if self.condition.kind == "none" else self.condition.dropout

    def require_guidable(self, samples: SampleConfig) -> None:
        """Check that samples are guided away only from what the denoiser learned.

        Raises:
            BadInput: guidance is asked for, and the denoiser never learns without its condition,
                as pipelines that are fine-tuned did before.
        """
        told_always = self.condition.kind != "none" and self.condition.dropout == 0
        if samples.guidance != 1 and told_always and self.init_from is None:
            raise BadInput(
                "samples.guidance needs a model that also learns without its condition, and this "
                "one has condition.dropout 0: set that above 0, or leave guidance out"
            )

    @property
    def num_steps(self) -> int:
        """Steps that the budget makes, at least one."""
        return -(-self.num_images // self.batch_size)

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide what is learned, as plain values.

        The others may change between a stop and the resume: names, logs, how batches reach the
        step, and how many images a process takes at once.
        """
        return self.model_dump(mode="json", exclude=_HOW_IT_RUNS)


# A field that stands here must not change what is learned by more than rounding.
_HOW_IT_RUNS: dict[str, Any] = {
    "name": True,
    # What lies in the tables at these versions counts, not their numbers.
    "table_versions": True,
    "loader": {"num_workers": True, "prefetch": True, "max_missing_samples": True},
    "micro_batch_size": True,
    "log_every_images": True,
    "keep_checkpoints": True,
    "max_nonfinite_steps": True,
    "compile": True,
    "compile_backend": True,
    "distribution": True,
    "deterministic": True,
    "trackers": True,
    "tracker_project": True,
}


class EvaluateJob(Frozen):
    """What `evaluate` does."""

    run_id: str
    reference_set: str = "evaluation"
    checkpoint: str | None = Field(
        default=None,
        description="Folder of a checkpoint or of an average, relative to the run's; none = the "
        "selected one, whose loss is kept with the run.",
    )
