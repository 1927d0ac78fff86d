"""Reference sets: what is trusted, what is held out of it, and what only reports may look at."""

import time
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ambient_omni.classifier.data import MIN_TRUSTED, MIN_VALIDATION
from pipelines.job import JobReport
from schemas.errors import BadInput, NotEnoughReferences, TableMissing
from schemas.ids import hash_fraction
from schemas.reference_sets import CONTRACT, EVALUATION, HELD_OUT, TRUSTED, VALIDATION
from schemas.root import Root

JOB = "references"


def define_reference_sets(
    root: Root,
    reference_batch: str,
    *,
    validation_fraction: float = 0.2,
    evaluation_batch: str | None = None,
    min_trusted: int = MIN_TRUSTED,
    min_validation: int = MIN_VALIDATION,
) -> JobReport:
    """Divide a reference batch into "trusted" and "validation"; name the "evaluation" set.

    The side of an image depends on its bytes alone, so it is the same in every root. Bytes that
    also stand in the evaluation batch belong to the evaluation set only: an image that reports
    judge by is neither trained on nor used to choose a checkpoint.

    Args:
        root: where the batches are.
        reference_batch: an ingested batch of trusted images.
        validation_fraction: expected share of it that is held out, between 0 and 1.
        evaluation_batch: an ingested batch that only reports look at; none empties the set.
        min_trusted: refuse with fewer images to train on.
        min_validation: refuse with fewer images held out.

    Returns:
        Rows written; `rejected` counts reference images that went to the evaluation set alone.

    Raises:
        BadInput: a fraction outside (0, 1), one batch for both purposes, or a batch that was
            brought in as something else.
        TableMissing: a batch was never ingested.
        NotEnoughReferences: a set would be too small.
    """
    started = time.monotonic()
    if not 0 < validation_fraction < 1:
        raise BadInput(f"validation_fraction is {validation_fraction}; it must lie between 0 and 1")
    if evaluation_batch == reference_batch:
        raise BadInput(f"{reference_batch} cannot be both the reference and the evaluation batch")
    with root.lock(JOB, "reference_sets"):
        evaluation = _no_samples()
        if evaluation_batch:
            evaluation = _samples(root, evaluation_batch, "evaluation")
        everything = _samples(root, reference_batch, "reference")
        in_evaluation = pc.is_in(everything["sample_id"], evaluation["sample_id"])
        reference = everything.filter(pc.invert(in_evaluation))
        held_out = _is_held_out(reference, validation_fraction)
        trusted, validation = reference.filter(pc.invert(held_out)), reference.filter(held_out)
        num_shared = everything.num_rows - reference.num_rows
        counts = f"{reference_batch} has {everything.num_rows} images, {num_shared} of them in the "
        counts += f"evaluation batch: {trusted.num_rows} trusted, {validation.num_rows} validation"
        _require(trusted, min_trusted, TRUSTED, counts)
        _require(validation, min_validation, VALIDATION, counts)
        written, unchanged = 0, 0
        # The held-out sets first: should this stop halfway, too much is held out, never too little.
        for name, rows in (
            (EVALUATION, evaluation),
            (VALIDATION, validation),
            (TRUSTED, trusted),
        ):
            new, old = _commit(root, name, rows)
            written, unchanged = written + new, unchanged + old
    return JobReport(
        job=JOB,
        batch=reference_batch,
        read=everything.num_rows + evaluation.num_rows,
        written=written,
        unchanged=unchanged,
        rejected={"in_evaluation": num_shared} if num_shared else {},
        versions=root.tables.versions([CONTRACT.name]),
        seconds=time.monotonic() - started,
    )


def held_out_sample_ids(root: Root) -> frozenset[str]:
    """Return the sample_ids that must not be trained on, whichever batch they lie in.

    A validation or evaluation image may stand in the pool too, byte for byte; its sample_row
    differs there, its sample_id does not. Take-downs do not shorten the list.
    """
    return sample_ids_of(root, HELD_OUT)


def sample_ids_of(root: Root, reference_sets: Sequence[str]) -> frozenset[str]:
    """Return the sample_ids of the members of the named sets."""
    if not root.tables.exists(CONTRACT.name):
        return frozenset()
    where = {"reference_set": list(reference_sets)}
    members = root.tables.open(CONTRACT.name).read(["sample_row"], where, exclude=False)
    rows = members["sample_row"].to_pylist()
    if not rows:
        return frozenset()
    found = root.tables.open("samples").read(["sample_id"], {"sample_row": rows}, exclude=False)
    return frozenset(found["sample_id"].to_pylist())


def _samples(root: Root, batch: str, role: str) -> pa.Table:
    rows = root.tables.read("samples", ["sample_row", "sample_id"], {"ingest_batch": batch})
    if not rows.num_rows:
        raise TableMissing(f"batch {batch} has no samples; ingest it first")
    found = root.tables.read("ingest_batches", ["role"], {"ingest_batch": batch})["role"]
    if found.to_pylist() != [role]:
        # A pool that is trusted by a slip of the hand would be trained on at every level.
        raise BadInput(
            f"batch {batch} was ingested as {', '.join(found.to_pylist())}, not as {role}; name "
            f"another batch, or ingest its source again as one of role {role}"
        )
    return rows


def _no_samples() -> pa.Table:
    return pa.table(
        {"sample_row": pa.array([], pa.int64()), "sample_id": pa.array([], pa.string())}
    )


def _is_held_out(samples: pa.Table, validation_fraction: float) -> pa.Array:
    ids = samples["sample_id"].to_pylist()
    return pa.array([hash_fraction(i, VALIDATION) < validation_fraction for i in ids], pa.bool_())


def _require(samples: pa.Table, minimum: int, name: str, counts: str) -> None:
    if samples.num_rows < minimum:
        raise NotEnoughReferences(
            f"the {name} set needs {minimum} images: {counts}; add images to the reference folder "
            "or change validation_fraction"
        )


def _commit(root: Root, name: str, samples: pa.Table) -> tuple[int, int]:
    """Write one set unless it stands; return rows written and rows unchanged."""
    slice_ = {"reference_set": name}
    if not samples.num_rows and root.tables.fingerprint(CONTRACT.name, slice_) is None:
        return 0, 0
    ids = samples["sample_id"].to_pylist()
    rows = samples["sample_row"].to_pylist()
    inputs = {"role": name, "members": sorted(zip(rows, ids, strict=True))}
    table = CONTRACT.table(
        {
            "reference_set": [name] * len(rows),
            "sample_row": rows,
            "role": [name] * len(rows),
        }
    )
    commit = root.tables.commit(CONTRACT.name, table, slice=slice_, inputs=inputs, job=JOB)
    return commit.written, commit.unchanged
