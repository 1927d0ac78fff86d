"""Ask a noise classifier about every image of a batch, at each of its levels."""

import time
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ambient_omni.classifier.annotators import Curves
from ambient_omni.classifier.noise_classifier import NoiseClassifier, load, transform_of
from ambient_omni.data.pack_writer import PackWriter
from ambient_omni.data.packs import Pack, PackMissing, PackSet, to_x0
from pipelines.batches import BatchFacts, ImageTask, image_tasks, open_batch, read_ids
from pipelines.job import JobReport
from pipelines.jobs.pack import pack_inputs
from pipelines.measures import curves_slice
from pipelines.slices import Target, Writers, run_slices
from pipelines.spark import SparkSettings
from schemas.root import Root

JOB = "curves"
TABLE = "noise_curves"
_MAX_CHUNK_BYTES = 8 * 2**20  # float32 pixels graded at once; the network holds some times that


def curves(
    root: Root,
    batch: str,
    classifier_id: str,
    *,
    settings: SparkSettings | None = None,
    dry_run: bool = False,
) -> JobReport:
    """Write `noise_curves` of a batch: logits and their standard errors at the classifier's levels.

    Raises:
        TableMissing: the batch was never ingested.
        BadInput: there is no such classifier.
        PackMissing: the batch has no current pack under the classifier's transform.
        JobAlreadyRunning: another process does this job on this batch.
        TasksFailed: a task failed on every try; nothing became visible.
    """
    began = time.monotonic()
    with root.lock(f"{JOB}-{classifier_id}", batch):
        facts = open_batch(root, batch)
        target = Target(TABLE, curves_slice(classifier_id, batch), facts.inputs)
        current = target.is_current(root)
        written = 0
        if not current and not dry_run:
            written = _run(root, facts, target, classifier_id, settings)
    return JobReport(
        JOB,
        batch,
        read=len(facts),
        written=written,
        unchanged=len(facts) if current else 0,
        versions=root.tables.versions([TABLE]),
        seconds=time.monotonic() - began,
    )


def _run(
    root: Root,
    facts: BatchFacts,
    target: Target,
    classifier_id: str,
    settings: SparkSettings | None,
) -> int:
    transform = transform_of(root, classifier_id)
    writer = PackWriter(root.packs, transform, facts.batch, pack_inputs(facts))
    if not writer.is_current():
        raise PackMissing(
            f"batch {facts.batch!r} has no current pack for {transform.noise_space}; "
            f"build it with `python -m pipelines pack --batch {facts.batch}`"
        )
    tasks = image_tasks(root, facts)
    outcome = run_slices(
        root,
        [target],
        tasks,
        partial(measure, classifier_id=classifier_id, transform_id=transform.transform_id),
        job=JOB,
        batch=facts.batch,
        weights=[task.num_images for task in tasks],
        versions={"samples": facts.version},
        settings=settings,
    )
    return outcome.written


def measure(
    task: ImageTask, writers: Writers, *, classifier_id: str, transform_id: str
) -> dict[str, int]:
    """Write the curves of a task's images; runs in an executor."""
    classifier = _load_once(task.root, classifier_id)
    pack = Pack.open(Root(task.root).packs, transform_id, task.batch)
    sample_rows, sample_ids = read_ids(task)
    places = PackSet([pack]).index_of(sample_rows)
    step = max(1, _MAX_CHUNK_BYTES // (4 * int(np.prod(pack.shape))))
    for start in range(0, len(places), step):
        part = slice(start, start + step)
        folds = classifier.folds_of(sample_ids[part])
        found = classifier.curves(to_x0(pack.take(places[part])), sample_ids[part], folds)
        writers[TABLE].write(_table(sample_rows[part], folds, found))
    return {}


@lru_cache(maxsize=1)
def _load_once(root: Path, classifier_id: str) -> NoiseClassifier:
    return load(Root(root), classifier_id)


def _table(sample_rows: NDArray[np.int64], folds: NDArray[np.integer], found: Curves) -> pa.Table:
    return pa.table(
        {
            "sample_row": sample_rows,
            "fold": pa.array(folds, pa.int32()),
            "logits": _lists(found.logits),
            "logit_standard_error": _lists(found.logit_standard_error),
        }
    )


def _lists(values_NL: NDArray[np.float32]) -> pa.ListArray:
    count, width = values_NL.shape
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(values_NL.ravel(), pa.float32()))
