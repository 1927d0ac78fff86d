"""Ask a noise classifier about every image of a batch: curves over its levels.

Executors load the classifier once a process, on a GPU where the cluster offers one, and grade in
chunks bounded by bytes. What a task has graded stands in a file of the classifier's folder until
the batch is committed, so that a job that was stopped goes on with what is missing.
"""

import os
import shutil
import time
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ambient_omni.classifier.annotators import Annotator, Curves
from ambient_omni.classifier.config import AnnotatorConfig, annotator_id
from ambient_omni.classifier.noise_classifier import NoiseClassifier, load, space_of
from ambient_omni.classifier.prepared import annotator_for, prepare
from ambient_omni.classifier.stored import config_of, require_current
from ambient_omni.data.pack_writer import PackWriter
from ambient_omni.data.packs import Pack, PackMissing, PackSet, to_x0
from pipelines.batches import BatchFacts, ImageTask, image_tasks, open_batch, read_ids
from pipelines.job import JobReport
from pipelines.jobs.pack import pack_inputs
from pipelines.measures import classifier_row, curves_slice
from pipelines.slices import Target, Writers, run_slices
from pipelines.spark import SparkSettings
from schemas.root import Root
from schemas.tables import fingerprint_of

JOB = "curves"
TABLE = "noise_curves"
_MAX_CHUNK_BYTES = 8 * 2**20  # float32 pixels graded at once; the network holds some times that


def curves(
    root: Root,
    batch: str,
    classifier_id: str,
    *,
    annotator: AnnotatorConfig | None = None,
    settings: SparkSettings | None = None,
    dry_run: bool = False,
) -> JobReport:
    """Write `noise_curves` of a batch: logits and their standard errors at the classifier's levels.

    Args:
        root: where everything is.
        batch: whose images.
        classifier_id: who grades.
        annotator: how it is asked; the classifier's own grid by default. It is prepared first
            where that was not done (`classifier.prepared`).
        settings: how to reach Spark.
        dry_run: only say what would be done.

    Raises:
        TableMissing: the batch was never ingested.
        BadInput: there is no such classifier.
        ClassifierRefused: another version made it.
        PackMissing: the batch has no current pack of the classifier's pixels or latents.
        JobAlreadyRunning: another process does this job on this batch.
        TasksFailed: a task failed on every try; nothing became visible.
    """
    began = time.monotonic()
    with root.lock(f"{JOB}-{classifier_id}", batch):
        facts = open_batch(root, batch)
        # The default says nothing, so that slices from before there was a choice stay current.
        how = {} if annotator is None else {"annotator": annotator.model_dump(mode="json")}
        require_current(root, classifier_id)
        # The same id can be remade of lost files, and is then another network.
        weights = {"weights": str(classifier_row(root, classifier_id)["weights_sha256"])}
        target = Target(TABLE, curves_slice(classifier_id, batch), facts.inputs | how | weights)
        current = target.is_current(root)
        written = 0
        if not current and not dry_run:
            written = _run(root, facts, target, classifier_id, annotator, settings)
    seconds = time.monotonic() - began
    return JobReport(
        JOB,
        batch,
        read=len(facts),
        written=written,
        unchanged=len(facts) if current else 0,
        versions=root.tables.versions([TABLE]),
        seconds=seconds,
        notes=(f"{written / seconds:.0f} images/s, all told",) if written else (),
    )


def _run(
    root: Root,
    facts: BatchFacts,
    target: Target,
    classifier_id: str,
    annotator: AnnotatorConfig | None,
    settings: SparkSettings | None,
) -> int:
    space = space_of(root, classifier_id).space
    writer = PackWriter(root.packs, space, facts.batch, pack_inputs(facts))
    if not writer.is_current():
        raise PackMissing(
            f"batch {facts.batch!r} has no current pack for {space.noise_space}; "
            + space.how_to_build(facts.batch)
        )
    prepare(root, classifier_id, annotator or config_of(root, classifier_id).own_grid)
    tasks = image_tasks(root, facts)
    folder = root.classifiers / classifier_id / f"parts-{facts.batch}"
    parts = folder / fingerprint_of(target.inputs)
    outcome = run_slices(
        root,
        [target],
        tasks,
        partial(
            measure,
            classifier_id=classifier_id,
            transform_id=space.transform_id,
            annotator=annotator,
            parts=parts,
        ),
        job=JOB,
        batch=facts.batch,
        weights=[task.num_images for task in tasks],
        versions={"samples": facts.version},
        settings=settings,
    )
    shutil.rmtree(folder, ignore_errors=True)
    return outcome.written


def measure(
    task: ImageTask,
    writers: Writers,
    *,
    classifier_id: str,
    transform_id: str,
    annotator: AnnotatorConfig | None,
    parts: Path,
) -> dict[str, int]:
    """Write the curves of a task's images; runs in an executor."""
    part = parts / f"{task.first_row}-{task.last_row}-{task.exclusions_version}.arrow"
    if part.exists():
        with pa.memory_map(str(part)) as file:
            writers[TABLE].write(pa.ipc.open_file(file).read_all())
        return {"resumed": task.num_images}
    classifier, config, asked = _load_once(task.root, classifier_id, annotator)
    pack = Pack.open(Root(task.root).packs, transform_id, task.batch)
    sample_rows, sample_ids = read_ids(task)
    places = PackSet([pack]).index_of(sample_rows)
    step = max(1, _MAX_CHUNK_BYTES // (4 * int(np.prod(pack.shape))))
    tables = []
    for start in range(0, len(places), step):
        some = slice(start, start + step)
        found = asked.curves(to_x0(pack.take(places[some])), sample_ids[some])
        folds = classifier.folds_of(sample_ids[some])
        found = found.at(classifier.sigmas)
        tables.append(_table(sample_rows[some], folds, found, annotator_id(config)))
    table = pa.concat_tables(tables)
    writers[TABLE].write(table)
    _keep(table, part)
    return {"resumed": 0}


def _keep(table: pa.Table, part: Path) -> None:
    """Write a part under its name only when it is complete."""
    part.parent.mkdir(parents=True, exist_ok=True)
    aside = part.with_name(f".{part.name}.{os.getpid()}")
    with pa.ipc.new_file(str(aside), table.schema) as writer:
        writer.write_table(table)
    aside.replace(part)


@lru_cache(maxsize=1)
def _load_once(
    root: Path, classifier_id: str, annotator: AnnotatorConfig | None
) -> tuple[NoiseClassifier, AnnotatorConfig, Annotator]:
    classifier = load(Root(root), classifier_id).to(_device())
    config = annotator or classifier.config.own_grid
    return classifier, config, annotator_for(Root(root), classifier, config)


def _device() -> str:
    """Return the GPU that Spark gave this task, any GPU in local mode, or the CPU."""
    import torch
    from pyspark import TaskContext

    if not torch.cuda.is_available():
        return "cpu"
    context = TaskContext.get()
    offered = context.resources().get("gpu") if context else None
    return f"cuda:{offered.addresses[0]}" if offered else "cuda"


def _table(
    sample_rows: NDArray[np.int64], folds: NDArray[np.integer], found: Curves, asked: str
) -> pa.Table:
    return pa.table(
        {
            "sample_row": pa.array(sample_rows),
            "fold": pa.array(folds, pa.int32()),
            "logits": _lists(found.logits),
            "logit_standard_error": _lists(found.logit_standard_error),
            "evaluations": pa.array(found.evaluations, pa.int32()),
            "annotator_id": pa.array([asked] * len(sample_rows), pa.string()),
        }
    )


def _lists(values_NL: NDArray[np.float32]) -> pa.ListArray:
    count, width = values_NL.shape
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(values_NL.ravel(), pa.float32()))
