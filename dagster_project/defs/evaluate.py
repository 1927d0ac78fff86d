"""Group `evaluate`: which arm is best, on images that nobody trained on."""

from typing import Any

import dagster as dg

from dagster_project.defs.materialize import Result, run_job, timed
from dagster_project.defs.partitions import ARMS, all_of, same_batch
from dagster_project.defs.project import Project


@dg.asset(
    partitions_def=ARMS,
    deps=[same_batch("trained_models"), "reference_sets"],
    group_name="evaluate",
    kinds={"torch"},
    description="Denoising loss of one arm's model per noise level, on held-out images.",
)
def heldout_evaluation(context: dg.AssetExecutionContext, project: Project) -> Result:
    """Evaluate one arm."""
    from dagster_project.arms import evaluate_once, judging_set, run_id_of

    root, request, arm = project.root, project.request, context.partition_key
    recipe = request.full_recipe
    run_id = run_id_of(root, request, recipe, arm)
    max_images = recipe.training.held_out.max_images
    loss, seconds = timed(evaluate_once, root, run_id, judging_set(request), max_images)
    metadata: dict[str, Any] = {
        "run_id": run_id,
        "reference_set": loss.reference_set,
        "num_images": loss.num_images,
        "total": loss.total,
        "total_standard_error": loss.total_standard_error,
        "sigmas": loss.sigmas,
        "weighted": loss.weighted,
        "seconds": round(seconds, 3),
        "line": f"held-out loss {loss.total:.4f} over {loss.num_images} images",
    }
    return dg.MaterializeResult(metadata=metadata)


@dg.asset(
    deps=[all_of("heldout_evaluation"), all_of("noise_annotations"), all_of("ood_scores")],
    group_name="evaluate",
    kinds={"html"},
    description="One self-contained page: the pool by level, the classifier, the arms compared.",
)
def report(project: Project) -> Result:
    """Write the report."""
    from dagster_project.report_inputs import report_inputs
    from pipelines.report import build_report

    root = project.root
    path = run_job(build_report, root, report_inputs(root, project.request))
    metadata: dict[str, Any] = {
        "report": dg.MetadataValue.path(str(path)),
        "line": f"{path.stat().st_size / 1e6:.1f} MB",
    }
    return dg.MaterializeResult(metadata=metadata)
