"""Measure every image of a batch: packs of scores and an embedding, in one decoding pass."""

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.batches import (
    BatchFacts,
    ImageChunk,
    ImageTask,
    image_tasks,
    open_batch,
    read_captions,
    read_images,
)
from pipelines.encoders import EncoderConfig, load_encoder
from pipelines.job import JobReport
from pipelines.jobs.score_plan import PackPlan, plan_pack, score_table
from pipelines.scorers import PACKS
from pipelines.scorers.base import Pack, Scores, score_packs
from pipelines.scorers.clip import clip_pack
from pipelines.scorers.clip_network import ClipConfig
from pipelines.scorers.images import Images
from pipelines.slices import Target, Writers, run_slices
from pipelines.spark import SparkSettings
from schemas.errors import BadInput
from schemas.root import Root

JOB = "score"
RESCORE = "rescore"
EMBEDDINGS = "embeddings"
# How many images a dry run measures, to say how long the rest would take.
_TIMED_IMAGES = 12


class ScoreConfig(BaseModel):
    """What is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    packs: tuple[str, ...] = Field(
        default=("classical",), min_length=1, description="packs of scorers; one decoding for all"
    )
    encoder: EncoderConfig | None = Field(
        default=EncoderConfig(), description="encoder of the embeddings; None: no embeddings"
    )

    clip: ClipConfig = Field(default=ClipConfig(), description="network of the pack `clip`")

    @model_validator(mode="before")
    @classmethod
    def _one_pack(cls, values: Any) -> Any:
        """Take `pack: name`, as configs of one pack say it."""
        if isinstance(values, dict) and "pack" in values and "packs" not in values:
            return {k: v for k, v in values.items() if k != "pack"} | {"packs": (values["pack"],)}
        return values

    @model_validator(mode="after")
    def _are_packs(self) -> "ScoreConfig":
        unknown = [name for name in self.packs if name not in PACKS]
        if unknown or len(set(self.packs)) < len(self.packs):
            raise ValueError(f"packs {list(self.packs)}: want different ones of {sorted(PACKS)}")
        return self

    @property
    def pack(self) -> str:
        """The first pack: the one that is ranked by and shown."""
        return self.packs[0]

    def pack_of(self, name: str) -> Pack:
        """Return the pack of that name under these settings."""
        return clip_pack(self.clip) if name == "clip" else PACKS[name]


def score(
    root: Root,
    batch: str,
    config: ScoreConfig,
    *,
    settings: SparkSettings | None = None,
    dry_run: bool = False,
) -> JobReport:
    """Write `scores/<pack>` of each pack and `embeddings` of a batch; what is current stays.

    A scorer whose weights are missing is skipped and named in the report. When only some scorers
    of a pack changed or came, the other columns are kept and those alone are measured.

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
        plans = _plans(root, config, facts, stale)
        tasks = image_tasks(root, facts) if stale else []
        notes = [*_skipped(config), *(note for plan in plans.values() for note in plan.notes())]
        if dry_run:
            unchanged = 0 if stale else len(facts)
            notes += _estimate(tasks, plans, config, stale, len(facts), settings)
            return JobReport(JOB, batch, read=len(facts), unchanged=unchanged, notes=tuple(notes))
        outcome = run_slices(
            root,
            targets,
            tasks,
            partial(measure, config=config, plans=plans),
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
        notes=tuple(notes),
    )


def rescore(
    root: Root,
    config: ScoreConfig,
    *,
    settings: SparkSettings | None = None,
    dry_run: bool = False,
) -> JobReport:
    """Bring the scores of all batches up to this code's versions; exactly what is missing runs."""
    began = time.monotonic()
    known = root.tables.read("ingest_batches", ["ingest_batch"])["ingest_batch"].to_pylist()
    batches = [name for name in known if root.tables.fingerprint("samples", {"ingest_batch": name})]
    reports = [
        score(root, name, config, settings=settings, dry_run=dry_run) for name in sorted(batches)
    ]
    rejected: Counter[str] = Counter()
    for report in reports:
        rejected.update(report.rejected)
    return JobReport(
        RESCORE,
        "",
        read=sum(report.read for report in reports),
        written=sum(report.written for report in reports),
        unchanged=sum(report.unchanged for report in reports),
        rejected=dict(rejected),
        versions=reports[-1].versions if reports else {},
        seconds=time.monotonic() - began,
        notes=tuple(f"{r.batch}: {note}" for r in reports for note in r.notes),
    )


def scores_target(pack: str, batch: str, inputs: Mapping[str, str]) -> Target:
    """Return the slice of `scores/<pack>` that this code writes for a batch."""
    return _target(PACKS[pack], batch, inputs)


def _target(pack: Pack, batch: str, inputs: Mapping[str, str]) -> Target:
    slice_ = {"scorer_version": pack.version, "ingest_batch": batch}
    return Target(f"scores/{pack.name}", slice_, inputs)


def _targets(config: ScoreConfig, batch: str, inputs: Mapping[str, str]) -> list[Target]:
    targets = [_target(config.pack_of(name), batch, inputs) for name in config.packs]
    if config.encoder is not None:
        slice_ = {"encoder_version": config.encoder.encoder_version, "ingest_batch": batch}
        targets.append(Target(EMBEDDINGS, slice_, inputs))
    return targets


def _plans(
    root: Root, config: ScoreConfig, facts: BatchFacts, stale: Sequence[Target]
) -> dict[str, PackPlan]:
    by_table = {target.table: target for target in stale}
    packs = {f"scores/{name}": config.pack_of(name) for name in config.packs}
    return {
        table: plan_pack(root, pack, by_table[table], facts.sample_rows)
        for table, pack in packs.items()
        if table in by_table
    }


def _skipped(config: ScoreConfig) -> list[str]:
    said = []
    for pack in (config.pack_of(name) for name in config.packs):
        for why in dict.fromkeys(pack.skipped.values()):
            names = [name for name, reason in pack.skipped.items() if reason == why]
            said.append(f"{', '.join(names)} of {pack.name} skipped: {why}")
    return said


def measure(
    task: ImageTask, writers: Writers, *, config: ScoreConfig, plans: Mapping[str, PackPlan]
) -> dict[str, int]:
    """Decode a task's images and write what the stale tables want; runs in an executor.

    Returns:
        Number of unreadable images by reason.
    """
    rejected: Counter[str] = Counter()
    wanted = {table: plan for table, plan in plans.items() if table in writers}
    for plan in wanted.values():
        _check_version(plan, config)
    captions = read_captions(task) if _need_captions(wanted, config) else {}
    for chunk in read_images(task):
        rejected.update(reason for _, reason in chunk.unreadable)
        images = Images(chunk.images, [captions.get(int(row)) for row in chunk.sample_rows])
        for table, rows in _measured(images, chunk, wanted, config):
            writers[table].write(rows)
        if (embeddings := writers.get(EMBEDDINGS)) is not None and chunk.images:
            assert config.encoder is not None
            vectors = load_encoder(config.encoder).embed(chunk.images)
            embeddings.write(_embedding_table(chunk.sample_rows, vectors))
    return dict(rejected)


def _check_version(plan: PackPlan, config: ScoreConfig) -> None:
    here = config.pack_of(plan.pack).version
    if here != plan.version:
        raise BadInput(
            f"pack {plan.pack} is {here} on this executor and {plan.version} on the driver; "
            "give both the same packages and weights"
        )


def _need_captions(plans: Mapping[str, PackPlan], config: ScoreConfig) -> bool:
    return any(
        config.pack_of(plan.pack).scorer(name).needs == "caption"
        for plan in plans.values()
        for name in plan.names
    )


def _measured(
    images: Images, chunk: ImageChunk, plans: Mapping[str, PackPlan], config: ScoreConfig
) -> list[tuple[str, pa.Table]]:
    packs = {table: (config.pack_of(plan.pack), plan.names) for table, plan in plans.items()}
    tables = []
    found = score_packs(packs, images) if chunk.images else {}
    for table, plan in plans.items():
        pack = config.pack_of(plan.pack)
        if table in found:
            tables.append((table, score_table(plan, pack, chunk.sample_rows, found[table])))
        for row, reason in chunk.unreadable:
            nothing: Scores = pack.unreadable(1, reason, plan.names)
            tables.append((table, score_table(plan, pack, np.array([row]), nothing)))
    return tables


def _embedding_table(sample_rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> pa.Table:
    count, width = vectors.shape
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * width)
    lists = pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel()))
    return pa.table({"sample_row": sample_rows, "embedding": lists})


def _estimate(
    tasks: Sequence[ImageTask],
    plans: Mapping[str, PackPlan],
    config: ScoreConfig,
    stale: Sequence[Target],
    num_images: int,
    settings: SparkSettings | None,
) -> list[str]:
    """Say how long the rest takes, from a few of its images measured here."""
    if not tasks:
        return []
    with_vectors = any(target.table == EMBEDDINGS for target in stale)
    began, count, seconds = time.monotonic(), 0, 0.0
    for chunk in islice(read_images(tasks[0]), 1):
        decoding = (time.monotonic() - began) / max(len(chunk), 1)
        for image in chunk.images[: _TIMED_IMAGES + 1]:
            start = time.monotonic()
            _measured(Images([image]), _alone(chunk, image), plans, config)
            if with_vectors and config.encoder is not None:
                load_encoder(config.encoder).embed([image])
            # The first image loads the networks.
            if count:
                seconds += time.monotonic() - start
            count += 1
        each = decoding + seconds / max(count - 1, 1)
        cores = _num_cores(settings)
        return [
            f"about {num_images * each / cores:.0f} s on {cores} cores "
            f"({1000 * each:.0f} ms an image, timed on {count})"
        ]
    return []


def _alone(chunk: ImageChunk, image: NDArray[np.uint8]) -> ImageChunk:
    return ImageChunk(chunk.sample_rows[:1], [image], [])


def _num_cores(settings: SparkSettings | None) -> int:
    given = settings.num_cores if settings is not None else None
    return given or len(os.sched_getaffinity(0))
