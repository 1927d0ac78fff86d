"""What must hold of windows before levels are read off them; without such an arm all hold."""

import json
from typing import Any

import dagster as dg

from dagster_project.defs.checks import covers, first_failure, fulfils, result
from dagster_project.defs.project import Project

# Of a total variation's standard errors: a crop classifier below that has learned the wrong way.
_NUM_ERRORS = 3


@dg.asset_check(
    asset="crop_classifier",
    blocking=True,
    description=(
        "The crop classifier found shuffled crops of the largest size (else everything would look "
        "right). A warning where it is worse than chance at a size."
    ),
)
def crop_classifier_is_valid(project: Project) -> dg.AssetCheckResult:
    """Look at the positive control and at the total variation of each size."""
    from dagster_project.windows import crop_classifiers_of
    from pipelines.measures import crop_classifier_row

    root = project.root
    names = crop_classifiers_of(root, project.request.full_recipe)
    rows = [dict(crop_classifier_row(root, name)) for name in names]
    return first_failure([*map(_judged, rows), result("", {"crop_classifiers": len(rows)})])


@dg.asset_check(
    asset="receptive_field",
    blocking=True,
    description=(
        "A crop size is context enough at some level. A warning where none is: then no image of "
        "the arm gets a window."
    ),
)
def crops_reach_a_level(project: Project) -> dg.AssetCheckResult:
    """Read the windows off each arm's receptive field."""
    from dagster_project.windows import id_of, reach_of, window_rules
    from pipelines.measures import table_row

    root, recipe = project.root, project.request.full_recipe
    furthest = {}
    for arm in window_rules(recipe):
        name = id_of(root, recipe, arm, "receptive_field")
        row = table_row(root, "receptive_fields", "receptive_field_id", name)
        furthest[arm] = max(reach_of(row, recipe, arm).values(), default=0.0)
    none = sorted(arm for arm, level in furthest.items() if level == 0)
    problem = (
        f"no crop size of arm {none[0]!r} is context enough at its lowest level: measure lower "
        "levels (receptive_field.sigmas), or larger crops (crops.sizes)"
        if none
        else ""
    )
    return result(problem, furthest, dg.AssetCheckSeverity.WARN)


@dg.asset_check(
    asset="crop_scores",
    blocking=True,
    description="Every sample has crop scores of every arm with windows.",
)
def every_sample_has_crop_scores(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """Compare `samples` with the crop scores, classifier by classifier."""
    from dagster_project.windows import crop_classifiers_of

    root, batch = project.root, context.partition_key
    names = crop_classifiers_of(root, project.request.full_recipe)
    found = [covers(root, "crop_scores", batch, {"crop_classifier_id": name}) for name in names]
    return first_failure([*found, result("", {})])


@dg.asset_check(
    asset="crop_scores",
    blocking=True,
    description="Every mean probability lies in [0, 1]; no key stands twice.",
)
def crop_scores_fulfil_their_contract(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """Hold the batch's rows against the contract once more, as they are read."""
    return fulfils(project.root, "crop_scores", context.partition_key)


def _judged(row: dict[str, Any]) -> dg.AssetCheckResult:
    name, control = row["crop_classifier_id"], json.loads(row["control"])
    bound, error = control["tv_lower_bound"][-1], control["tv_standard_error"][-1]
    metadata = {"control": bound, "control_standard_error": error}
    if not bound - 2 * error > control["bar"]:
        return result(f"{name} did not find shuffled crops", metadata)
    measured = zip(row["sizes"], row["tv_lower_bound"], row["tv_standard_error"], strict=True)
    worse = [side for side, told, spread in measured if told + _NUM_ERRORS * spread < 0]
    problem = f"{name} is worse than chance at crops of side {worse}" if worse else ""
    return result(problem, metadata, dg.AssetCheckSeverity.WARN)
