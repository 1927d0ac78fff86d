"""Measure how far each image of a batch lies from a reference set, in an encoder's space."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pipelines.batches import BatchFacts, open_batch
from pipelines.encoders import EncoderConfig, ImportedEncoder
from pipelines.job import JobReport
from pipelines.ood import unit_length
from pipelines.ood_model import MEASURES, PERCENTILES, OodModel, fit_model
from pipelines.slices import Target, Writers, run_slices
from pipelines.spark import SparkSettings
from schemas.errors import TableMissing
from schemas.ids import canonical_hash, split_sample_row
from schemas.root import Root

JOB = "ood"
TABLE = "ood_scores"
EMBEDDINGS = "embeddings"
NO_EMBEDDING = "no_embedding"
# Raise it whenever distances change.
_CODE_VERSION = 2
_ROWS_AT_ONCE = 4096

_COLUMNS = (*MEASURES, *PERCENTILES)
_FEW_REFERENCES = "too few references to hold some out"
_FEW_BACKGROUND = "the background has too few vectors"


class OodConfig(BaseModel):
    """How distance is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: EncoderConfig | ImportedEncoder = Field(
        default=EncoderConfig(), description="whose vectors are compared"
    )
    max_components: int = Field(default=64, ge=1, description="principal components kept at most")
    num_neighbours: int = Field(default=5, ge=1, description="k of the neighbour distance")
    background: tuple[str, ...] = Field(
        default=(),
        description="batches that the relative distance tells the set from; none: the batch that "
        "is measured, so that relative distances of two batches cannot be compared",
    )
    max_background: int = Field(
        default=4000, ge=100, description="vectors of the background at most, evenly spread"
    )

    @property
    def scorer_version(self) -> str:
        """Name and hash of everything but the data."""
        facts = [_CODE_VERSION, self.encoder.encoder_version, self.max_components]
        background = [sorted(self.background), self.max_background]
        return f"ood-{canonical_hash([*facts, self.num_neighbours, background])}"

    def background_of(self, batch: str) -> list[str]:
        """Return the batches of the background when `batch` is measured."""
        return sorted(self.background) or [batch]


@dataclass(frozen=True)
class OodTask:
    """One data file of embeddings; or, without a file, samples that have no vector."""

    file: str | None
    without_vector: tuple[int, ...] = ()


def ood(
    root: Root,
    batch: str,
    reference_set: str,
    config: OodConfig,
    *,
    settings: SparkSettings | None = None,
    dry_run: bool = False,
) -> JobReport:
    """Write `ood_scores` of a batch against a named reference set.

    Raises:
        TableMissing: the batch, the set or embeddings that are needed are not there.
        NotEnoughReferences: the set is too small to measure against.
        JobAlreadyRunning: another process does this job on this batch.
        TasksFailed: a task failed on every try; nothing became visible.
    """
    began = time.monotonic()
    with root.lock(f"{JOB}-{reference_set}", batch):
        facts = open_batch(root, batch)
        members = _members(root, reference_set)
        target = _target(root, facts, reference_set, members, config)
        current = target.is_current(root)
        outcome_written, missing = 0, 0
        if not current and not dry_run:
            outcome_written, missing = _run(root, facts, target, members, config, settings)
    return JobReport(
        JOB,
        batch,
        read=len(facts),
        written=outcome_written,
        unchanged=len(facts) if current else 0,
        rejected={NO_EMBEDDING: missing} if missing else {},
        versions=root.tables.versions([TABLE]),
        seconds=time.monotonic() - began,
    )


def _members(root: Root, reference_set: str) -> NDArray[np.int64]:
    rows = root.tables.read("reference_sets", ["sample_row"], {"reference_set": reference_set})
    if not rows.num_rows:
        raise TableMissing(f"there is no reference set {reference_set!r}; define it first")
    members: NDArray[np.int64] = rows["sample_row"].to_numpy()
    return members


def _target(
    root: Root,
    facts: BatchFacts,
    reference_set: str,
    members: NDArray[np.int64],
    config: OodConfig,
) -> Target:
    background = config.background_of(facts.batch)
    batches = sorted({facts.batch, *_batches_of(root, members), *background})
    inputs = {name: _embedded(root, name, config) for name in batches}
    return Target(
        TABLE,
        {
            "scorer_version": config.scorer_version,
            "reference_set": reference_set,
            "ingest_batch": facts.batch,
        },
        {
            "embeddings": inputs,
            "members": root.tables.fingerprint("reference_sets", {"reference_set": reference_set}),
            **facts.inputs,
        },
    )


def _batches_of(root: Root, sample_rows: NDArray[np.int64]) -> list[str]:
    ordinals = {split_sample_row(int(row))[0] for row in sample_rows}
    known = root.tables.read("ingest_batches", ["ingest_batch", "batch_ordinal"]).to_pylist()
    return [row["ingest_batch"] for row in known if row["batch_ordinal"] in ordinals]


def _embedded(root: Root, batch: str, config: OodConfig) -> str:
    version = config.encoder.encoder_version
    slice_ = {"encoder_version": version, "ingest_batch": batch}
    found = root.tables.fingerprint(EMBEDDINGS, slice_)
    if found is None:
        known = root.tables.read(EMBEDDINGS, ["encoder_version"], {"ingest_batch": batch})
        there = sorted(set(known["encoder_version"].to_pylist()))
        make = (
            "run import-embeddings on it"
            if isinstance(config.encoder, ImportedEncoder)
            else "run score on it with the same encoder settings"
        )
        raise TableMissing(
            f"batch {batch!r} has no embeddings of {version} (there are: "
            f"{', '.join(there) or 'none'}); {make}"
        )
    return found


def _run(
    root: Root,
    facts: BatchFacts,
    target: Target,
    members: NDArray[np.int64],
    config: OodConfig,
    settings: SparkSettings | None,
) -> tuple[int, int]:
    snapshot = root.tables.open(EMBEDDINGS)
    where = {"encoder_version": config.encoder.encoder_version, "ingest_batch": facts.batch}
    files = snapshot.file_uris(where)
    have = snapshot.read(["sample_row"], where)["sample_row"].to_numpy()
    without = np.setdiff1d(facts.sample_rows, have)
    tasks = [OodTask(file) for file in files]
    if len(without):
        tasks.append(OodTask(None, tuple(without.tolist())))
    model = _fit(root, members, config, config.background_of(facts.batch))
    model_file = _store_model(root, model, target)
    try:
        outcome = run_slices(
            root,
            [target],
            tasks,
            partial(measure, model_file=model_file, excluded=snapshot.excluded_sample_rows()),
            job=JOB,
            batch=facts.batch,
            unit="files",
            versions={EMBEDDINGS: snapshot.version, "samples": facts.version},
            settings=settings,
        )
    finally:
        model_file.unlink(missing_ok=True)
    return outcome.written, len(without)


def _fit(
    root: Root, members: NDArray[np.int64], config: OodConfig, background: list[str]
) -> OodModel:
    rows, vectors = _vectors(root, config, _batches_of(root, members), members)
    spread = _spread_rows(root, config, background)
    return fit_model(
        vectors,
        rows,
        max_components=config.max_components,
        num_neighbours=config.num_neighbours,
        background_BD=_vectors(root, config, background, spread)[1],
    )


def _spread_rows(root: Root, config: OodConfig, batches: list[str]) -> NDArray[np.int64]:
    """Return sample rows of batches, at most as many as the background takes, evenly spread."""
    where = {"encoder_version": config.encoder.encoder_version, "ingest_batch": batches}
    found = root.tables.open(EMBEDDINGS).read(["sample_row"], where)["sample_row"].to_numpy()
    places = np.linspace(0, len(found), config.max_background, endpoint=False).astype(np.int64)
    spread: NDArray[np.int64] = found[np.unique(places)] if len(found) else found
    return spread


def _vectors(
    root: Root, config: OodConfig, batches: list[str], sample_rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    where = {
        "encoder_version": config.encoder.encoder_version,
        "ingest_batch": batches,
        "sample_row": sample_rows.tolist(),
    }
    table = root.tables.open(EMBEDDINGS).read(["sample_row", "embedding"], where)
    vectors = _matrix(table["embedding"].combine_chunks())
    return table["sample_row"].to_numpy(), unit_length(vectors)


def _store_model(root: Root, model: OodModel, target: Target) -> Path:
    """Put the model where every executor finds it: it may be too large to travel in a task."""
    name = canonical_hash([dict(target.slice), dict(target.inputs)])
    path = root.work / f"{JOB}-{name}-{os.getpid()}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **model.arrays())  # type: ignore[arg-type]
    return path


@lru_cache(maxsize=1)
def _load_model(path: Path) -> OodModel:
    with np.load(path) as arrays:
        return OodModel.from_arrays(arrays)


def measure(
    task: OodTask, writers: Writers, *, model_file: Path, excluded: frozenset[int]
) -> dict[str, int]:
    """Write the distances of one file of embeddings; runs in an executor."""
    if task.file is None:
        writers[TABLE].write(_without_vector(task.without_vector))
        return {}
    model = _load_model(model_file)
    for rows, vectors in _read_vectors(task.file, excluded):
        writers[TABLE].write(_distance_table(rows, model.measure(vectors, rows)))
    return {}


def _distance_table(
    sample_rows: NDArray[np.int64], found: Mapping[str, NDArray[np.float64]]
) -> pa.Table:
    columns = {
        name: pa.array(found[name], pa.float64(), mask=np.isnan(found[name])) for name in _COLUMNS
    }
    # What a model cannot give it gives to no image.
    missing = [name for name in _COLUMNS if columns[name].null_count]
    said = (f"{name}: {_why_missing(name, missing)}" for name in missing)
    reason = "; ".join(said) or None
    reasons = pa.repeat(pa.scalar(reason, pa.string()), len(sample_rows))
    return pa.table({"sample_row": sample_rows, **columns, "unscored_reason": reasons})


def _why_missing(name: str, missing: Sequence[str]) -> str:
    relative = name.startswith("relative") and "relative_mahalanobis" in missing
    return _FEW_BACKGROUND if relative else _FEW_REFERENCES


def _read_vectors(
    file: str, excluded: frozenset[int]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    gone = np.array(sorted(excluded), np.int64)
    with pq.ParquetFile(file) as parquet:
        for part in parquet.iter_batches(_ROWS_AT_ONCE, columns=["sample_row", "embedding"]):
            rows, vectors = part["sample_row"].to_numpy(), _matrix(part["embedding"])
            kept = ~np.isin(rows, gone)
            if kept.any():
                yield rows[kept], unit_length(vectors[kept])


def _matrix(lists: pa.ListArray) -> NDArray[np.float32]:
    matrix: NDArray[np.float32] = lists.flatten().to_numpy().reshape(len(lists), -1)
    return matrix


def _without_vector(sample_rows: tuple[int, ...]) -> pa.Table:
    count = len(sample_rows)
    return pa.table(
        {
            "sample_row": pa.array(sample_rows, pa.int64()),
            **{name: pa.nulls(count, pa.float64()) for name in _COLUMNS},
            "unscored_reason": pa.array([NO_EMBEDDING] * count, pa.string()),
        }
    )
