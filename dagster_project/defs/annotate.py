"""Group `annotate`: from which noise level on each image may be used."""

import json
import time

import dagster as dg

from dagster_project.defs.materialize import Result, job_result, run_job, timed
from dagster_project.defs.partitions import INGEST_BATCHES, all_of, same_batch
from dagster_project.defs.project import Project
from dagster_project.describe import described, line_of, static_metadata
from dagster_project.lineage import column_lineage
from dagster_project.steps import WINDOWS


@dg.asset(
    deps=[all_of("training_pack"), "reference_sets"],
    group_name="annotate",
    kinds={"torch"},
    description=(
        "Networks that tell trusted images from the pool's at every noise level; no image is "
        "graded by one that trained on it. A classifier that does not find planted damage is "
        "refused.\n\n" + described("noise_classifiers")
    ),
    metadata=static_metadata("noise_classifiers"),
)
def noise_classifier(project: Project) -> Result:
    """Train the classifier of the recipe, unless one is promoted: that one stands."""
    from ambient_omni.classifier.stored import require_current
    from dagster_project.operations.classifiers import promoted_id, train_candidate
    from dagster_project.pictures import classifier_picture
    from pipelines.measures import classifier_row

    root, request = project.root, project.request
    promoted, seconds = promoted_id(root, request.full_recipe.noise_space), 0.0
    if promoted is None:
        classifier_id, seconds = timed(train_candidate, root, request)
    else:
        require_current(root, promoted)
        classifier_id = promoted
    row = classifier_row(root, classifier_id)
    stands = "promoted classifier" if promoted else f"{row['num_folds']} folds, classifier"
    metadata = {
        "classifier_id": classifier_id,
        "noise_space": str(row["noise_space"]),
        "control": dg.MetadataValue.json(json.loads(str(row["control"]))),
        "status": str(row["status"]),
        "seconds": round(seconds, 3),
        "line": f"{stands} {classifier_id}",
        **classifier_picture(root, classifier_id),
    }
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(classifier_id))


@dg.asset(
    partitions_def=INGEST_BATCHES,
    deps=["noise_classifier", same_batch("training_pack")],
    group_name="annotate",
    kinds={"spark", "torch", "deltalake"},
    description=(
        "What the noise classifier says of every image at each level.\n\n"
        + described("noise_curves")
    ),
    metadata=static_metadata("noise_curves"),
)
def noise_curves(context: dg.AssetExecutionContext, project: Project) -> Result:
    """Grade one batch."""
    from dagster_project.arms import classifier_id_of
    from pipelines.jobs.curves import curves

    root, request, batch = project.root, project.request, context.partition_key
    request.require_let_in(batch)
    classifier_id = classifier_id_of(root, request)
    recipe = request.full_recipe
    report = run_job(
        curves, root, batch, classifier_id, annotator=recipe.annotator, settings=recipe.spark
    )
    where = {"classifier_id": classifier_id, "ingest_batch": batch}
    return job_result(root, report, "noise_curves", where)


@dg.asset(
    partitions_def=INGEST_BATCHES,
    deps=[
        same_batch("noise_curves"),
        same_batch("quality_scores"),
        same_batch("crop_scores"),
        "receptive_field",
        "reference_sets",
    ],
    group_name="annotate",
    kinds={"numpy", "deltalake"},
    description=(
        "The decision, one row per image and policy of the recipe: computed from tables, without "
        "touching a pixel or a network.\n\n" + described("noise_annotations", "policies")
    ),
    metadata=static_metadata("noise_annotations"),
)
def noise_annotations(context: dg.AssetExecutionContext, project: Project) -> Result:
    """Apply every policy of the recipe to one batch."""
    from dagster_project.arms import policies_of
    from dagster_project.galleries import level_gallery
    from dagster_project.pictures import band_picture, level_pictures
    from dagster_project.window_pictures import window_pictures
    from pipelines.jobs.annotate import annotate

    root, request, batch = project.root, project.request, context.partition_key
    request.require_let_in(batch)
    recipe, began = request.full_recipe, time.monotonic()
    policies = policies_of(root, request, recipe, make=True)
    reports = {arm: run_job(annotate, root, batch, policies[arm]) for arm in policies}
    ids = {arm: policy.policy_id for arm, policy in policies.items()}
    main = {"policy_id": ids[recipe.main_arm], "ingest_batch": batch}
    more = {
        "policies": ids,
        "seconds": round(time.monotonic() - began, 3),
        "line": f"{line_of(reports[recipe.main_arm])} under each of {len(ids)} policies",
        **level_pictures(root, batch, ids),
        **band_picture(root, batch, ids),
        **window_pictures(root, batch, policies),
        **level_gallery(root, recipe.transform, batch, ids[recipe.main_arm]),
        "dagster/column_lineage": column_lineage(
            "noise_annotations", with_windows=request.has_rule(WINDOWS)
        ),
    }
    return job_result(root, reports[recipe.main_arm], "noise_annotations", main, more=more)
