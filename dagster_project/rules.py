"""Rules of a recipe's arms: what a person writes, before the graph fills in what it knows."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ambient_omni.config import Frozen
from ambient_omni.windows.config import CropClassifierConfig, ReceptiveFieldConfig
from pipelines.pilot.config import SMALL


class ClassifierRule(Frozen):
    """An arm whose levels come from the recipe's noise classifier."""

    kind: Literal["classifier_threshold"] = "classifier_threshold"
    tau: float = Field(
        default=0.45, gt=0, lt=1, description="P(trusted) that counts as indistinguishable."
    )
    smoothing_octaves: float = Field(
        default=0.25, ge=0, description="Average of a curve over neighbouring levels."
    )
    decay_exponent: float | None = Field(
        default=2.0, gt=0, description="See `policies.ClassifierThreshold`."
    )
    soft: bool = Field(
        default=False,
        description="Train with soft floors: a sample comes in gradually, as its slope says.",
    )
    good_share: Annotated[float, Field(ge=0, le=1)] | Literal["measured"] = Field(
        default=0.0,
        description="Share of the pool that is as good as the reference: tau is corrected so that "
        "it means for the rest what it says. measured: the classifier's own estimate.",
    )


class FixedRule(Frozen):
    """An arm with one level per source; "*" is every other source, null is never."""

    kind: Literal["fixed_per_source"]
    levels: dict[str, float | None] = Field(min_length=1)


class RankRule(Frozen):
    """An arm that trusts the best share by one score and gives the rest one level."""

    kind: Literal["quality_rank"]
    column: str = Field(description="Score of the recipe's pack; greater is better.")
    good_fraction: float = Field(ge=0, le=1)
    sigma_min_rest: float | None = Field(ge=0)


class SampleSizeRule(Frozen):
    """An arm that weighs bias against variance by the numbers of images; frozen on the pool."""

    kind: Literal["sample_size"]
    constant: float = Field(
        gt=0, description="L; it has no default: see docs/decisions/0016-policies-that-weigh.md."
    )
    smoothing_octaves: float = Field(
        default=0.25, ge=0, description="Average of a curve over neighbouring levels."
    )


class SourceRule(Frozen):
    """An arm with one level per source, read off the classifier's levels there; frozen."""

    kind: Literal["classifier_per_source"]
    quantile: float = Field(
        default=0.9, gt=0, le=1, description="Share of a source's images whose level is passed."
    )
    threshold: ClassifierRule = Field(
        default=ClassifierRule(),
        description="The rule of each image's own level.",
    )

    @model_validator(mode="after")
    def _threshold_is_hard(self) -> "SourceRule":
        if self.threshold.soft:
            raise ValueError("a source's level is a hard floor: leave threshold.soft out")
        return self


class PilotRule(Frozen):
    """An arm whose thresholds are set by pilot trainings; frozen when they were run first."""

    kind: Literal["pilot_calibrated"]
    thresholds: tuple[float, ...] = Field(
        default=(0.0, 0.3, 0.45), min_length=1, description="P(trusted) to try, a training each."
    )
    edges: tuple[float, ...] | None = Field(
        default=None, description="Levels that part the bands; null: one per held-out level."
    )
    detail_tolerance: float = Field(default=0.1, ge=0, description="See `PilotConfig`.")
    num_images: int = Field(
        default=int(SMALL["num_images"]),
        ge=1,
        description="Of each training. The run's own number is best: with fewer passes the "
        "references look better than they will.",
    )
    network: dict[str, Any] = Field(
        default=SMALL["network"], description="Of the pilots; a smaller one than the run's."
    )


class WindowRule(Frozen):
    """An arm for a foreign pool: never above, but below the level that its crops allow."""

    kind: Literal["crop_window"]
    floor: FixedRule | ClassifierRule = Field(
        default=FixedRule(kind="fixed_per_source", levels={"*": None}),
        discriminator="kind",
        description="The rule of sigma_min.",
    )
    epsilon: float = Field(
        default=0.05, ge=0, lt=0.5, description="Crops pass where mean P(in domain) > 1/2 - ε."
    )
    crops: CropClassifierConfig = CropClassifierConfig()
    receptive_field: ReceptiveFieldConfig = ReceptiveFieldConfig()

    @model_validator(mode="after")
    def _floor_is_hard(self) -> "WindowRule":
        if isinstance(self.floor, ClassifierRule) and self.floor.soft:
            raise ValueError("a sample with a window keeps a hard floor: leave floor.soft out")
        return self


Rule = Annotated[
    ClassifierRule | FixedRule | RankRule | SampleSizeRule | SourceRule | PilotRule | WindowRule,
    Field(discriminator="kind"),
]
