"""Turn measurements into levels: one row for every sample of a batch under one policy.

No pixel is read and no network is run: a new policy costs seconds.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines import duplicates, policies
from pipelines.job import JobReport
from pipelines.measures import (
    classifier_row,
    crop_classifier_row,
    crop_scores_slice,
    curves_slice,
    read_crop_scores,
    read_curves,
    read_scores,
    scores_slice,
)
from pipelines.policies import (
    ANY_SOURCE,
    AnyPolicy,
    BestOfDuplicates,
    ClassifierPerSource,
    ClassifierThreshold,
    CropWindow,
    CurvePolicy,
    Decisions,
    External,
    FixedPerSource,
    PilotCalibrated,
    QualityRank,
    SampleSizeAware,
)
from pipelines.slices import Target
from schemas.errors import BadInput, TableMissing
from schemas.ids import canonical_hash
from schemas.root import Root
from schemas.scores import EXTERNAL, EXTERNAL_COLUMN

JOB = "annotate"
TABLE = "noise_annotations"
_TRUSTED_BATCHES = ("reference", "evaluation")
_FOREIGN = "foreign"
_EXTERNAL = f"scores/{EXTERNAL}"


def annotate(root: Root, batch: str, policy: AnyPolicy, *, dry_run: bool = False) -> JobReport:
    """Write `noise_annotations` of a batch under a policy, and register the policy.

    Reference images get level 0 under every policy. A sample whose measurement is null gets a
    null level and the reason `unscored`; one that was never measured stops the job.

    Raises:
        TableMissing: the batch, or a measurement that the policy reads, is not there.
        AnnotationMissing: some samples of the batch were never measured.
        BadInput: the policy does not fit the classifier's noise space or the batch's sources.
        JobAlreadyRunning: another process annotates this batch under this policy.
    """
    began = time.monotonic()
    with root.lock(f"{JOB}-{policy.policy_id}", batch):
        samples = _samples(root, batch)
        is_reference = _is_reference(root, batch, samples["sample_row"].to_numpy())
        target = _target(root, batch, policy, is_reference)
        current = target.is_current(root)
        unscored = 0
        notes: tuple[str, ...] = ()
        if not current and not dry_run:
            table = _annotations(root, batch, policy, samples, is_reference)
            # A policy that could not decide is none that others are offered.
            policies.register(root, policy)
            root.tables.commit(
                TABLE,
                table,
                slice=target.slice,
                inputs=target.inputs,
                job=JOB,
                versions=root.tables.versions(["samples", "reference_sets", *_tables_of(policy)]),
            )
            unscored = pc.sum(pc.equal(table["reason"], policies.UNSCORED)).as_py() or 0
            notes = (*_notes(table), *_misnamed(policy, samples["source"].to_pylist()))
    count = samples.num_rows
    return JobReport(
        JOB,
        batch,
        read=count,
        written=0 if current or dry_run else count,
        unchanged=count if current else 0,
        rejected={policies.UNSCORED: unscored} if unscored else {},
        versions=root.tables.versions([TABLE]),
        seconds=time.monotonic() - began,
        notes=notes,
    )


def preview(root: Root, batch: str, policy: AnyPolicy) -> pa.Table:
    """Return what `annotate` would write for a batch under a policy, without writing anything.

    Raises:
        TableMissing, AnnotationMissing, BadInput: as `annotate`.
    """
    samples = _samples(root, batch)
    is_reference = _is_reference(root, batch, samples["sample_row"].to_numpy())
    return _annotations(root, batch, policy, samples, is_reference)


def _notes(table: pa.Table) -> tuple[str, ...]:
    """Say what a person should know of an answer that is the same for everything."""
    judged = table.filter(pc.not_equal(table["reason"], policies.REFERENCE))["reason"]
    share = {
        reason: pc.mean(pc.equal(judged, reason).cast(pa.float64())).as_py() or 0.0
        for reason in _TELLING
    }
    return tuple(text for reason, text in _TELLING.items() if share[reason] >= _NEARLY_ALL)


def _misnamed(policy: AnyPolicy, sources: Sequence[str]) -> tuple[str, ...]:
    """Say which names match nothing where `*` took other samples: one may be misspelt."""
    if not isinstance(policy, FixedPerSource) or ANY_SOURCE not in policy.levels:
        return ()
    unmet = sorted(set(policy.levels) - set(sources) - {ANY_SOURCE})
    by_rest = sorted(set(sources) - set(policy.levels))
    if not unmet or not by_rest:
        return ()
    more = f" and {len(by_rest) - _MOST_NAMED} more" if len(by_rest) > _MOST_NAMED else ""
    return (
        f"levels name {', '.join(unmet)}, and no sample of this batch is of that source; "
        f"{ANY_SOURCE!r} gave the level to {', '.join(by_rest[:_MOST_NAMED])}{more}. Right if the "
        "name is of another batch; else correct it",
    )


_MOST_NAMED = 5

# Shares that say more of the classifier than of the images.
_NEARLY_ALL = 0.99
_TELLING = {
    "usable_everywhere": "nearly every pool image is usable at every level: the classifier cannot "
    "tell the pool from the reference. Right if they are of one kind; see its positive control",
    "never_crosses": "nearly no pool image is usable at any level: the classifier tells the pool "
    "from the reference even under the strongest noise, as it does where they show other things; "
    "see its warnings",
}


def _samples(root: Root, batch: str) -> pa.Table:
    if root.tables.fingerprint("samples", {"ingest_batch": batch}) is None:
        raise TableMissing(f"batch {batch!r} has no samples; run ingest on it first")
    columns = ["sample_row", "sample_id", "source"]
    return root.tables.open("samples").read(columns, {"ingest_batch": batch})


def _is_reference(root: Root, batch: str, rows_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    registered = root.tables.read("ingest_batches", ["role"], {"ingest_batch": batch})
    if set(registered["role"].to_pylist()) & set(_TRUSTED_BATCHES):
        return np.ones(len(rows_N), bool)
    sets = root.tables.read("reference_sets", ["sample_row", "role"])
    trusted = sets.filter(pc.not_equal(sets["role"], _FOREIGN))
    return np.isin(rows_N, trusted["sample_row"].to_numpy())


def _target(root: Root, batch: str, policy: AnyPolicy, is_reference: NDArray[np.bool_]) -> Target:
    inputs: dict[str, Any] = {
        "samples": root.tables.fingerprint("samples", {"ingest_batch": batch}),
        "references": canonical_hash(np.flatnonzero(is_reference).tolist()),
        **_measured_from(root, batch, policy),
    }
    return Target(TABLE, {"policy_id": policy.policy_id, "ingest_batch": batch}, inputs)


def _measured_from(root: Root, batch: str, policy: AnyPolicy) -> dict[str, str | None]:
    fingerprint = root.tables.fingerprint
    if isinstance(policy, CropWindow):
        slice_ = crop_scores_slice(policy.crop_classifier_id, batch)
        floor = _measured_from(root, batch, policy.floor)
        return {"crop_scores": fingerprint("crop_scores", slice_), **floor}
    if isinstance(policy, CurvePolicy):
        slice_ = curves_slice(policy.classifier_id, batch)
        return {"noise_curves": fingerprint("noise_curves", slice_)}
    if isinstance(policy, QualityRank):
        table, slice_ = f"scores/{policy.pack}", scores_slice(policy.scorer_version, batch)
        return {table: fingerprint(table, slice_)}
    if isinstance(policy, External):
        return {
            version: fingerprint(_EXTERNAL, scores_slice(version, batch))
            for version in (policy.sigma_min_version, policy.sigma_max_version)
            if version is not None
        }
    if isinstance(policy, BestOfDuplicates):
        return duplicates.made_from(root, policy) | _measured_from(root, batch, policy.floor)
    return {}


def _tables_of(policy: AnyPolicy) -> list[str]:
    if isinstance(policy, CropWindow):
        return ["crop_scores", "crop_classifiers", *_tables_of(policy.floor)]
    if isinstance(policy, CurvePolicy):
        return ["noise_curves", "noise_classifiers"]
    if isinstance(policy, External):
        return [_EXTERNAL]
    if isinstance(policy, BestOfDuplicates):
        tables = [duplicates.TABLE, f"scores/{policy.pack}", *_tables_of(policy.floor)]
        return list(dict.fromkeys(tables))
    return [f"scores/{policy.pack}"] if isinstance(policy, QualityRank) else []


def _annotations(
    root: Root,
    batch: str,
    policy: AnyPolicy,
    samples: pa.Table,
    is_reference: NDArray[np.bool_],
) -> pa.Table:
    decided = decide(root, batch, policy, samples.filter(pa.array(~is_reference)))
    found = _spread(decided, is_reference)
    count = samples.num_rows
    return pa.table(
        {
            "sample_row": samples["sample_row"],
            "ingest_batch": pa.repeat(batch, count),
            "policy_id": pa.repeat(policy.policy_id, count),
            "sigma_min": _nullable(found.sigma_min),
            "sigma_max": np.zeros(count) if found.sigma_max is None else found.sigma_max,
            "noise_space": pa.repeat(policy.noise_space, count),
            "slope": _nullable(found.slope),
            "sigma_min_standard_error_octaves": _nullable(found.standard_error_octaves),
            "sigma_min_low": _nullable(found.low),
            "sigma_min_high": _nullable(found.high),
            "reason": pa.array(found.reason, pa.string()),
        }
    )


def decide(root: Root, batch: str, policy: AnyPolicy, samples: pa.Table) -> Decisions:
    """Decide for samples (columns sample_row, sample_id, source) that are no references.

    Raises:
        TableMissing, AnnotationMissing, BadInput: as `annotate`.
    """
    rows = samples["sample_row"].to_numpy()
    if isinstance(policy, CropWindow):
        floor = decide(root, batch, policy.floor, samples)
        return policies.with_windows(floor, _windows(root, batch, policy, rows))
    if isinstance(policy, FixedPerSource | ClassifierPerSource):
        return policies.decide_by_source(policy, samples["source"].to_pylist())
    if isinstance(policy, QualityRank):
        scores = _scores(root, batch, policy, rows)
        return policies.decide_by_rank(policy, scores, samples["sample_id"].to_pylist())
    if isinstance(policy, External):
        return _external(root, batch, policy, rows)
    if isinstance(policy, BestOfDuplicates):
        floor = decide(root, batch, policy.floor, samples)
        is_worse = np.isin(rows, duplicates.worse_copies(root, policy))
        return policies.without_duplicates(floor, is_worse)
    return _decide_by_curve(root, batch, policy, rows)


def _scores(
    root: Root, batch: str, policy: QualityRank, rows_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    if not len(rows_N):
        return np.empty(0)
    measured = read_scores(root, batch, policy.pack, policy.column, policy.scorer_version)
    return measured.all_of(rows_N, f"{policy.column} score", "score")


def _external(root: Root, batch: str, policy: External, rows_N: NDArray[np.int64]) -> Decisions:
    def levels(version: str) -> NDArray[np.float64]:
        if not len(rows_N):
            return np.empty(0)
        measured = read_scores(root, batch, EXTERNAL, EXTERNAL_COLUMN, version)
        return measured.all_of(rows_N, f"imported number of {version}", "import-levels")

    high = policy.sigma_max_version
    return policies.decide_external(
        levels(policy.sigma_min_version), None if high is None else levels(high)
    )


def _windows(
    root: Root, batch: str, policy: CropWindow, rows_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    if not len(rows_N):
        return np.empty(0)
    classifier = crop_classifier_row(root, policy.crop_classifier_id)
    what = f"crop classifier {policy.crop_classifier_id}"
    _require_space(policy, str(classifier["noise_space"]), what)
    measured = read_crop_scores(root, batch, policy.crop_classifier_id)
    said = measured.all_of(rows_N, "crop scores", "crops")
    return policies.decide_windows(policy, said[:, 0])


def _decide_by_curve(
    root: Root,
    batch: str,
    policy: ClassifierThreshold | SampleSizeAware | PilotCalibrated,
    rows_N: NDArray[np.int64],
) -> Decisions:
    classifier = classifier_row(root, policy.classifier_id)
    _require_space(policy, str(classifier["noise_space"]), f"classifier {policy.classifier_id}")
    sigmas = np.array(classifier["sigmas"], np.float64)
    curves = np.empty((0, 2, len(sigmas)))
    if len(rows_N):
        measured = read_curves(root, batch, policy.classifier_id)
        curves = measured.all_of(rows_N, "noise curve", "curves")
    logits, errors = curves[:, 0], curves[:, 1]
    if isinstance(policy, SampleSizeAware):
        return policies.decide_by_sample_size(policy, logits, errors, sigmas)
    if isinstance(policy, PilotCalibrated):
        return policies.decide_by_pilot(policy, logits, errors, sigmas)
    return policies.decide_by_curve(policy, logits, errors, sigmas)


def _require_space(policy: AnyPolicy, found: str, what: str) -> None:
    if found == policy.noise_space:
        return
    raise BadInput(
        f"policy {policy.policy_id} measures in {policy.noise_space}, {what} in {found}; levels do "
        f"not carry over: train one on packs of {policy.noise_space} (for latents, encode the "
        "batches first), run its measurements, and name it in the policy"
    )


def _spread(decided: Decisions, is_reference: NDArray[np.bool_]) -> Decisions:
    """Put the decisions at their places and level 0 where the references are."""
    count, rest = len(is_reference), ~is_reference

    def at(values: NDArray[Any] | None, elsewhere: float) -> NDArray[np.float64]:
        whole = np.full(count, elsewhere)
        if values is not None:
            whole[rest] = values
        return whole

    reason = np.full(count, policies.REFERENCE, object)
    reason[rest] = decided.reason
    return Decisions(
        sigma_min=at(decided.sigma_min, 0.0),
        slope=at(decided.slope, np.nan),
        standard_error_octaves=at(decided.standard_error_octaves, np.nan),
        low=at(decided.low, np.nan),
        high=at(decided.high, np.nan),
        reason=reason,
        sigma_max=at(decided.sigma_max, 0.0),
    )


def _nullable(values: NDArray[np.float64]) -> pa.Array:
    # A flat curve has an infinite error: as good as none.
    return pa.array(values, pa.float64(), mask=~np.isfinite(values))
