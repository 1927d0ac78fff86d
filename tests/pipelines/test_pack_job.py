import datetime as dt

import numpy as np
import pytest

from ambient_omni.data.packs import Pack, PackMissing
from ambient_omni.data.transforms import Transform
from pipelines.jobs import pack as pack_module
from pipelines.jobs.pack import build_pack, write_chunk
from pipelines.spark import TasksFailed
from schemas.errors import TableMissing
from schemas.registry import contract

TRANSFORM = Transform(resolution=16)


@pytest.fixture
def batch(root, make_batch, images):
    make_batch(root, "b1", images(10))
    return root


def opened(root):
    return Pack.open(root.packs, TRANSFORM.transform_id, "b1")


def contents(root):
    pack = opened(root)
    return pack.sample_rows.tolist(), pack.take(np.arange(len(pack))).tolist()


def test_the_pack_holds_every_sample_transformed_in_row_order(spark, batch, images):
    report = build_pack(batch, "b1", TRANSFORM)
    assert (report.read, report.written) == (10, 10)
    pack = opened(batch)
    assert pack.sample_rows.tolist() == batch.tables.read("samples")["sample_row"].to_pylist()
    expected = np.stack([TRANSFORM.apply(image) for image in images(10)])
    assert np.array_equal(pack.take(np.arange(10)), expected)


def test_running_twice_changes_nothing(spark, batch):
    build_pack(batch, "b1", TRANSFORM)
    times = {p.name: p.stat().st_mtime_ns for p in opened(batch).folder.iterdir()}
    report = build_pack(batch, "b1", TRANSFORM)
    assert (report.written, report.unchanged) == (0, 10)
    assert {p.name: p.stat().st_mtime_ns for p in opened(batch).folder.iterdir()} == times


def _fails_on_the_second_shard(task, *, writer):
    if task.number == 1:
        raise RuntimeError("this shard is lost")
    return write_chunk(task, writer=writer)


def test_a_stopped_build_is_invisible_and_goes_on_where_it_was(
    spark, batch, make_batch, images, monkeypatch
):
    monkeypatch.setattr(pack_module, "write_chunk", _fails_on_the_second_shard)
    with pytest.raises(TasksFailed, match="this shard is lost"):
        build_pack(batch, "b1", TRANSFORM)
    with pytest.raises(PackMissing):
        opened(batch)
    monkeypatch.undo()
    finished = (batch.packs / TRANSFORM.transform_id / "b1").glob("chunk-*.npy")
    num_finished = sum(len(np.load(path)) for path in finished)
    assert build_pack(batch, "b1", TRANSFORM).written == 10 - num_finished
    resumed = contents(batch)
    (opened(batch).folder / "meta.json").unlink()
    build_pack(batch, "b1", TRANSFORM)
    assert contents(batch) == resumed


def test_a_batch_that_changed_gets_a_new_pack(spark, batch):
    build_pack(batch, "b1", TRANSFORM)
    slice_ = {"ingest_batch": "b1"}
    less = batch.tables.read("samples").slice(0, 3)
    batch.tables.commit("samples", less, slice=slice_, inputs={"changed": 1}, job="tests")
    assert build_pack(batch, "b1", TRANSFORM).written == 3
    assert len(opened(batch)) == 3
    assert not list(opened(batch).folder.glob(".*"))


def test_a_sample_that_was_taken_down_leaves_the_pack(spark, batch):
    build_pack(batch, "b1", TRANSFORM)
    gone = batch.tables.read("samples").to_pylist()[4]
    exclude(batch, gone["sample_id"])
    assert build_pack(batch, "b1", TRANSFORM).written == 9
    assert gone["sample_row"] not in opened(batch).sample_rows


def exclude(root, sample_id):
    when = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    row = {"sample_id": sample_id, "excluded_at": when, "why": "asked"}
    root.tables.upsert("exclusions", contract("exclusions").table([row]), job="tests")


def test_a_damaged_image_stops_the_build_and_is_named(spark, batch):
    sample = batch.tables.read("samples").to_pylist()[2]
    with (batch.shards / sample["shard"]).open("r+b") as shard:
        shard.seek(sample["byte_offset"])
        shard.write(b"\x00")
    with pytest.raises(TasksFailed, match=f"sample_row {sample['sample_row']} .*bytes_changed"):
        build_pack(batch, "b1", TRANSFORM)


def test_a_missing_shard_is_named(spark, batch):
    (batch.shards / "b1" / "00001.tar").unlink()
    with pytest.raises(TasksFailed, match=r"00001\.tar cannot be read"):
        build_pack(batch, "b1", TRANSFORM)


def test_a_batch_that_was_never_ingested_is_refused(root):
    with pytest.raises(TableMissing):
        build_pack(root, "b1", TRANSFORM)
