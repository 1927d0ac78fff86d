"""What the report is told, from what was asked for and what came of it."""

from pathlib import Path
from typing import TYPE_CHECKING

from dagster_project.arms import judging_set, policy_of, run_id_of
from dagster_project.request import REFERENCE, Request
from dagster_project.rules import ClassifierRule
from schemas.root import Root

if TYPE_CHECKING:
    from pipelines.report.inputs import ReportInputs


def report_inputs(root: Root, request: Request) -> "ReportInputs":
    """Return the report's inputs for the root's present data."""
    from pipelines.report.inputs import ReportInputs

    recipe = request.full_recipe
    main = policy_of(root, request, recipe, recipe.main_arm)
    by_classifier = isinstance(recipe.arms[recipe.main_arm], ClassifierRule)
    return ReportInputs(
        arms={arm: run_id_of(root, request, recipe, arm) for arm in recipe.arms},
        main_policy_id=main.policy_id,
        classifier_id=getattr(main, "classifier_id", None) if by_classifier else None,
        pool_batches=request.of_role("pool"),
        reference_batch=REFERENCE,
        evaluation_set=judging_set(request),
        baseline_arm=recipe.baseline_arm,
        transform=recipe.transform,
        truth=Path(request.truth) if request.truth else None,
    )
