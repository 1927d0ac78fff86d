"""What a run is made of: frozen values that are checked when they are built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ambient_omni.noise import usable
from ambient_omni.noise.levels import LogNormalPrior
from ambient_omni.noise.usable import Objective
from ambient_omni.transforms import Transform
from schemas.errors import BadInput

Config = TypeVar("Config", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkConfig(_Frozen):
    """A diffusers UNet2DModel that works on patches of pixels."""

    patch: int = Field(
        default=4, ge=1, description="Side of the square of pixels that is one position."
    )
    widths: tuple[int, ...] = Field(
        default=(64, 128), min_length=1, description="Channels per scale."
    )
    pixel_width: int = Field(
        default=16, ge=0, description="Channels of the branch at full resolution; 0 = none."
    )
    layers_per_block: int = Field(default=1, ge=1, description="Residual blocks per scale.")
    attention: bool = Field(default=True, description="Self-attention at the coarsest scale.")
    norm_groups: int = Field(default=16, ge=1, description="Groups of the group norm.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout in the residual blocks.")

    @model_validator(mode="after")
    def _norm_fits(self) -> NetworkConfig:
        odd = [width for width in self.widths if width % self.norm_groups]
        if odd:
            raise ValueError(f"widths {odd} are no multiples of norm_groups {self.norm_groups}")
        return self

    def require_fit(self, resolution: int) -> None:
        """Raise ValueError if images of `resolution` cannot be halved as often as needed."""
        unit = self.patch * 2 ** (len(self.widths) - 1)
        if resolution % unit:
            raise ValueError(
                f"resolution {resolution} is no multiple of {unit} (patch {self.patch}, "
                f"{len(self.widths)} scales)"
            )


class OptimizerConfig(_Frozen):
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


class EmaConfig(_Frozen):
    """Exponential moving average of the weights, the ones that are evaluated and sampled."""

    half_life_images: int = Field(default=4_000, ge=1)
    warmup_ratio: float = Field(
        default=0.05,
        gt=0,
        description="The half-life is at most this share of the images seen so far.",
    )


class HeldOutConfig(_Frozen):
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


class SampleConfig(_Frozen):
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


class TrainConfig(_Frozen):
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


class GenerateJob(_Frozen):
    """What `generate` does."""

    run_id: str
    out: Path = Field(description="Folder for the images.")
    samples: SampleConfig = SampleConfig(num_images=64)


class EvaluateJob(_Frozen):
    """What `evaluate` does."""

    run_id: str
    reference_set: str = "evaluation"


def load_config(path: Path, kind: type[Config]) -> Config:
    """Read a YAML or JSON file into a config.

    Raises:
        BadInput: the file is not there, is no mapping, or a setting is unknown or out of range.
    """
    try:
        content: Any = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"cannot read the config {path}: {_one_line(str(error))}") from error
    if not isinstance(content, dict):
        raise BadInput(f"the config {path} must be a mapping of settings to values")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "config"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise BadInput(f"{path}: {where}: {_one_line(first['msg'])}{more}") from error


def resolved(config: BaseModel) -> str:
    """Return a config with all its defaults as indented JSON."""
    return json.dumps(config.model_dump(mode="json"), indent=1, ensure_ascii=False)


def _one_line(text: str) -> str:
    return " ".join(text.split())
