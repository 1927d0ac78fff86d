"""Pairs of equals, found by Spark: by bytes, by perceptual hash, by embedding.

Rows stay in the JVM where SQL can say it; only vectors visit Python, a cell of them at a time.
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.dedup.components import clusters_of
from schemas.samples import FIRST_PHASH_VERSION
from schemas.store import parquet_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

HASH_BITS = 64
PAIRS = "first long, second long"
_CENTROID_ROUNDS = 5
_VECTORS_AT_ONCE = 512
_ROWS_AT_ONCE = 16_384


def parquet(spark: "SparkSession", files: Sequence[str], columns: str) -> "DataFrame":
    """Read columns of a snapshot's data files; none of them a partition column.

    Those of an object store are read by Arrow, a task each: Spark's reader wants Hadoop's
    connector, which does not come with pip.

    Args:
        spark: the session.
        files: of one table.
        columns: names and Spark types; one that a file does not have yet is null in its rows.
    """
    if not any("://" in file for file in files):
        return spark.read.schema(columns).parquet(*files)
    from pyspark.sql.pandas.types import to_arrow_schema

    schema = to_arrow_schema(spark.createDataFrame([], columns).schema)

    def read(batches: Any) -> Any:
        for batch in batches:
            for file in batch.column("file").to_pylist():
                with parquet_of(file) as found:
                    yield from _as_schema(found, schema)

    names = spark.createDataFrame([(file,) for file in files], "file string")
    return names.repartition(max(1, len(files))).mapInArrow(read, columns)


def _as_schema(file: pq.ParquetFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    there = [name for name in schema.names if name in file.schema_arrow.names]
    for batch in file.iter_batches(_ROWS_AT_ONCE, columns=there):
        columns = [
            batch.column(field.name).cast(field.type)
            if field.name in there
            else pa.nulls(batch.num_rows, field.type)
            for field in schema
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def same_bytes(samples: "DataFrame") -> "DataFrame":
    """Return pairs (first, second) of samples with one sample_id, each with the smallest of them.

    Args:
        samples: columns sample_row, sample_id.
    """
    from pyspark.sql import functions as sql

    first = samples.groupBy("sample_id").agg(
        sql.min("sample_row").alias("first"), sql.count("*").alias("count")
    )
    several = first.where("count > 1").drop("count")
    joined = samples.join(several, "sample_id")
    return joined.selectExpr("first", "sample_row as second").where("first < second")


def near_hashes(samples: "DataFrame", max_distance: int) -> "DataFrame":
    """Return pairs (first, second) of samples whose hashes differ in at most `max_distance` bits.

    Hashes that were made in different ways are no pair, however near they are.

    Of hashes that differ in d bits, cut into d + 1 bands, one band is equal (pigeonhole): so a join
    on bands finds every pair. Equal hashes are joined first; a million flat images with one hash
    are one row in the join and not a million squared.

    Args:
        samples: columns sample_row, phash, phash_version.
        max_distance: Hamming distance, 0 .. 15.
    """
    from pyspark.sql import functions as sql

    one = ["phash", "phash_version"]
    samples = samples.fillna(FIRST_PHASH_VERSION, ["phash_version"])
    best = samples.groupBy(*one).agg(sql.min("sample_row").alias("first"))
    equal = samples.join(best, one).selectExpr("first", "sample_row as second")
    bands = best.select("first", *one, sql.explode(sql.array(*_bands(max_distance))).alias("band"))
    a, b = bands.alias("a"), bands.alias("b")
    same = "a.band = b.band and a.phash_version = b.phash_version and a.first < b.first"
    near = a.join(b, sql.expr(same)).where(
        sql.expr(f"bit_count(a.phash ^ b.phash) <= {max_distance}")
    )
    pairs = near.selectExpr("a.first as first", "b.first as second").distinct()
    return pairs.union(equal.where("first < second"))


def _bands(max_distance: int) -> list[Any]:
    from pyspark.sql import functions as sql

    edges = np.linspace(0, HASH_BITS, max_distance + 2).round().astype(int)
    return [
        # The number of the band stands with its bits, or bands would be taken for one another.
        sql.expr(
            f"struct({number}, shiftrightunsigned(phash, {low}) & {(1 << (high - low)) - 1}L)"
            if high - low < HASH_BITS
            else f"struct({number}, phash)"
        )
        for number, (low, high) in enumerate(pairwise(edges))
    ]


def near_vectors(
    vectors: "DataFrame", centroids_KD: NDArray[np.float32], min_similarity: float, num_probes: int
) -> "DataFrame":
    """Return pairs (first, second) of samples whose vectors are at least that similar.

    Each vector goes to the cells of its nearest centroids, and pairs are looked for within cells.
    A pair that no cell holds is missed; more probes miss fewer.

    Args:
        vectors: columns sample_row, embedding.
        centroids_KD: of unit length.
        min_similarity: cosine.
        num_probes: cells of a vector.
    """
    probes = min(num_probes, len(centroids_KD))

    def assign(batches: Any) -> Any:
        for batch in batches:
            unit = unit_rows(batch.column("embedding"))
            near = np.argpartition(-(unit @ centroids_KD.T), probes - 1, axis=1)[:, :probes]
            rows = batch.column("sample_row").to_numpy()
            # Half precision halves what is sent around and moves a cosine by less than 1e-3.
            data = pa.array([v.tobytes() for v in unit.astype(np.float16)], pa.binary())
            for probe in range(probes):
                columns = [pa.array(near[:, probe].astype(np.int32)), pa.array(rows), data]
                yield pa.RecordBatch.from_arrays(columns, ["cell", "sample_row", "unit"])

    def compare(table: pa.Table) -> pa.Table:
        rows = table["sample_row"].to_numpy()
        size = len(table["unit"][0].as_py()) // 2
        unit = np.frombuffer(b"".join(table["unit"].to_pylist()), np.float16).reshape(-1, size)
        first, second = linked_pairs(unit.astype(np.float32), rows, min_similarity)
        return pa.table({"first": first, "second": second})

    cells = vectors.mapInArrow(assign, "cell int, sample_row long, unit binary")
    return cells.groupBy("cell").applyInArrow(compare, PAIRS).distinct()


def linked_pairs(
    unit_ND: NDArray[np.float32], rows_N: NDArray[np.int64], min_similarity: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return pairs of rows (P,), (P,) that join the same clusters as all similar pairs would.

    A thousand copies of one image are half a million pairs, and a thousand of these join them.
    """
    first, second = np.empty(0, np.int64), np.empty(0, np.int64)
    for start in range(0, len(unit_ND), _VECTORS_AT_ONCE):
        block = unit_ND[start : start + _VECTORS_AT_ONCE]
        a, b = np.nonzero(block @ unit_ND[start:].T >= min_similarity)
        ahead = a < b
        first = np.concatenate([first, rows_N[a[ahead] + start]])
        second = np.concatenate([second, rows_N[b[ahead] + start]])
        members, names = clusters_of(first, second)
        first, second = names[names < members], members[names < members]
    return first, second


def unit_rows(embeddings: pa.Array) -> NDArray[np.float32]:
    """Return list-valued embeddings as float32 (N, D) of unit length; a zero vector stays zero."""
    count = len(embeddings)
    flat = embeddings.flatten().to_numpy().reshape(count, -1).astype(np.float32)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    unit: NDArray[np.float32] = flat / np.maximum(length, 1e-12)
    return unit


def centroids(unit_ND: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return (K, D) unit centroids of spherical k-means, from evenly spaced first ones."""
    start = np.linspace(0, len(unit_ND) - 1, min(count, len(unit_ND))).round().astype(int)
    found = unit_ND[np.unique(start)]

    def better(old: NDArray[np.float32], _: int) -> NDArray[np.float32]:
        nearest = (unit_ND @ old.T).argmax(axis=1)
        sums = np.zeros_like(old)
        np.add.at(sums, nearest, unit_ND)
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        return np.where(length > 1e-12, sums / np.maximum(length, 1e-12), old).astype(np.float32)

    return reduce(better, range(_CENTROID_ROUNDS), found)
