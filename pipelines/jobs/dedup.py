"""Find clusters of equal images in the whole root, under one notion of sameness."""

import time
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pipelines.dedup import near
from pipelines.dedup.components import clusters_of
from pipelines.encoders import EncoderConfig, ImportedEncoder
from pipelines.job import JobReport
from pipelines.slices import Target
from pipelines.spark import SparkSettings, get_session
from schemas.errors import TableMissing
from schemas.root import Root
from schemas.samples import FIRST_PHASH_VERSION
from schemas.tables import Snapshot

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

JOB = "dedup"
TABLE = "duplicate_clusters"
NO_BATCH = ""
_CODE_VERSION = 1
_VECTORS_PER_CELL = 2000
_MAX_CENTROID_VECTORS = 50_000


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Exact(_Config):
    """Images whose bytes are the same, in whichever batches."""

    kind: Literal["exact"] = "exact"


class Perceptual(_Config):
    """Images whose perceptual hashes nearly agree: copies that were resized or compressed anew."""

    kind: Literal["perceptual"] = "perceptual"
    max_distance: int = Field(default=4, ge=0, le=15, description="bits of 64 that may differ")


class Semantic(_Config):
    """Images whose embeddings nearly agree: the same picture cropped, coloured or redrawn."""

    kind: Literal["semantic"] = "semantic"
    min_similarity: float = Field(default=0.95, gt=0, le=1, description="cosine of two embeddings")
    num_probes: int = Field(default=2, ge=1, description="cells in which a vector is looked for")
    encoder: EncoderConfig | ImportedEncoder = EncoderConfig()


KINDS: dict[str, type[Exact | Perceptual | Semantic]] = {
    "exact": Exact,
    "perceptual": Perceptual,
    "semantic": Semantic,
}

DedupConfig = Annotated[Exact | Perceptual | Semantic, Field(discriminator="kind")]


def dedup(
    root: Root,
    config: DedupConfig,
    *,
    settings: SparkSettings | None = None,
    dry_run: bool = False,
) -> JobReport:
    """Write one kind's slice of `duplicate_clusters` over all batches of the root.

    Images that stand alone get no row. Clusters are chains: a and c are one cluster when both are
    near b.

    Raises:
        TableMissing: nothing was ingested, or a batch has no embeddings of the encoder.
        JobAlreadyRunning: another process looks for duplicates of this kind.
    """
    began = time.monotonic()
    with root.lock(JOB, config.kind):
        if not root.tables.exists("samples"):
            raise TableMissing("nothing was ingested yet; run ingest first")
        samples = root.tables.open("samples")
        keys = samples.read(["sample_row", "phash_version"])
        rows = keys["sample_row"].to_numpy()
        target = Target(TABLE, {"kind": config.kind}, _inputs(root, config, rows))
        current = target.is_current(root)
        notes = _apart(keys["phash_version"]) if isinstance(config, Perceptual) else []
        if not current and not dry_run:
            found = _clusters(root, config, samples, settings)
            notes.append(f"{_commit(root, target, found, rows)} images stand in clusters")
    return JobReport(
        JOB,
        NO_BATCH,
        read=len(rows),
        written=0 if current or dry_run else len(rows),
        unchanged=len(rows) if current else 0,
        versions=root.tables.versions([TABLE]),
        seconds=time.monotonic() - began,
        notes=tuple(notes),
    )


def _apart(phash_versions: pa.ChunkedArray) -> list[str]:
    """Say which images are not compared with all others."""
    versions = pc.fill_null(phash_versions, FIRST_PHASH_VERSION)
    newest = pc.max(versions).as_py()
    count = pc.sum(pc.not_equal(versions, newest)).as_py()
    if not count:
        return []
    return [
        f"{count} of {len(versions)} images have perceptual hashes of an older version, which are "
        "compared among themselves alone; ingest their batches again to compare them with all"
    ]


def _inputs(root: Root, config: DedupConfig, rows: NDArray[np.int64]) -> dict[str, object]:
    batches = root.tables.read("ingest_batches", ["ingest_batch"])["ingest_batch"].to_pylist()
    table = "embeddings" if isinstance(config, Semantic) else "samples"
    made_from = {batch: root.tables.fingerprint(table, _slice(config, batch)) for batch in batches}
    without = sorted(batch for batch, found in made_from.items() if found is None)
    if without and isinstance(config, Semantic):
        raise TableMissing(
            f"batches {', '.join(without)} have no embeddings of {config.encoder.encoder_version}; "
            "run score on them first"
        )
    facts = {"code": _CODE_VERSION, "config": config.model_dump(mode="json")}
    # A take-down changes the rows and no slice.
    return {**facts, "made_from": made_from, "num_rows": len(rows), "sum": int(rows.sum())}


def _slice(config: DedupConfig, batch: str) -> dict[str, str]:
    if isinstance(config, Semantic):
        return {"encoder_version": config.encoder.encoder_version, "ingest_batch": batch}
    return {"ingest_batch": batch}


def _clusters(
    root: Root, config: DedupConfig, samples: Snapshot, settings: SparkSettings | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    spark = get_session(settings)
    if isinstance(config, Semantic):
        files = root.tables.open("embeddings").file_uris(
            {"encoder_version": config.encoder.encoder_version}
        )
        vectors = near.parquet(spark, files, "sample_row long, embedding array<float>")
        pairs = near.near_vectors(
            vectors, _centroids(vectors), config.min_similarity, config.num_probes
        )
    elif isinstance(config, Perceptual):
        columns = "sample_row long, phash long, phash_version int"
        frame = near.parquet(spark, samples.file_uris(), columns)
        pairs = near.near_hashes(frame, config.max_distance)
    else:
        frame = near.parquet(spark, samples.file_uris(), "sample_row long, sample_id string")
        pairs = near.same_bytes(frame)
    found = pairs.toArrow()
    return clusters_of(found["first"].to_numpy(), found["second"].to_numpy())


def _centroids(vectors: "DataFrame") -> NDArray[np.float32]:
    count = vectors.count()
    # By the key, not by chance: the same images give the same cells.
    step = max(1, count // _MAX_CENTROID_VECTORS)
    some = vectors.where(f"hash(sample_row) % {step} = 0").orderBy("sample_row").toArrow()
    unit = near.unit_rows(some["embedding"].combine_chunks())
    return near.centroids(unit, max(1, round(count / _VECTORS_PER_CELL)))


def _commit(
    root: Root,
    target: Target,
    found: tuple[NDArray[np.int64], NDArray[np.int64]],
    rows: NDArray[np.int64],
) -> int:
    # Files hold rows of samples that were taken down; a cluster may shrink to one image by that.
    members, names = found
    there = np.isin(members, rows)
    members, names = members[there], names[there]
    _, place, count = np.unique(names, return_inverse=True, return_counts=True)
    several = count[place] > 1
    members, place = members[several], place[several]
    _, begin = np.unique(place, return_index=True)
    smallest = dict(zip(place[begin].tolist(), members[begin].tolist(), strict=True))
    table = pa.table(
        {
            "kind": pa.repeat(target.slice["kind"], len(members)),
            "sample_row": members,
            "cluster_row": pa.array([smallest[p] for p in place.tolist()], pa.int64()),
        }
    )
    root.tables.commit(
        TABLE,
        table,
        slice=target.slice,
        inputs=target.inputs,
        job=JOB,
        versions=root.tables.versions(["samples"]),
    )
    return len(members)
