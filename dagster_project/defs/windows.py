"""Group `annotate`, for arms with windows: below which level foreign images teach the truth.

Optional: under a recipe without an arm of kind `crop_window` they are left out of the graph.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from dagster_project.defs.materialize import Result, job_result, run_job, timed
from dagster_project.defs.partitions import INGEST_BATCHES, all_of, same_batch
from dagster_project.defs.project import Project
from dagster_project.describe import described, line_of, preview, static_metadata
from dagster_project.steps import WINDOWS
from schemas.ids import canonical_hash
from schemas.root import Root

NAMES = ("crop_classifier", "receptive_field", "crop_scores")
_OPTIONAL = f"Only where an arm of the recipe is of kind `{WINDOWS}`.\n\n"


@dg.asset(
    deps=[all_of("training_pack"), "reference_sets"],
    group_name="annotate",
    kinds={"torch"},
    description=(
        "Networks that tell crops of the domain from crops of foreign images, at every crop size; "
        "refused unless they find shuffled crops. Trained once and kept. "
        + _OPTIONAL
        + described("crop_classifiers")
    ),
    metadata=static_metadata("crop_classifiers"),
)
def crop_classifier(project: Project) -> Result:
    """Train the crop classifier of each arm with windows."""
    from dagster_project.window_pictures import crop_control
    from pipelines.measures import crop_classifier_row

    ids, seconds = timed(_measure_all, project, "crop_classifier")
    found: dict[str, Any] = {}
    for name in sorted(set(ids.values())):
        found[f"control_{name}"] = crop_control(crop_classifier_row(project.root, name))
    return _measured(project.root, "crop_classifiers", ids, seconds, found)


@dg.asset(
    deps=[all_of("training_pack"), "reference_sets"],
    group_name="annotate",
    kinds={"torch"},
    description=(
        "How large a window denoising needs at each level, measured on the trusted images: crops "
        "of that size are enough to learn from there. " + _OPTIONAL + described("receptive_fields")
    ),
    metadata=static_metadata("receptive_fields"),
)
def receptive_field(project: Project) -> Result:
    """Measure the receptive field of each arm with windows."""
    from dagster_project.window_pictures import context_pictures
    from dagster_project.windows import reach_of
    from pipelines.measures import table_row

    ids, seconds = timed(_measure_all, project, "receptive_field")
    root, recipe, found = project.root, project.request.full_recipe, dict[str, Any]()
    for arm, name in ids.items():
        row = table_row(root, "receptive_fields", "receptive_field_id", name)
        drawn = context_pictures(row, reach_of(row, recipe, arm))
        found |= {f"{what}_{arm}": value for what, value in drawn.items()}
    return _measured(root, "receptive_fields", ids, seconds, found)


@dg.asset(
    partitions_def=INGEST_BATCHES,
    deps=["crop_classifier", same_batch("training_pack")],
    group_name="annotate",
    kinds={"torch", "deltalake"},
    description=(
        "Whether the crops of each image look like the domain's, at every crop size; drawn as maps "
        "over some images. " + _OPTIONAL + described("crop_scores")
    ),
    metadata=static_metadata("crop_scores"),
)
def crop_scores(context: dg.AssetExecutionContext, project: Project) -> Result:
    """Let the crop classifiers look at one batch."""
    from dagster_project.window_pictures import crop_histogram, crop_maps
    from dagster_project.windows import borders_of, crop_classifiers_of, grade
    from pipelines.measures import crop_classifier_row, crop_scores_slice

    root, request, batch = project.root, project.request, context.partition_key
    request.require_let_in(batch)
    recipe = request.full_recipe
    arms = crop_classifiers_of(root, recipe)
    if not arms:
        return _not_asked_for()
    reports = run_job(grade, root, recipe, batch)
    found: dict[str, Any] = {"arms": arms}
    for name in arms:
        row: dict[str, Any] = dict(crop_classifier_row(root, name))
        borders = borders_of(recipe, arms[name])
        found |= crop_histogram(root, batch, name, row["sizes"], borders)
        found |= crop_maps(root, batch, name, row["sizes"])
    first, *others = arms
    found["line"] = line_of(reports[first]) + (f" of each of {len(arms)}" if others else "")
    where = crop_scores_slice(first, batch)
    return job_result(root, reports[first], "crop_scores", where, more=found)


def _measure_all(project: Project, part: Any) -> dict[str, str]:
    from dagster_project.windows import measure, window_rules

    root, request = project.root, project.request
    recipe = request.full_recipe
    return {arm: measure(root, request, recipe, arm, part) for arm in window_rules(recipe)}


def _measured(
    root: Root, table: str, ids: Mapping[str, str], seconds: float, more: Mapping[str, Any]
) -> Result:
    if not ids:
        return _not_asked_for()
    names = sorted(set(ids.values()))
    key = f"{table.removesuffix('s')}_id"
    metadata = {
        "dagster/row_count": len(names),
        "arms": dict(ids),
        "seconds": round(seconds, 3),
        "table_version": root.tables.version(table),
        "preview": preview(root, table, {key: names}),
        "line": ", ".join(names),
        **more,
    }
    made = dg.DataVersion(canonical_hash(dict(ids)))
    return dg.MaterializeResult(metadata=metadata, data_version=made)


def _not_asked_for() -> Result:
    line = f"no arm of the recipe is of kind {WINDOWS}"
    return dg.MaterializeResult(
        metadata={"dagster/row_count": 0, "line": line}, data_version=dg.DataVersion("none")
    )
