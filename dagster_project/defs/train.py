"""Group `train`: one model per arm of the comparison."""

import dagster as dg

from dagster_project.defs.materialize import Result, timed
from dagster_project.defs.partitions import ARMS, all_of
from dagster_project.defs.project import Project
from dagster_project.describe import described, static_metadata


@dg.asset(
    partitions_def=ARMS,
    deps=[all_of("noise_annotations"), all_of("training_pack"), "reference_sets"],
    group_name="train",
    kinds={"torch", "safetensors"},
    description=(
        "A diffusion model that obeyed one policy; arms differ in nothing else. Stopped, it goes "
        "on from its checkpoint.\n\n" + described("training_runs")
    ),
    metadata=static_metadata("training_runs"),
)
def trained_models(context: dg.AssetExecutionContext, project: Project) -> Result:
    """Train one arm."""
    from ambient_omni.training.run_record import find_run
    from ambient_omni.training.trainer import train
    from dagster_project.arms import config_of
    from dagster_project.pictures import run_pictures

    root, request, arm = project.root, project.request, context.partition_key
    config = config_of(root, request, request.full_recipe, arm)
    run_id, seconds = timed(train, root, config)
    row = find_run(root, run_id)
    seen = row["num_images_seen"]
    metadata = {
        "run_id": run_id,
        "policy_id": row["policy_id"],
        "status": row["status"],
        "images_seen": seen,
        "table_versions": dg.MetadataValue.json(row["table_versions"]),
        "metrics": dg.MetadataValue.json(row["metrics"]),
        "audit": dg.MetadataValue.json(row["audit"]),
        "folder": dg.MetadataValue.path(str(root.runs / run_id)),
        "seconds": round(seconds, 3),
        "line": f"run {run_id}, {seen:,} images seen",
        **run_pictures(root, run_id),
    }
    return dg.MaterializeResult(metadata=metadata)
