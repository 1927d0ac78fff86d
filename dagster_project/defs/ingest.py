"""Group `ingest`: sources become batches."""

import dagster as dg

from dagster_project.defs.materialize import Result, job_result, run_job
from dagster_project.defs.partitions import INGEST_BATCHES
from dagster_project.defs.project import Project
from dagster_project.describe import described, static_metadata


@dg.asset(
    partitions_def=INGEST_BATCHES,
    group_name="ingest",
    kinds={"python", "deltalake"},
    description=(
        "Images of one source, stored as they came in tar shards; every listed item is accounted "
        "for, with a reason where it was refused.\n\n"
        + described("samples", "ingest_attempts", "ingest_batches")
    ),
    metadata=static_metadata("samples"),
)
def samples(context: dg.AssetExecutionContext, project: Project) -> Result:
    """Ingest one batch."""
    from dagster_project.operations.drops import bring_here
    from pipelines.ingest import ingest

    request = project.request
    batch = request.batch(context.partition_key)
    bring_here(project.root, request.operations.watch, batch.name)
    report = run_job(
        ingest,
        project.root,
        batch.name,
        batch.source,
        request.ingest_of(batch.name),
        role=batch.role,
    )
    slice_ = {"ingest_batch": batch.name}
    return job_result(project.root, report, "samples", slice_)
