"""Duplicates: Spark's pairs against brute force, and the job against known copies."""

import io
import itertools
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ambient_omni import rng
from pipelines.dedup import near
from pipelines.dedup.components import clusters_of
from pipelines.encoders import EncoderConfig
from pipelines.jobs.dedup import Exact, Perceptual, Semantic, dedup
from pipelines.jobs.score import ScoreConfig, score
from schemas.errors import TableMissing
from schemas.registry import contract
from schemas.root import Root
from schemas.store import parquet_of
from tests.conftest import png_bytes, tiny_images


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=20))
def test_clusters_are_who_can_reach_whom_named_by_the_smallest(pairs):
    rows, names = clusters_of(*(np.array([p[k] for p in pairs], np.int64) for k in (0, 1)))
    together = {row: {row} for pair in pairs for row in pair}
    for a, b in pairs:
        joined = together[a] | together[b]
        for row in joined:
            together[row] = joined
    assert dict(zip(rows.tolist(), names.tolist(), strict=True)) == {
        row: min(joined) for row, joined in together.items()
    }


@pytest.mark.parametrize("max_distance", [0, 3, 6])
def test_the_banded_join_finds_the_pairs_that_brute_force_finds(spark, max_distance):
    draw = rng.generator(0, "test-dedup")
    hashes = draw.integers(-(2**63), 2**63, 60)
    flips = [sum(1 << int(bit) for bit in draw.permutation(64)[:n]) for n in (0, 1, 3, 4, 6, 9)]
    near_by = [int(h) ^ (f - (1 << 64) if f >= 1 << 63 else f) for h in hashes[:20] for f in flips]
    values = [*map(int, hashes), *near_by, 0, 0, 0]
    # None are hashes from before they had versions, which is version 1.
    versions = [(1, None, 2)[n % 3] for n in range(len(values))]
    rows = [(n, *row) for n, row in enumerate(zip(values, versions, strict=True))]
    frame = spark.createDataFrame(rows, "sample_row long, phash long, phash_version int")
    pairs = near.near_hashes(frame, max_distance).toArrow()
    found = clusters_of(pairs["first"].to_numpy(), pairs["second"].to_numpy())
    wanted = [
        (a, b)
        for (a, x), (b, y) in itertools.combinations(enumerate(values), 2)
        if ((x ^ y) & (2**64 - 1)).bit_count() <= max_distance
        and (versions[a] or 1) == (versions[b] or 1)
    ]
    expected = clusters_of(*np.array(wanted, np.int64).T)
    assert [part.tolist() for part in found] == [part.tolist() for part in expected]


def test_near_vectors_finds_planted_copies_in_their_cells(spark):
    vectors = rng.normal((400, 16), 0, "test-dedup").astype(np.float32)
    copies = vectors[:40] + 0.01 * rng.normal((40, 16), 1, "test-dedup")
    both = np.concatenate([vectors, copies]).astype(np.float32)
    frame = spark.createDataFrame(
        [(i, v.tolist()) for i, v in enumerate(both)], "sample_row long, embedding array<float>"
    )
    unit = near.unit_rows(pa.array(both.tolist(), pa.list_(pa.float32())))
    pairs = near.near_vectors(frame, near.centroids(unit, 4), 0.99, num_probes=2).toArrow()
    found = set(zip(pairs["first"].to_pylist(), pairs["second"].to_pylist(), strict=True))
    assert found == {(i, 400 + i) for i in range(40)}


def jpeg_bytes(pixels, quality):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return out.getvalue()


def clusters(root, kind):
    table = root.tables.read("duplicate_clusters", where={"kind": kind})
    found = {}
    for row in table.to_pylist():
        found.setdefault(row["cluster_row"], []).append(row["sample_row"])
    return sorted(found.values())


@pytest.fixture
def filled(root, make_batch, spark):
    images = tiny_images(6, side=64)
    first = make_batch(root, "b1", images)
    second = make_batch(root, "b2", [images[1], tiny_images(1, side=64, seed=9)[0]])
    third = make_batch(root, "b3", [jpeg_bytes(images[2], 60), png_bytes(images[1][:, ::-1])])
    return root, [t["sample_row"].to_pylist() for t in (first, second, third)]


def test_the_same_bytes_in_two_batches_are_one_exact_cluster(filled):
    root, (first, second, _) = filled
    report = dedup(root, Exact())
    assert clusters(root, "exact") == [[first[1], second[0]]]
    assert "2 images stand in clusters" in report.line()
    again = dedup(root, Exact())
    assert (again.written, again.unchanged) == (0, 10)
    assert again.versions == report.versions


def test_a_copy_compressed_anew_is_a_perceptual_duplicate_and_a_mirror_image_none(filled):
    root, (first, second, third) = filled
    dedup(root, Perceptual())
    assert clusters(root, "perceptual") == [[first[1], second[0]], [first[2], third[0]]]
    # A take-down leaves a cluster of one, which is none.
    gone = root.tables.read("samples", ["sample_row", "sample_id"]).to_pylist()
    sample_id = next(row["sample_id"] for row in gone if row["sample_row"] == third[0])
    row = {"sample_id": sample_id, "excluded_at": 0, "why": "asked for"}
    root.tables.upsert("exclusions", contract("exclusions").table([row]), job="tests")
    assert dedup(root, Perceptual(), dry_run=True).unchanged == 0
    dedup(root, Perceptual())
    assert clusters(root, "perceptual") == [[first[1], second[0]]]


def test_hashes_of_two_versions_are_not_compared_and_the_report_says_so(filled):
    root, (first, second, _) = filled
    (old,) = root.tables.open("samples").file_uris({"ingest_batch": "b3"})
    # As a migration leaves files from before hashes had versions: without the column.
    pq.write_table(pq.read_table(old, partitioning=None).drop_columns(["phash_version"]), old)
    report = dedup(root, Perceptual())
    assert clusters(root, "perceptual") == [[first[1], second[0]]]
    assert "2 of 10 images have perceptual hashes of an older version" in report.line()


def test_semantic_duplicates_need_embeddings_of_every_batch(filled):
    root, (first, second, _) = filled
    config = Semantic(encoder=EncoderConfig(resolution=64), min_similarity=0.98)
    with pytest.raises(TableMissing, match="b1, b2, b3 have no embeddings"):
        dedup(root, config)
    for batch in ("b1", "b2", "b3"):
        score(root, batch, ScoreConfig(encoder=config.encoder))
    dedup(root, config)
    found = clusters(root, "semantic")
    assert any({first[1], second[0]} <= set(cluster) for cluster in found)
    assert not any({first[0], second[1]} <= set(cluster) for cluster in found)


def test_nothing_ingested_is_a_clear_error(root):
    with pytest.raises(TableMissing, match="run ingest first"):
        dedup(root, Exact())


def test_tables_on_an_object_store_are_read_as_those_in_a_folder(
    spark, tmp_path, object_store, make_batch, monkeypatch
):
    own = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

    def opened(uri):
        os.environ.update(own)  # executors know the store from an environment of their own
        return parquet_of(uri)

    monkeypatch.setattr(near, "parquet_of", opened)
    root = Root.create(tmp_path / "r", tables=f"{object_store}/dedup")
    batches = [make_batch(root, batch, tiny_images(3, seed=7)) for batch in ("b1", "b2")]
    rows = [batch["sample_row"].to_pylist() for batch in batches]
    dedup(root, Exact())
    assert clusters(root, "exact") == [list(pair) for pair in zip(*rows, strict=True)]
    dedup(root, Perceptual(max_distance=0))
    assert clusters(root, "perceptual") == clusters(root, "exact")


def test_columns_that_a_file_of_an_object_store_does_not_have_yet_are_null(tmp_path):
    file = tmp_path / "x.parquet"
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0, 3.0, 4.0], pa.float32()), 2)
    pq.write_table(pa.table({"sample_row": [1, 2], "embedding": vectors}), file)
    wanted = {"sample_row": pa.int64(), "embedding": pa.list_(pa.float32()), "new": pa.int32()}
    (batch,) = near._as_schema(pq.ParquetFile(file), pa.schema(wanted))
    assert batch.to_pylist() == [
        {"sample_row": 1, "embedding": [1.0, 2.0], "new": None},
        {"sample_row": 2, "embedding": [3.0, 4.0], "new": None},
    ]
