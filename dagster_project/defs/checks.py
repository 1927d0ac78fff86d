"""What must hold before anything is trained on: each failure says which rows."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from dagster_project.defs.project import Project
from dagster_project.request import Verdict, judge
from schemas.errors import ContractViolation
from schemas.reference_sets import HELD_OUT, TRUSTED
from schemas.registry import contract
from schemas.root import Root

_NUM_NAMED = 3
# Balanced accuracy at the highest level of a classifier, where noise should hide every difference.
_MOST_AT_TOP = 0.8


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
    return result(problem, {"attempts": len(attempts), "samples": len(samples)})


@dg.asset_check(
    asset="quality_scores",
    blocking=True,
    description="Every sample has a row of scores; what could not be had is null with a reason.",
)
def every_sample_is_scored(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """Compare `samples` with the scores of each pack of the recipe."""
    batch = context.partition_key
    tables = [f"scores/{name}" for name in project.request.full_recipe.scores.packs]
    return first_failure([covers(project.root, table, batch) for table in tables])


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
        return result(f"batch {batch} has no annotation under any policy", {})
    return first_failure(
        [covers(root, "noise_annotations", batch, {"policy_id": p}) for p in policies]
    )


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
    return result(problem, {"trusted": len(trusted), "held_out": len(held_out)})


@dg.asset_check(
    asset="quality_scores",
    blocking=True,
    description="Every score lies in its range; a null score has a reason; no key stands twice.",
)
def scores_fulfil_their_contract(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """Hold the batch's rows against the contract once more, as they are read."""
    batch = context.partition_key
    tables = [f"scores/{name}" for name in project.request.full_recipe.scores.packs]
    results = [fulfils(project.root, table, batch, _unexplained_nulls) for table in tables]
    return first_failure(results)


@dg.asset_check(
    asset="ood_scores",
    blocking=True,
    description="Every distance lies in its range; a null distance has a reason.",
)
def distances_fulfil_their_contract(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """Hold the batch's rows against the contract once more, as they are read."""
    return fulfils(project.root, "ood_scores", context.partition_key, _unexplained_nulls)


@dg.asset_check(
    asset="noise_annotations",
    blocking=True,
    description="No level is negative or NaN, a null level has a reason, no key stands twice.",
)
def annotations_fulfil_their_contract(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """Hold the batch's rows against the contract once more, as they are read."""
    return fulfils(project.root, "noise_annotations", context.partition_key)


@dg.asset_check(
    asset="quality_scores",
    blocking=True,
    description=(
        "The scores are distributed as in the last accepted batch of the same stream: population "
        "stability index at most `operations.drift.max_psi`, or what chance explains."
    ),
)
def scores_do_not_drift(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """Compare the batch's scores; hold it back if the recipe says so."""
    return _drift(project, context.partition_key, levels_of=None)


@dg.asset_check(
    asset="noise_annotations",
    blocking=True,
    description="The main arm's levels are distributed as in the last accepted batch.",
)
def levels_do_not_drift(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """Compare the batch's levels; hold it back if the recipe says so."""
    from dagster_project.arms import policy_of

    root, request = project.root, project.request
    recipe = request.full_recipe
    policy = policy_of(root, request, recipe, recipe.main_arm)
    return _drift(project, context.partition_key, levels_of=policy.policy_id)


@dg.asset_check(
    asset="noise_classifier",
    blocking=True,
    description=(
        "The classifier found planted damage (else nothing is graded with it). A warning where it "
        "is worse than chance, or still certain at its highest level: noise must drown the rest."
    ),
)
def classifier_is_valid(project: Project) -> dg.AssetCheckResult:
    """Look at the positive control and at the band of balanced accuracy."""
    from dagster_project.arms import classifier_id_of
    from dagster_project.operations.classifiers import control_passed
    from pipelines.measures import classifier_row

    row: dict[str, Any] = dict(
        classifier_row(project.root, classifier_id_of(project.root, project.request))
    )
    name, accuracy = row["classifier_id"], row["balanced_accuracy"]
    metadata = {"highest": max(accuracy), "lowest": min(accuracy)}
    if not control_passed(row):
        return result(f"classifier {name} did not find planted damage", metadata)
    return result(_outside_band(row), metadata, dg.AssetCheckSeverity.WARN)


@dg.asset_check(
    asset="noise_curves",
    blocking=True,
    description=(
        "Levels read off the curves lie near those of the exhaustive search, on a few images of "
        "the batch: `operations.agreement`. A warning unless the recipe says that it blocks."
    ),
)
def curves_agree_with_the_search(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """Ask the search about some images."""
    from dagster_project.arms import agreement_of

    config = project.operations.agreement
    found = agreement_of(project.root, project.request, context.partition_key)
    problem = ""
    if found.median_octaves > config.max_median_octaves:
        problem = (
            f"levels of {context.partition_key} are {found.median_octaves:.2f} octaves from the "
            f"exhaustive search in the median, more than {config.max_median_octaves:g}; furthest "
            f"off: sample_row {list(found.farthest)}. Ask the classifier with more noisings, or "
            "prepare a new head on this pool"
        )
    metadata = {
        "images": found.num_images,
        "median_octaves": round(found.median_octaves, 4),
        "p95_octaves": round(found.p95_octaves, 4),
        "seconds": round(found.seconds, 2),
    }
    severity = dg.AssetCheckSeverity
    return result(problem, metadata, severity.ERROR if config.block else severity.WARN)


def _outside_band(row: Mapping[str, Any]) -> str:
    """Say where a classifier's balanced accuracy cannot be right, by three standard errors."""
    name = row["classifier_id"]
    errors = [error / 2 for error in row["tv_standard_error"]]
    measured = list(zip(row["sigmas"], row["balanced_accuracy"], errors, strict=True))
    for sigma, accuracy, error in measured:
        if accuracy + 3 * error < 0.5:
            return (
                f"classifier {name} is worse than chance at sigma {sigma:.3g}: balanced accuracy "
                f"{accuracy:.3f} +- {error:.3f}"
            )
    sigma, accuracy, error = measured[-1]
    if accuracy - 3 * error > _MOST_AT_TOP:
        return (
            f"classifier {name} still tells {accuracy:.0%} rightly at its highest level "
            f"{sigma:.3g}: images that differ even there never become usable; raise its sigma_max"
        )
    return ""


def _drift(project: Project, batch: str, levels_of: str | None) -> dg.AssetCheckResult:
    from dagster_project.operations.drift import accepted_before, drift_of, told

    root, request = project.root, project.request
    config, before = request.operations.drift, accepted_before(request, batch) or ""
    findings = drift_of(root, request, batch, config, levels_of=levels_of)
    problem = told(findings, before, config.max_psi)
    where = {"policy_id": levels_of or "", "ingest_batch": before}
    if levels_of and before and root.tables.fingerprint("noise_annotations", where) is None:
        problem = (
            f"cannot be held against {before}, which has no levels under the present policy: "
            "`ambient-omni rescore` gives it some"
        )
    images = root.tables.fingerprint("samples", {"ingest_batch": batch}) or ""
    verdict = request.verdicts.get(batch)
    # Measured anew, by a new classifier say, images that were let in stay in.
    is_in = verdict is not None and (
        verdict.status == "accepted" and (verdict.by == "person" or verdict.images == images)
    )
    blocks = config.hold and not is_in
    if blocks and problem:
        judge(root, batch, Verdict(status="held", why=problem))
        problem += "; look at it, then `ambient-omni accept` or leave it held back"
    elif blocks and levels_of is not None:
        said = f"is like {before}" if before else "is the first of its stream"
        judge(root, batch, Verdict(status="accepted", why=said, images=images))
    elif blocks and request.is_held(batch):
        judge(root, batch, None)  # its source was mended; its levels are looked at next
    if problem and is_in and verdict is not None:
        problem += f"; let in by a {verdict.by}: {verdict.why}"
    return dg.AssetCheckResult(
        passed=not problem,
        severity=dg.AssetCheckSeverity.ERROR if blocks else dg.AssetCheckSeverity.WARN,
        description=f"batch {batch} {problem}" if problem else None,
        metadata={f.column: round(f.psi, 4) for f in findings if math.isfinite(f.psi)},
    )


def fulfils(
    root: Root,
    table: str,
    batch: str,
    more: Callable[[pa.Table], str] = lambda _: "",
) -> dg.AssetCheckResult:
    """Hold a batch's rows against their contract."""
    rows = root.tables.read(table, where={"ingest_batch": batch})
    try:
        contract(table).validate(rows)
        problem = more(rows)
    except ContractViolation as error:
        problem = str(error)
    return result(problem, {"rows": rows.num_rows})


def _unexplained_nulls(rows: pa.Table) -> str:
    """Name rows whose score is null without a reason."""
    scores = [f.name for f in rows.schema if pa.types.is_floating(f.type)]
    unexplained = pc.is_null(rows["unscored_reason"])
    for name in scores:
        bad = rows.filter(pc.and_(pc.is_null(rows[name]), unexplained))["sample_row"]
        if len(bad):
            return _named(bad, f"rows with no {name} and no reason")
    return ""


def first_failure(results: Sequence[dg.AssetCheckResult]) -> dg.AssetCheckResult:
    """Return the first error, else the first warning, else the first result."""
    failed = [found for found in results if not found.passed]
    return min(
        failed, key=lambda found: found.severity != dg.AssetCheckSeverity.ERROR, default=results[0]
    )


def covers(
    root: Root, table: str, batch: str, under: Mapping[str, str] | None = None
) -> dg.AssetCheckResult:
    """Look whether every sample of a batch has a row in a table, under a policy, say."""
    where = {"ingest_batch": batch}
    samples = root.tables.read("samples", ["sample_row"], where)["sample_row"]
    rows = root.tables.read(table, ["sample_row"], where | dict(under or {}))["sample_row"]
    missing = _minus(samples, rows)
    said = "".join(
        f" under {key.removesuffix('_id')} {name}" for key, name in (under or {}).items()
    )
    problem = _named(missing, f"samples of {batch} without a row in {table}{said}")
    return result(problem, {"samples": len(samples), "rows": len(rows)})


def _minus(left: pa.ChunkedArray, right: pa.ChunkedArray) -> pa.ChunkedArray:
    # A set of hashes, not `right` itself: exclusions were applied to both sides when read.
    return left.filter(pc.invert(pc.is_in(left, right.combine_chunks())))


def _named(rows: pa.ChunkedArray, what: str) -> str:
    if not len(rows):
        return ""
    return f"{len(rows)} {what}, first sample_row {rows.slice(0, _NUM_NAMED).to_pylist()}"


def result(
    problem: str,
    metadata: Mapping[str, float],
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetCheckResult:
    """Return a result that passes if there is no problem."""
    return dg.AssetCheckResult(
        passed=not problem,
        severity=severity,
        description=problem or None,
        metadata=metadata,
    )
