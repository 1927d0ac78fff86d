"""What a report is about."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from ambient_omni.data.transforms import Transform


class ReportInputs(BaseModel):
    """Names the runs, tables and files that one report puts together. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arms: dict[str, str] = Field(
        description="Arm name to run_id, in the order of showing, e.g. only_reference, annotated."
    )
    main_policy_id: str = Field(description="The policy whose levels are shown.")
    classifier_id: str | None = Field(
        default=None, description="The noise classifier to show; none leaves its section out."
    )
    pool_batches: tuple[str, ...] = Field(min_length=1, description="Batches of the pool.")
    reference_batch: str | None = Field(default=None, description="Batch of the trusted images.")
    evaluation_set: str = Field(
        default="evaluation",
        description="Reference set whose held-out losses decide which arm is best.",
    )
    baseline_arm: str = Field(
        default="only_reference", description="Arm that the others' losses are drawn against."
    )
    transform: Transform = Field(
        default_factory=lambda: Transform.model_validate({}), description="Transform of the pack."
    )
    truth: Path | None = Field(
        default=None,
        description="Parquet with sample_id, kind, severity, source: what was really done to the "
        "images. Only the report reads it.",
    )
    title: str = Field(default="Ambient Diffusion Omni: report", description="Title of the page.")
    output: Path | None = Field(
        default=None, description="HTML file to write; by default <root>/reports/report.html."
    )
