"""Build the training pack of one batch under one transform: decode once, never again."""

import time
from dataclasses import dataclass
from functools import partial

from ambient_omni.data.pack_writer import PackWriter
from ambient_omni.data.packs import ChunkInfo
from ambient_omni.data.transforms import Transform
from pipelines.batches import BatchFacts, ImageTask, image_tasks, open_batch, read_images
from pipelines.job import JobReport
from pipelines.spark import SparkSettings, run_tasks
from schemas.errors import BadInput
from schemas.ids import canonical_hash
from schemas.root import Root

JOB = "pack"


@dataclass(frozen=True)
class ChunkTask:
    """One chunk of the pack and the images that go into it."""

    number: int
    images: ImageTask


def build_pack(
    root: Root,
    batch: str,
    transform: Transform,
    *,
    settings: SparkSettings | None = None,
    dry_run: bool = False,
) -> JobReport:
    """Write the pack of a batch. A stopped build goes on where it was; a current one stays.

    Raises:
        TableMissing: the batch was never ingested.
        JobAlreadyRunning: another process builds this pack.
        TasksFailed: an image cannot be read any more, or a task failed on every try.
    """
    began = time.monotonic()
    with root.lock(f"{JOB}-{transform.transform_id}", batch):
        facts = open_batch(root, batch)
        writer = PackWriter(root.packs, transform, batch, pack_inputs(facts))
        current = writer.is_current()
        written = 0 if current or dry_run else _build(root, facts, writer, settings)
    return JobReport(
        JOB,
        batch,
        read=len(facts),
        written=written,
        unchanged=len(facts) if current else 0,
        versions={"samples": facts.version},
        seconds=time.monotonic() - began,
    )


def pack_inputs(facts: BatchFacts) -> str:
    """Return the fingerprint of what a pack is made from, beside its transform.

    The rows themselves count: a take-down removes one without changing the batch's slice.
    """
    return canonical_hash([facts.fingerprint, canonical_hash(facts.sample_rows.tolist())])


def _build(
    root: Root, facts: BatchFacts, writer: PackWriter, settings: SparkSettings | None
) -> int:
    tasks = [ChunkTask(n, task) for n, task in enumerate(image_tasks(root, facts))]
    writer.begin(resume=True)
    found = {task.number: writer.finished(task.number, task.images.num_images) for task in tasks}
    done = {number: info for number, info in found.items() if info is not None}
    left = [task for task in tasks if task.number not in done]
    infos = run_tasks(
        left,
        partial(write_chunk, writer=writer),
        label=f"{JOB} {facts.batch}",
        weights=[task.images.num_images for task in left],
        unit="images",
        settings=settings,
    )
    writer.finish([*done.values(), *infos])
    return sum(info.num_rows for info in infos)


def write_chunk(task: ChunkTask, *, writer: PackWriter) -> ChunkInfo:
    """Decode, transform and write one chunk; runs in an executor.

    Raises:
        BadInput: the shard or an image of it cannot be read any more.
    """
    chunk_writer, transform = writer.chunk(task.number), writer.transform
    assert isinstance(transform, Transform)  # latents are made from these packs, not from images
    with chunk_writer:
        for chunk in read_images(task.images):
            for row, reason in chunk.unreadable:
                raise BadInput(
                    f"sample_row {row} in shard {task.images.shard} cannot be read any more "
                    f"({reason}); restore the shard or exclude the sample"
                )
            for row, image in zip(chunk.sample_rows, chunk.images, strict=True):
                chunk_writer.add(int(row), transform.apply(image))
    return chunk_writer.info
