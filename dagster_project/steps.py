"""The steps of the graph in the order of the data's way, as the command line walks them."""

from collections.abc import Sequence
from dataclasses import dataclass

from dagster_project.operations.config import Role
from dagster_project.request import Request
from schemas.errors import BadInput

ARM = "arm"
INGEST_BATCH = "ingest_batch"
WINDOWS = "crop_window"


@dataclass(frozen=True)
class Step:
    """Some assets that are materialized together.

    Attributes:
        name: what `--until` calls it.
        title: what the progress line calls it.
        assets: keys of the assets.
        roles: of the batches it runs on, one partition each; empty: it is not about batches.
        per_arm: it has one partition per arm of the comparison.
        only_for: kind of rule that it serves; without an arm of that kind there is nothing to do.
    """

    name: str
    title: str
    assets: tuple[str, ...]
    roles: tuple[Role, ...] = ()
    per_arm: bool = False
    only_for: str | None = None

    def partitions(self, request: Request, arms: Sequence[str]) -> tuple[str | None, ...]:
        """Return the partition keys to materialize; one None for an unpartitioned step.

        None at all for a step that no rule of the recipe asks for.
        """
        if self.only_for is not None and not request.has_rule(self.only_for):
            return ()
        if self.roles:
            return request.of_role(*self.roles)
        return tuple(arms) if self.per_arm else (None,)


STEPS = (
    Step("ingest", "ingest", ("samples",), ("reference", "evaluation", "pool")),
    Step("references", "reference sets", ("reference_sets",)),
    Step("score", "scores", ("quality_scores", "embeddings"), ("reference", "pool")),
    Step("ood", "distance", ("ood_scores",), ("pool",)),
    Step("pack", "pack", ("training_pack",), ("reference", "evaluation", "pool")),
    Step("classifier", "noise classifier", ("noise_classifier",)),
    Step("curves", "noise curves", ("noise_curves",), ("pool",)),
    Step("windows", "crop classifier", ("crop_classifier",), only_for=WINDOWS),
    Step("context", "receptive field", ("receptive_field",), only_for=WINDOWS),
    Step("crops", "crop scores", ("crop_scores",), ("pool",), only_for=WINDOWS),
    Step("annotate", "annotations", ("noise_annotations",), ("reference", "pool")),
    Step("train", "training", ("trained_models",), per_arm=True),
    Step("evaluate", "evaluation", ("heldout_evaluation",), per_arm=True),
    Step("report", "report", ("report",)),
)
STEP_NAMES = tuple(step.name for step in STEPS)


def steps_until(last: str | None) -> tuple[Step, ...]:
    """Return the steps up to and with `last`; all without it.

    Raises:
        BadInput: there is no such step.
    """
    if last is None:
        return STEPS
    if last not in STEP_NAMES:
        raise BadInput(f"--until {last}: no such step; there are {', '.join(STEP_NAMES)}")
    return STEPS[: STEP_NAMES.index(last) + 1]
