"""Measure every image of a batch: classical scores and an embedding, in one decoding pass."""

import time
from collections import Counter
from collections.abc import Mapping
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pipelines.batches import ImageChunk, ImageTask, image_tasks, open_batch, read_images
from pipelines.encoders import EncoderConfig, load_encoder
from pipelines.job import JobReport
from pipelines.scorers import PACKS
from pipelines.scorers.base import Scores
from pipelines.slices import Target, Writers, run_slices
from pipelines.spark import SparkSettings
from schemas.root import Root

JOB = "score"
EMBEDDINGS = "embeddings"


class ScoreConfig(BaseModel):
    """What is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pack: str = Field(default="classical", description="pack of scorers")
    encoder: EncoderConfig | None = Field(
        default=EncoderConfig(), description="encoder of the embeddings; None: no embeddings"
    )


def score(
    root: Root,
    batch: str,
    config: ScoreConfig,
    *,
    settings: SparkSettings | None = None,
    dry_run: bool = False,
) -> JobReport:
    """Write `scores/<pack>` and `embeddings` of a batch; what is current stays as it is.

    Raises:
        TableMissing: the batch was never ingested.
        JobAlreadyRunning: another process scores this batch.
        TasksFailed: a task failed on every try; nothing became visible.
    """
    began = time.monotonic()
    with root.lock(JOB, batch):
        facts = open_batch(root, batch)
        targets = _targets(config, batch, facts.inputs)
        stale = [t for t in targets if not t.is_current(root)]
        tasks = image_tasks(root, facts) if stale else []
        if dry_run:
            return JobReport(JOB, batch, read=len(facts), unchanged=0 if stale else len(facts))
        outcome = run_slices(
            root,
            targets,
            tasks,
            partial(measure, config=config),
            job=JOB,
            batch=batch,
            weights=[task.num_images for task in tasks],
            versions={"samples": facts.version},
            settings=settings,
        )
    return JobReport(
        JOB,
        batch,
        read=len(facts),
        written=outcome.written,
        unchanged=0 if stale else len(facts),
        rejected=dict(outcome.counts),
        versions=root.tables.versions([t.table for t in targets]),
        seconds=time.monotonic() - began,
    )


def scores_target(pack: str, batch: str, inputs: Mapping[str, str]) -> Target:
    """Return the slice of `scores/<pack>` that this code writes for a batch."""
    slice_ = {"scorer_version": PACKS[pack].version, "ingest_batch": batch}
    return Target(f"scores/{pack}", slice_, inputs)


def _targets(config: ScoreConfig, batch: str, inputs: Mapping[str, str]) -> list[Target]:
    targets = [scores_target(config.pack, batch, inputs)]
    if config.encoder is not None:
        slice_ = {"encoder_version": config.encoder.encoder_version, "ingest_batch": batch}
        targets.append(Target(EMBEDDINGS, slice_, inputs))
    return targets


def measure(task: ImageTask, writers: Writers, *, config: ScoreConfig) -> dict[str, int]:
    """Decode a task's images and write what the stale tables want; runs in an executor.

    Returns:
        Number of unreadable images by reason.
    """
    rejected: Counter[str] = Counter()
    for chunk in read_images(task):
        rejected.update(reason for _, reason in chunk.unreadable)
        if (scores := writers.get(f"scores/{config.pack}")) is not None:
            for table in _score_tables(config.pack, chunk):
                scores.write(table)
        if (embeddings := writers.get(EMBEDDINGS)) is not None and chunk.images:
            assert config.encoder is not None
            vectors = load_encoder(config.encoder).embed(chunk.images)
            embeddings.write(_embedding_table(chunk.sample_rows, vectors))
    return dict(rejected)


def _score_tables(pack_name: str, chunk: ImageChunk) -> list[pa.Table]:
    pack = PACKS[pack_name]
    tables = []
    if chunk.images:
        tables.append(_score_table(chunk.sample_rows, pack.score(chunk.images)))
    for row, reason in chunk.unreadable:
        tables.append(_score_table(np.array([row]), pack.unreadable(1, reason)))
    return tables


def _score_table(sample_rows: NDArray[np.int64], scores: Scores) -> pa.Table:
    columns = {
        name: pa.array(values, pa.float64(), mask=np.isnan(values))
        for name, values in scores.columns.items()
    }
    reasons = pa.array(scores.reasons, pa.string())
    return pa.table({"sample_row": sample_rows, **columns, "unscored_reason": reasons})


def _embedding_table(sample_rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> pa.Table:
    count, width = vectors.shape
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * width)
    lists = pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel()))
    return pa.table({"sample_row": sample_rows, "embedding": lists})
