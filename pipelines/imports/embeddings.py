"""Embeddings that others made, as a slice of `embeddings` under a version of their own."""

import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.batches import open_batch
from pipelines.imports.files import Listing
from pipelines.imports.matching import match
from pipelines.imports.scores import ImportedFile, measure_version
from pipelines.job import JobReport
from pipelines.slices import Target
from pipelines.spark import SparkSettings
from schemas.errors import BadInput
from schemas.root import Root

JOB = "import-embeddings"
TABLE = "embeddings"


def import_embeddings(
    root: Root,
    batch: str,
    file: ImportedFile,
    column: str = "embedding",
    *,
    name: str,
    settings: SparkSettings | None = None,
    dry_run: bool = False,
) -> JobReport:
    """Write a column of vectors as embeddings of a batch, `encoder_version` = `<name>-<hash>`.

    Give that version to `ood` or `dedup` as `encoder: {imported: VERSION}`. A sample without a
    vector cannot be compared with others, so every sample needs one.

    Raises:
        BadInput: the column is missing, vectors differ in length or hold no finite numbers, or a
            sample has none.
        TableMissing: the batch was never ingested.
    """
    began = time.monotonic()
    with root.lock(JOB, batch):
        facts, listing = open_batch(root, batch), file.read()
        vectors_NF = _vectors(listing, column)
        # Rows are compared by the vectors alone.
        listing = Listing(
            listing.path,
            listing.digest,
            listing.key_kind,
            listing.keys,
            {column: listing.columns[column]},
        )
        matches = match(root, facts, listing, settings)
        if not matches.found.all():
            missing = int(matches.sample_rows[~matches.found][0])
            raise BadInput(
                f"{matches.note()} (first without: sample_row {missing}); a batch needs a vector "
                "for every sample"
            )
        version = measure_version(name, listing.digest)
        inputs = {**facts.inputs, "file": listing.digest, "column": column}
        target = Target(TABLE, {"encoder_version": version, "ingest_batch": batch}, inputs)
        current = target.is_current(root)
        if not dry_run and not current:
            _commit(root, target, matches.sample_rows, vectors_NF[matches.file_rows])
    return JobReport(
        JOB,
        batch,
        read=len(facts),
        written=0 if dry_run or current else len(facts),
        unchanged=len(facts) if current else 0,
        rejected=dict(matches.rejected),
        versions=root.tables.versions([TABLE]),
        seconds=time.monotonic() - began,
        notes=(matches.note(), f"encoder_version {version}"),
    )


def _vectors(listing: Listing, column: str) -> NDArray[np.float32]:
    if column not in listing.columns:
        raise BadInput(f"{listing.path} has no column {column!r}; it has {sorted(listing.columns)}")
    values = listing.columns[column]
    if not (pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type)):
        raise BadInput(f"{listing.path}: {column} is {values.type}, not a list of numbers")
    lengths = pc.unique(pc.list_value_length(values)).to_pylist()
    if len(lengths) != 1 or not lengths[0]:
        raise BadInput(f"{listing.path}: vectors of {column} have lengths {lengths[:5]}, not one")
    try:
        flat = values.flatten().cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise BadInput(f"{listing.path}: {column} holds no numbers ({error})") from error
    vectors: NDArray[np.float32] = flat.reshape(len(values), lengths[0])
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise BadInput(f"{listing.path}: {len(bad)} vectors are not finite, first row {bad[0] + 1}")
    return vectors


def _commit(
    root: Root, target: Target, rows_N: NDArray[np.int64], vectors_NF: NDArray[np.float32]
) -> None:
    count, width = vectors_NF.shape
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * width)
    lists = pa.ListArray.from_arrays(offsets, pa.array(vectors_NF.ravel()))
    root.tables.commit(
        TABLE,
        pa.table({"sample_row": rows_N, "embedding": lists}),
        slice=target.slice,
        inputs=target.inputs,
        job=JOB,
        versions=root.tables.versions(["samples"]),
    )
