"""What a cell of the study is, which form it is computed in, and what names its result."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ambient_omni.classifier.config import ClassifierConfig
from ambient_omni.config import Frozen
from ambient_omni.generation.config import SampleConfig
from benchmarks.evidence.images import DATA_VERSION, MIX, MIXED, DataSet
from benchmarks.evidence.training import TrainingSettings
from schemas.ids import canonical_hash

Arm = Literal[
    "only_reference",
    "keep_everything",
    "best_half",
    "fixed_level",
    "quality_rank",
    "classifier_hard",
    "classifier_soft",
    "classifier_strict",
    "one_level",
    "sample_size",
    "pilot",
    "ambient",
    "windows",
    "filter_by_level",
    "filter_oracle",
    "all_clean",
    # What the pilot tries beside the first two.
    "above_0.3",
    "above_0.45",
]
"""Ways to train. See `arms`."""

Stage = Literal["curves", "windows", "train", "measure", "nearest"]

VERSIONS: dict[Stage, int] = {
    "curves": 3, "windows": 1, "train": 1, "measure": 2, "nearest": 1,
}  # fmt: skip
"""Raise one whenever its stage computes something else: its results, and all that rest on them,
are computed anew."""

_ARM_VERSIONS: dict[Arm, int] = {"pilot": 2}
"""The same for how an arm gives levels; from 2 on."""

NO_DAMAGE = "none"
FOREIGN = "foreign"
_WITHOUT_DAMAGE: frozenset[Arm] = frozenset({"only_reference", "all_clean"})
_BY_CURVE: frozenset[Arm] = frozenset(
    {"classifier_hard", "classifier_soft", "classifier_strict", "one_level", "sample_size", "pilot",
     "ambient", "above_0.3", "above_0.45", "filter_by_level"}
)  # fmt: skip

PILOTS: tuple[Arm, ...] = ("keep_everything", "above_0.3", "above_0.45", "only_reference")
"""From the laxest to the strictest, as `pipelines.pilot` has them."""


class Problem(Frozen):
    """Images to learn from: everything that does not depend on the arm."""

    data: DataSet
    damage: str = Field(description="a kind of `images.one_damaged`, `none` or `foreign`")
    severity: float = Field(ge=0)
    reference_share: float = Field(gt=0, lt=1, description="share of the images that are clean")
    num_images: int = Field(default=500, ge=20, description="references and pool together")
    seed: int = Field(ge=0, description="of the images drawn, the weights and all training noise")

    @property
    def name(self) -> str:
        """For people and for --only."""
        whole = self.damage in (NO_DAMAGE, FOREIGN, MIXED)
        kind = self.damage if whole else f"{self.damage}={self.severity:g}"
        images = f"{self.num_reference}of{self.num_images}"
        return f"{self.data}/{kind}/{images}/seed={self.seed}"

    @property
    def num_reference(self) -> int:
        """How many of the images are clean and trusted."""
        return round(self.reference_share * self.num_images)


class Cell(Frozen):
    """One training, and its measures."""

    problem: Problem
    arm: Arm

    @classmethod
    def of(cls, problem: Problem, arm: Arm) -> Cell:
        """Make one; those that see no damaged image are one for all damages."""
        if arm in _WITHOUT_DAMAGE:
            problem = problem.model_copy(update={"damage": NO_DAMAGE, "severity": 0.0})
        return cls(problem=problem, arm=arm)

    @property
    def name(self) -> str:
        """For people and for --only."""
        return f"{self.problem.name}/{self.arm}"


class Form(Frozen):
    """How large the study is: what all cells share."""

    name: Literal["full", "quick", "long", "test"]
    num_validation: int = Field(default=256, ge=8, description="Images that choose checkpoints.")
    num_test: int = Field(default=1_000, ge=8, description="Images of the held-out loss.")
    test_sigmas: tuple[float, ...] = (0.03, 0.05, 0.09, 0.15, 0.25, 0.4, 0.7, 1.2, 2.0, 4.0)
    training: TrainingSettings = TrainingSettings()
    classifier: ClassifierConfig
    samples: SampleConfig
    feature_side: int = Field(default=128, ge=32, description="What Lite0 sees, pixels.")
    num_crops: int = Field(default=30_000, ge=64, description="Of the crop classifier.")
    fixed_level: float = Field(default=1.0, gt=0, description="Of the fixed level and of the rest.")
    pilots: Form | None = Field(
        default=None, description="Whose trainings are this form's pilots; None: its own."
    )


class Task(Frozen):
    """One thing to compute: a classifier and its curves, a training, its measures, its copies."""

    stage: Stage
    cell: Cell

    @classmethod
    def of(cls, stage: Stage, cell: Cell) -> Task:
        """Make one; curves and windows are the problem's, whatever the arm."""
        if stage in ("curves", "windows"):
            arm: Arm = "classifier_hard" if stage == "curves" else "windows"
            cell = Cell(problem=cell.problem, arm=arm)
        return cls(stage=stage, cell=cell)

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.stage} {self.cell.name}"

    def needs(self) -> tuple[Task, ...]:
        """Return what has to be there first."""
        cell = self.cell
        if self.stage in ("curves", "windows"):
            return ()
        if self.stage == "measure":
            return (Task.of("train", cell),)
        if self.stage == "nearest":
            return (Task.of("measure", cell), *Task.of("train", cell).needs())
        found = [Task.of("curves", cell)] if cell.arm in _BY_CURVE else []
        if cell.arm == "windows":
            found.append(Task.of("windows", cell))
        tried = {"pilot": PILOTS, "sample_size": (PILOTS[0], PILOTS[-1])}.get(cell.arm, ())
        return (*found, *(Task.of("train", Cell.of(cell.problem, arm)) for arm in tried))

    def form_of(self, need: Task, form: Form) -> Form:
        """Return the form that a need is computed in: pilots may be shorter than the run."""
        pilots = need.stage == "train" and self.stage in ("train", "nearest")
        return form.pilots if form.pilots and pilots else form

    def key(self, form: Form) -> str:
        """Return the hash of everything that the result depends on."""
        of_arm = _ARM_VERSIONS.get(self.cell.arm)
        mixed = self.cell.problem.damage == MIXED
        return canonical_hash(
            {
                **({"arm_version": of_arm} if of_arm and self.stage == "train" else {}),
                **({"mix": MIX} if mixed else {}),
                "stage": self.stage,
                "version": VERSIONS[self.stage],
                "data_version": DATA_VERSION,
                "cell": self.cell.model_dump(mode="json"),
                "settings": _settings(self.stage, form),
                "needs": [need.key(self.form_of(need, form)) for need in self.needs()],
            }
        )


_SETTINGS: dict[Stage, tuple[str, ...]] = {
    "curves": ("num_validation", "classifier"),
    "windows": ("num_validation", "num_crops"),
    "train": ("num_validation", "training", "fixed_level"),
    "measure": ("num_test", "test_sigmas", "samples", "feature_side"),
    "nearest": ("num_test", "test_sigmas"),
}


def _settings(stage: Stage, form: Form) -> dict[str, Any]:
    return form.model_dump(mode="json", include=set(_SETTINGS[stage]))
