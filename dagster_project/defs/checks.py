"""What must hold before anything is trained on: each failure says which rows."""

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from dagster_project.defs.project import Project
from schemas.reference_sets import HELD_OUT, TRUSTED
from schemas.root import Root

_NUM_NAMED = 3


@dg.asset_check(
    asset="samples",
    blocking=True,
    description="Every attempt that was not rejected points to a sample, and every sample to one.",
)
def every_attempt_is_accounted_for(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """Compare `ingest_attempts` with `samples`."""
    root, where = project.root, {"ingest_batch": context.partition_key}
    attempts = root.tables.read("ingest_attempts", ["sample_row"], where)["sample_row"]
    kept = attempts.filter(pc.is_valid(attempts))
    samples = root.tables.read("samples", ["sample_row"], where)["sample_row"]
    lost, unexplained = _minus(kept, samples), _minus(samples, kept)
    problem = _named(lost, "attempts without a sample") or _named(
        unexplained, "samples without an attempt"
    )
    return _result(problem, {"attempts": len(attempts), "samples": len(samples)})


@dg.asset_check(
    asset="quality_scores",
    blocking=True,
    description="Every sample has a row of scores; what could not be had is null with a reason.",
)
def every_sample_is_scored(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """Compare `samples` with the scores of the recipe's pack."""
    table = f"scores/{project.request.full_recipe.scores.pack}"
    return _covers(project.root, table, context.partition_key)


@dg.asset_check(
    asset="noise_annotations",
    blocking=True,
    description="Every sample has a level, or a reason why not, under every policy of the recipe.",
)
def every_sample_is_annotated(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """Compare `samples` with the annotations, policy by policy."""
    root, batch = project.root, context.partition_key
    rows = root.tables.read("noise_annotations", ["policy_id"], {"ingest_batch": batch})
    policies = pc.unique(rows["policy_id"]).to_pylist()
    if not policies:
        return _result(f"batch {batch} has no annotation under any policy", {})
    results = [_covers(root, "noise_annotations", batch, p) for p in policies]
    return next((r for r in results if not r.passed), results[0])


@dg.asset_check(
    asset="reference_sets",
    blocking=True,
    description="No image is in the trusted set and held out at once, by its bytes.",
)
def held_out_images_are_not_trusted(project: Project) -> dg.AssetCheckResult:
    """Compare the sets by sample_id."""
    from pipelines.references import sample_ids_of

    root = project.root
    trusted, held_out = sample_ids_of(root, [TRUSTED]), sample_ids_of(root, HELD_OUT)
    both = sorted(trusted & held_out)
    problem = f"{len(both)} trusted images are held out: {both[:_NUM_NAMED]}" if both else ""
    return _result(problem, {"trusted": len(trusted), "held_out": len(held_out)})


def _covers(
    root: Root, table: str, batch: str, policy_id: str | None = None
) -> dg.AssetCheckResult:
    where = {"ingest_batch": batch}
    samples = root.tables.read("samples", ["sample_row"], where)["sample_row"]
    if policy_id is not None:
        where["policy_id"] = policy_id
    rows = root.tables.read(table, ["sample_row"], where)["sample_row"]
    missing = _minus(samples, rows)
    under = f" under policy {policy_id}" if policy_id else ""
    problem = _named(missing, f"samples of {batch} without a row in {table}{under}")
    return _result(problem, {"samples": len(samples), "rows": len(rows)})


def _minus(left: pa.ChunkedArray, right: pa.ChunkedArray) -> pa.ChunkedArray:
    # A set of hashes, not `right` itself: exclusions were applied to both sides when read.
    return left.filter(pc.invert(pc.is_in(left, right.combine_chunks())))


def _named(rows: pa.ChunkedArray, what: str) -> str:
    if not len(rows):
        return ""
    return f"{len(rows)} {what}, first sample_row {rows.slice(0, _NUM_NAMED).to_pylist()}"


def _result(problem: str, metadata: dict[str, int]) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=not problem,
        severity=dg.AssetCheckSeverity.ERROR,
        description=problem or None,
        metadata=metadata,
    )
