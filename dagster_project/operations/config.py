"""Settings of a root's daily life: the recipe's `operations`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Role = Literal["pool", "reference", "evaluation"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Watch(_Frozen):
    """A folder that others drop images, tar shards or URL lists into."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Batches are called NAME-00000, NAME-00001."
    )
    path: str = Field(
        description="The folder, or an object store's (s3://bucket/inbox); looked through at any "
        "depth, hidden names are not."
    )
    role: Role = "pool"
    settle_seconds: float = Field(
        default=60.0, ge=0, description="A file is taken when it is this old: uploads take time."
    )
    until: Literal["ingest", "score", "annotate"] = Field(
        default="annotate", description="How far a new batch is taken by itself."
    )
    max_files_per_batch: int = Field(
        default=50_000, ge=1, description="Images or tar shards of one batch; a list is a batch."
    )


class DriftConfig(_Frozen):
    """When a batch looks too different from the last one that was accepted."""

    max_psi: float = Field(
        default=0.25, gt=0, description="Largest population stability index, above chance."
    )
    num_bins: int = Field(default=10, ge=2, description="Quantile bins of the accepted batch.")
    min_images: int = Field(default=30, ge=2, description="With fewer, nothing can be said.")
    columns: tuple[str, ...] = Field(
        default=("sharpness", "noise_std", "blockiness", "brightness", "entropy"),
        description="Scores that are compared, beside the levels of the main arm.",
    )
    hold: bool = Field(
        default=False,
        description="Hold a batch that drifts back from all that follows; else only say so.",
    )


class ClassifierLife(_Frozen):
    """When a candidate takes a promoted noise classifier's place."""

    promotion: Literal["person", "rule"] = Field(
        default="person", description="Who promotes a candidate that beats the promoted one."
    )
    min_gain: float = Field(
        default=0.0,
        ge=0,
        description="Mean total variation over levels that a candidate must gain on the present "
        "pool, beyond two standard errors.",
    )
    max_images: int = Field(
        default=512, ge=8, description="Images of the pool that both are compared on."
    )


class AgreementConfig(_Frozen):
    """How the curves of a batch are held against the exhaustive search, on a few of its images."""

    num_images: int = Field(default=16, ge=1, description="Drawn by their content.")
    num_levels: int = Field(default=128, ge=4, description="Of the search, with 4 noisings each.")
    max_median_octaves: float = Field(
        default=0.5, gt=0, description="Largest median distance of the levels."
    )
    block: bool = Field(
        default=False, description="Fail the batch's run where it is larger; else only say so."
    )


class RetrainConfig(_Frozen):
    """When the annotated pool has grown enough for a new model."""

    growth_fraction: float = Field(
        default=0.2, gt=0, description="Share of the images of the arm's last finished run."
    )
    launch: bool = Field(default=False, description="Launch the training; else only propose it.")


class LaunchConfig(_Frozen):
    """How the trainer is started as a process of its own."""

    kind: Literal["process", "torchrun", "template"] = "process"
    num_processes: int = Field(
        default=1, ge=1, description="Of torchrun, on the one machine that trains."
    )
    template: tuple[str, ...] = Field(
        default=(),
        description="Of a cluster: words of a command that returns when training ends, for "
        "example [srun, --gres=gpu:4, '{command}']; '{command}' stands for the words of the "
        "trainer's own command.",
    )
    stop_seconds: float = Field(
        default=60.0, gt=0, description="How long a trainer may take to save when it is stopped."
    )
    max_retries: int = Field(default=1, ge=0, description="After a failure, from the checkpoint.")

    @model_validator(mode="after")
    def _template_holds_the_command(self) -> "LaunchConfig":
        if self.kind == "template" and "{command}" not in self.template:
            raise ValueError("launch.template needs the word {command}")
        return self


class NotifyConfig(_Frozen):
    """Who hears of failures and proposals; `<root>/dagster/notices.jsonl` always does."""

    webhook_variable: str = Field(
        default="AMBIENT_OMNI_WEBHOOK",
        description="Environment variable with a URL that notices are posted to as JSON. A URL "
        "of this kind is a secret: it stands in no file and no log.",
    )
    timeout_seconds: float = Field(default=5.0, gt=0)
    extra: tuple[str, ...] = Field(
        default=(), description="More notifiers, as package.module:name of a callable of a Notice."
    )


class OperationsConfig(_Frozen):
    """What happens by itself.

    Attributes:
        running: sensors and schedules run as soon as the daemon does; else a person turns each
            on in the web page.
        watch: folders that bring new batches.
        rescore_cron: when what is new or stale is computed.
        timezone: of that schedule.
        drift: what a batch is compared by.
        classifier: promotion of noise classifiers.
        agreement: of curves with the exhaustive search.
        retrain: when a new model is due.
        launch: how training is started from the web page and by `ambient-omni train`.
        notify: who is told.
        max_concurrent_runs: runs of the web page at once; the others wait in a queue.
    """

    running: bool = False
    watch: tuple[Watch, ...] = ()
    rescore_cron: str = "0 3 * * *"
    timezone: str = "UTC"
    drift: DriftConfig = DriftConfig()
    classifier: ClassifierLife = ClassifierLife()
    agreement: AgreementConfig = AgreementConfig()
    retrain: RetrainConfig = RetrainConfig()
    launch: LaunchConfig = LaunchConfig()
    notify: NotifyConfig = NotifyConfig()
    max_concurrent_runs: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "OperationsConfig":
        names = [watch.name for watch in self.watch]
        if len(set(names)) < len(names):
            raise ValueError(f"operations.watch: names {names} must be distinct")
        return self
