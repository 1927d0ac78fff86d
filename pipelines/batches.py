"""The images of a batch for jobs: split into tasks by the driver, read and decoded by executors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ambient_omni.images import ImageLimits, ImageRejected, decode
from schemas.errors import TableMissing
from schemas.ids import sample_id_of
from schemas.root import Root
from schemas.shard_files import ShardReader, place_of

# Multiples of the encoder's batch, so that cutting a shard elsewhere changes no number.
_MIN_IMAGES_PER_TASK, _MAX_IMAGES_PER_TASK, _TASK_STEP = 64, 2048, 32
_TASKS_PER_BATCH = 32
_MAX_CHUNK_IMAGES = 128
_MAX_CHUNK_BYTES = 64 * 2**20  # decoded pixels held at once, beside one image

BYTES_CHANGED = "bytes_changed"


@dataclass(frozen=True)
class BatchFacts:
    """The samples of a batch at one version.

    Attributes:
        batch: its name.
        version: Delta version of `samples` that was read.
        fingerprint: what the batch's slice of `samples` was made from.
        shards: shard of each sample, in the order of `sample_rows`.
        sample_rows: int64 (N,), ascending; taken-down samples are left out.
    """

    batch: str
    version: int
    fingerprint: str
    shards: pa.ChunkedArray
    sample_rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sample_rows)

    @property
    def inputs(self) -> dict[str, Any]:
        """What a job over this batch has for input."""
        return {"samples": self.fingerprint}


def open_batch(root: Root, batch: str) -> BatchFacts:
    """Return the facts of an ingested batch.

    Raises:
        TableMissing: the batch was never ingested.
    """
    fingerprint = root.tables.fingerprint("samples", {"ingest_batch": batch})
    if fingerprint is None:
        known = root.tables.read("ingest_batches", ["ingest_batch"])["ingest_batch"].to_pylist()
        raise TableMissing(
            f"batch {batch!r} has no samples; run ingest on it first (there are: {known})"
        )
    snapshot = root.tables.open("samples")
    table = snapshot.read(["sample_row", "shard"], {"ingest_batch": batch})
    rows = table["sample_row"].to_numpy()
    return BatchFacts(batch, snapshot.version, fingerprint, table["shard"], rows)


@dataclass(frozen=True)
class ImageTask:
    """A run of samples of one shard: what one Spark task reads."""

    root: Path
    batch: str
    samples_version: int
    shard: str
    first_row: int
    last_row: int
    num_images: int
    exclusions_version: int | None


def images_per_task(num_images: int) -> int:
    """Return how many images a task of a batch takes at most.

    A small batch is cut finely, so that cores end together and progress shows; a large one gives
    a bounded number of files. The machine has no say: the cut is the same everywhere.
    """
    wanted = -(-num_images // (_TASKS_PER_BATCH * _TASK_STEP)) * _TASK_STEP
    return min(max(wanted, _MIN_IMAGES_PER_TASK), _MAX_IMAGES_PER_TASK)


def image_tasks(root: Root, facts: BatchFacts) -> list[ImageTask]:
    """Cut a batch into tasks of images of one shard each, in row order."""
    tasks, per_task = [], images_per_task(len(facts))
    exclusions = root.tables.version("exclusions")
    for shard in pc.unique(facts.shards).to_pylist():
        rows = facts.sample_rows[pc.equal(facts.shards, shard).to_numpy()]
        for start in range(0, len(rows), per_task):
            part = rows[start : start + per_task]
            tasks.append(
                ImageTask(
                    root=root.path,
                    batch=facts.batch,
                    samples_version=facts.version,
                    shard=shard,
                    first_row=int(part[0]),
                    last_row=int(part[-1]),
                    num_images=len(part),
                    exclusions_version=exclusions,
                )
            )
    return tasks


@dataclass(frozen=True)
class ImageChunk:
    """Some images of a task, few enough to be held at once.

    Attributes:
        sample_rows: int64 (N,) of the readable images.
        images: N uint8 RGB arrays (H, W, 3).
        unreadable: (sample_row, reason) of images whose bytes are not what was ingested.
    """

    sample_rows: NDArray[np.int64]
    images: Sequence[NDArray[np.uint8]]
    unreadable: Sequence[tuple[int, str]]

    def __len__(self) -> int:
        return len(self.images) + len(self.unreadable)


def read_images(task: ImageTask) -> Iterator[ImageChunk]:
    """Decode a task's images once each, in chunks bounded by count and bytes.

    Raises:
        BadInput: the shard itself is gone, or its store cannot be reached.
    """
    place = place_of(Root(task.root).shards, task.shard)
    rows: list[int] = []
    images: list[NDArray[np.uint8]] = []
    unreadable: list[tuple[int, str]] = []
    held = 0
    with ShardReader(place) as shard:
        for sample in _samples_of(task).to_pylist():
            try:
                image = _decode(shard, sample)
            except ImageRejected as error:
                unreadable.append((sample["sample_row"], error.reason))
                continue
            rows.append(sample["sample_row"])
            images.append(image)
            held += image.nbytes
            if len(images) >= _MAX_CHUNK_IMAGES or held >= _MAX_CHUNK_BYTES:
                yield ImageChunk(np.array(rows, np.int64), images, unreadable)
                rows, images, unreadable, held = [], [], [], 0
    if images or unreadable:
        yield ImageChunk(np.array(rows, np.int64), images, unreadable)


def read_ids(task: ImageTask) -> tuple[NDArray[np.int64], list[str]]:
    """Return the sample rows, int64 (N,) ascending, and sample ids of a task."""
    samples = _samples_of(task)
    return samples["sample_row"].to_numpy(), samples["sample_id"].to_pylist()


def read_captions(task: ImageTask) -> dict[int, str | None]:
    """Return the captions of a task's samples by sample row."""
    samples = _samples_of(task, ["sample_row", "caption"])
    return dict(zip(*(samples[name].to_pylist() for name in samples.column_names), strict=True))


_PLACES = ("sample_row", "sample_id", "byte_offset", "num_bytes", "width", "height")


def _samples_of(task: ImageTask, columns: Sequence[str] = _PLACES) -> pa.Table:
    where = (task.root, task.samples_version, task.exclusions_version, task.batch, task.shard)
    table = _shard_samples(*where)
    keys = table["sample_row"]
    inside = pc.and_(pc.greater_equal(keys, task.first_row), pc.less_equal(keys, task.last_row))
    return table.filter(inside).select(list(columns))


@lru_cache(maxsize=1)
def _shard_samples(
    root: Path, version: int, exclusions_version: int | None, batch: str, shard: str
) -> pa.Table:
    # Tasks of one shard follow one another in a worker, so its rows are read once. Workers outlive
    # a job: a take-down between two jobs must not meet rows from before it, hence its version.
    snapshot = Root(root).tables.open("samples", version)
    return snapshot.read(where={"ingest_batch": batch, "shard": shard})


def _decode(shard: ShardReader, sample: dict[str, Any]) -> NDArray[np.uint8]:
    data = shard.read(sample["byte_offset"], sample["num_bytes"])
    if sample_id_of(data) != sample["sample_id"]:
        raise ImageRejected(BYTES_CHANGED, "the bytes in the shard are not those ingested")
    # Ingest let it in under its own limits: no more pixels than it saw, however small.
    limits = ImageLimits(max_pixels=sample["width"] * sample["height"], min_side=1)
    return decode(data, limits)
