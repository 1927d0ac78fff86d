"""Settings of the noise classifier; free of torch, so that recipes can name them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, RootModel, field_validator, model_validator

from ambient_omni.config import Frozen, load_config
from ambient_omni.damage import DamageKind
from ambient_omni.data.config import LatentConfig
from ambient_omni.data.transforms import Transform
from schemas.errors import BadInput
from schemas.ids import canonical_hash

Question = Literal["reference_against_pool", "clean_against_damage", "domain_against_foreign"]


class ClassifierNetworkConfig(Frozen):
    """Size of the network; see `classifier.network.NoiseClassifierNetwork`."""

    patch: int = Field(default=4, ge=1, description="Side of the patches of the small CNN.")
    widths: tuple[int, ...] = Field(
        default=(32, 64), min_length=1, description="Channels of the CNN per scale."
    )
    hidden: int = Field(default=128, ge=1, description="Width of the head.")
    dropout: float = Field(default=0.2, ge=0, lt=1)


class ControlConfig(Frozen):
    """The positive control: what is planted, and what must be found."""

    severities: dict[DamageKind, PositiveFloat] = Field(
        default={"gaussian_blur": 1.5, "jpeg": 85.0, "sensor_noise": 32.0},
        min_length=1,
        description="Kinds of damage planted in validation references, with their severity.",
    )
    worst: dict[DamageKind, PositiveFloat] = Field(
        default={"gaussian_blur": 3.0, "sensor_noise": 70.0},
        min_length=1,
        description="Heavy damage: what even this does not show is no matter of quality.",
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


class OrderConfig(Frozen):
    """Chains of ever worse copies of trusted images; see `classifier.severity`."""

    weight: float = Field(default=1.0, ge=0, description="Of the order's loss; 0: no chains.")
    num_chains: int = Field(default=1_000, ge=1, description="Chains planted per network.")
    chains_per_batch: int = Field(default=8, ge=1)
    ranges: dict[DamageKind, tuple[PositiveFloat, PositiveFloat]] = Field(
        default={
            "gaussian_blur": (0.3, 3.0),
            "motion_blur": (0.7, 14.0),
            "down_up": (1.15, 6.0),
            "jpeg": (5.0, 97.0),
            "sensor_noise": (2.0, 70.0),
        },
        min_length=1,
        description="Mildest and worst severity by kind of damage.",
    )
    weights: dict[DamageKind, Annotated[int, Field(ge=1)]] = Field(
        default={"jpeg": 2, "motion_blur": 2},
        description="How many chains a kind gets where the others get one: what is hardest to see.",
    )

    @field_validator("ranges")
    @classmethod
    def _ranges_rise(cls, ranges: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for kind, (mildest, worst) in ranges.items():
            if mildest >= worst:
                raise ValueError(f"{kind}: the mildest, {mildest:g}, is no milder than {worst:g}")
        return ranges


class StoppingConfig(Frozen):
    """When training ends: a share of the groups is kept aside and tells."""

    fraction: float = Field(
        default=0.1, ge=0, lt=0.5, description="Share of the groups kept aside; 0: never stop early"
    )
    num_checks: int = Field(default=20, ge=1, description="How often is looked, over all steps.")
    patience: int = Field(default=6, ge=1, description="Looks without a gain before it ends.")
    num_batches: int = Field(default=16, ge=1, description="Noised batches that are looked at.")


class GridConfig(Frozen):
    """Every image at the same levels; 4 levels x 2 noisings are the shortest that is of use."""

    kind: Literal["grid"] = "grid"
    num_levels: int | None = Field(
        default=None, ge=2, description="Levels, even in ln sigma; null: the classifier's own."
    )
    num_noises: int = Field(
        default=4, ge=2, multiple_of=2, description="Noisings per image and level, in ± pairs."
    )


class ExhaustiveConfig(Frozen):
    """The exhaustive search; the defaults are the published 2048 levels x 4 noisings."""

    kind: Literal["exhaustive"] = "exhaustive"
    num_levels: int = Field(default=2048, ge=2, description="Levels, even in ln sigma.")
    num_noises: int = Field(default=4, ge=1, description="Fresh noisings per level.")
    num_bins: int = Field(default=128, ge=2, description="Levels that are averaged into one.")

    @model_validator(mode="after")
    def _bins_hold_two(self) -> ExhaustiveConfig:
        if self.num_levels // self.num_bins * self.num_noises < 2:
            raise ValueError("a bin needs two noisings for its error: fewer bins, or more of both")
        return self


class SequentialConfig(Frozen):
    """Bisection: two noisings at a time, where the answer is least certain, until it is not."""

    kind: Literal["sequential"] = "sequential"
    max_evaluations: int = Field(default=8, ge=2, multiple_of=2)
    tolerance_octaves: float = Field(
        default=0.15, gt=0, description="Stop when the posterior's standard deviation is below."
    )
    tau: float = Field(default=0.45, gt=0, lt=0.5, description="Threshold that is looked for.")
    num_pilot_images: int = Field(
        default=64, ge=8, description="Images graded on a full grid first, for the prior."
    )


class HeadConfig(Frozen):
    """An amortised head: one evaluation of the clean image gives its whole curve.

    A few looks of the classifier itself then move the curve where they contradict it.
    """

    kind: Literal["head"] = "head"
    widths: tuple[int, ...] = Field(default=(32, 64), min_length=1, description="As the network's.")
    patch: int = Field(default=4, ge=1)
    hidden: int = Field(default=128, ge=1)
    num_steps: int = Field(default=2_000, ge=1)
    batch_size: int = Field(default=48, ge=2)
    levels_per_image: int = Field(default=4, ge=1, description="Questions to the classifier a step")
    learning_rate: float = Field(default=2e-3, gt=0)
    check_fraction: float = Field(
        default=0.25, gt=0, lt=1, description="Share of the groups that only check the head."
    )
    max_images: int = Field(default=8_192, ge=16, description="Pool images a fold learns from.")
    num_copies: int = Field(
        default=4_000,
        ge=0,
        description="Damaged copies of them that it learns from as well: they cost no image.",
    )
    num_looks: int = Field(
        default=3,
        ge=0,
        le=16,
        description="Pairs of noisings that the classifier is asked after the head, two "
        "evaluations each; 0: the head alone.",
    )
    min_check_images: int = Field(default=16, ge=1)
    max_check_images: int = Field(default=64, ge=8)
    check: ExhaustiveConfig = ExhaustiveConfig(num_levels=256, num_noises=4, num_bins=64)
    max_median_octaves: float = Field(
        default=0.25, gt=0, description="The head is refused where it is further off than this."
    )


_ANNOTATORS = (GridConfig, ExhaustiveConfig, SequentialConfig, HeadConfig)
AnnotatorConfig = Annotated[
    GridConfig | ExhaustiveConfig | SequentialConfig | HeadConfig, Field(discriminator="kind")
]


class _AnnotatorFile(RootModel[AnnotatorConfig]):
    pass


def read_annotator(named: str) -> AnnotatorConfig:
    """Return an annotator by its kind, with its defaults, or from a YAML file of its settings.

    Raises:
        BadInput: neither such a kind nor such a file; or a setting is wrong, the message names it.
    """
    kinds = {kind.model_fields["kind"].default: kind for kind in _ANNOTATORS}
    if named in kinds:
        return kinds[named]()
    if not Path(named).is_file():
        raise BadInput(f"annotator {named!r}: name one of {', '.join(kinds)}, or a YAML file")
    return load_config(Path(named), _AnnotatorFile).root


def annotator_id(config: AnnotatorConfig) -> str:
    """Return the name of an annotator: its kind and a hash of its settings."""
    return f"{config.kind}-{canonical_hash(config.model_dump(mode='json'))}"


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
    order: OrderConfig = OrderConfig()
    stopping: StoppingConfig = StoppingConfig()
    sigma_low: float = Field(default=0.02, gt=0, description="Lowest level of the curves.")
    sigma_high: float = Field(default=10.0, gt=0, description="Highest level of the curves.")
    num_levels: int = Field(default=18, ge=3, description="Levels, even steps in ln sigma.")
    num_noises: int = Field(
        default=4, ge=2, multiple_of=2, description="Noisings per image and level, in ± pairs."
    )
    max_graded_images: int = Field(
        default=256,
        ge=8,
        description="Pool images a fold is calibrated, and it and its grids are measured on.",
    )
    control: ControlConfig = ControlConfig()
    seed: int = 0

    @model_validator(mode="after")
    def _levels_ascend(self) -> ClassifierConfig:
        if self.sigma_high <= self.sigma_low:
            raise ValueError("sigma_high must be above sigma_low")
        return self

    @property
    def own_grid(self) -> GridConfig:
        """How the classifier is asked where nothing else is said: at its own levels."""
        return GridConfig(num_noises=self.num_noises)

    @property
    def sigmas(self) -> NDArray[np.float64]:
        """The (L,) levels of the curves."""
        return np.geomspace(self.sigma_low, self.sigma_high, self.num_levels)


class TrainClassifierJob(Frozen):
    """What `python -m ambient_omni train-classifier` does."""

    classifier: ClassifierConfig = ClassifierConfig()
    pool_batches: tuple[str, ...] = Field(min_length=1, description="Ingest batches of the pool.")
    reference_set: str = Field(default="trusted", description="The positives.")
    question: Question = Field(
        default="reference_against_pool",
        description="reference_against_pool: nothing is known of the pool; clean_against_damage: "
        "the pool is known to be bad; domain_against_foreign: the pool is another domain, and "
        "damage is not the matter.",
    )
    transform: Transform = Transform()
    latents: LatentConfig | None = Field(
        default=None,
        description="The autoencoder in whose latents the levels are; null: pixels. The batches "
        "need packs of both: damage is planted in pixels and encoded.",
    )
