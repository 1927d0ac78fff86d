import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import duckdb
import numpy as np
import polars
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable
from PIL import Image

from ambient_omni.images import decode
from pipelines.encoders import EncoderConfig, load_encoder
from pipelines.jobs import score as score_module
from pipelines.jobs.score import ScoreConfig, measure, rescore, score
from pipelines.jobs.score_plan import PackPlan
from pipelines.scorers.base import Pack
from pipelines.scorers.classical import CLASSICAL
from pipelines.scorers.natural_statistics import NATURAL_STATISTICS
from pipelines.scorers.weights import WeightsMissing
from pipelines.spark import TasksFailed
from schemas.errors import BadInput, JobAlreadyRunning, TableMissing

CONFIG = ScoreConfig(encoder=EncoderConfig(resolution=32))
TABLES = ("scores/classical", "embeddings")


def rows_of(root):
    return [root.tables.read(name).to_pylist() for name in TABLES]


def files_on_disk(root):
    return sorted(
        str(p) for name in TABLES for p in root.tables.table_path(name).rglob("*.parquet")
    )


@pytest.fixture
def batch(root, make_batch, images):
    make_batch(root, "b1", images(10))
    return root


def test_every_sample_gets_the_scores_and_the_vector_of_its_own_pixels(spark, batch, images):
    report = score(batch, "b1", CONFIG)
    assert (report.read, report.written, report.unchanged) == (10, 10, 0)
    scores = batch.tables.read("scores/classical")
    assert (
        scores["sample_row"].to_pylist() == batch.tables.read("samples")["sample_row"].to_pylist()
    )
    expected = CLASSICAL.score(images(10))
    for name, values in expected.columns.items():
        assert scores[name].to_numpy() == pytest.approx(values), name
    vectors = np.array(batch.tables.read("embeddings")["embedding"].to_pylist())
    assert vectors == pytest.approx(load_encoder(CONFIG.encoder).embed(images(10)), abs=1e-4)


def test_running_twice_changes_nothing(spark, batch):
    first = score(batch, "b1", CONFIG)
    before, files = rows_of(batch), files_on_disk(batch)
    second = score(batch, "b1", CONFIG)
    assert (second.read, second.written, second.unchanged) == (10, 0, 10)
    assert second.versions == first.versions
    assert rows_of(batch) == before
    assert files_on_disk(batch) == files


def test_one_commit_a_table_whatever_the_number_of_tasks(spark, batch):
    score(batch, "b1", CONFIG)
    assert [batch.tables.version(name) for name in TABLES] == [0, 0]
    assert len(files_on_disk(batch)) == 6  # three shards, two tables


def test_a_new_encoder_computes_vectors_only(spark, batch):
    score(batch, "b1", CONFIG)
    report = score(batch, "b1", ScoreConfig(encoder=EncoderConfig(resolution=48)))
    assert report.versions == {"scores/classical": 0, "embeddings": 1}
    versions = batch.tables.read("embeddings")["encoder_version"].unique()
    assert len(versions) == 2


def test_a_batch_that_changed_is_measured_anew_and_its_neighbour_is_not(
    spark, batch, make_batch, images
):
    make_batch(batch, "b2", images(3, seed=9))
    score(batch, "b1", CONFIG)
    score(batch, "b2", CONFIG)
    kept = batch.tables.read("scores/classical", where={"ingest_batch": "b2"}).to_pylist()
    slice_ = {"ingest_batch": "b1"}
    less = batch.tables.read("samples", where=slice_).slice(0, 5)
    batch.tables.commit("samples", less, slice=slice_, inputs={"changed": 1}, job="tests")
    assert score(batch, "b1", CONFIG).written == 5
    assert score(batch, "b2", CONFIG).written == 0
    found = batch.tables.read("scores/classical", where=slice_)
    assert found.num_rows == 5
    assert batch.tables.read("scores/classical", where={"ingest_batch": "b2"}).to_pylist() == kept


def test_unreadable_bytes_are_null_with_a_reason_and_the_rest_goes_on(
    spark, root, make_batch, images
):
    broken = b"\xff\xd8\xff\xe0 not much of a JPEG"
    make_batch(root, "b1", [*images(3), broken])
    report = score(root, "b1", CONFIG)
    assert report.num_rejected == 1
    rows = root.tables.read("scores/classical").to_pylist()
    assert [row["sharpness"] is None for row in rows] == [False, False, False, True]
    assert "sharpness: " in rows[3]["unscored_reason"]
    assert root.tables.read("embeddings").num_rows == 3


def test_bytes_that_changed_in_the_shard_are_never_scored_as_the_sample(spark, batch):
    sample = batch.tables.read("samples").to_pylist()[2]
    with (batch.shards / sample["shard"]).open("r+b") as shard:
        shard.seek(sample["byte_offset"] + sample["num_bytes"] // 2)
        shard.write(b"\x00\x01\x02")
    report = score(batch, "b1", CONFIG)
    assert report.rejected == {"bytes_changed": 1}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_pixel_format_is_scored(root, make_batch, mode):
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    image = grey.convert("I;16" if mode == "I;16" else mode)
    out = io.BytesIO()
    image.save(out, "JPEG" if mode == "CMYK" else "PNG")
    make_batch(root, "b1", [out.getvalue()])
    # No Spark: the task's own function, which is all that differs between formats.
    from pipelines.batches import image_tasks, open_batch

    writer = root.tables.writer(
        "scores/classical", {"scorer_version": "v", "ingest_batch": "b1"}, "c0"
    )
    [task] = image_tasks(root, open_batch(root, "b1"))
    plans = {"scores/classical": PackPlan("classical", CLASSICAL.version, ("sharpness",))}
    assert measure(task, {"scores/classical": writer}, config=CONFIG, plans=plans) == {}
    assert writer.close()[0].num_rows == 1


BOTH = ScoreConfig(packs=("classical", "natural_statistics"), encoder=None)


def lamed(monkeypatch, *names):
    """Make the weights of some scorers disappear, here: no executor is asked."""
    import pipelines.jobs.score as job

    def missing():
        raise WeightsMissing("its weights are missing")

    scorers = tuple(
        replace(s, weights=missing) if s.name in names else s for s in NATURAL_STATISTICS.scorers
    )
    pack = Pack(NATURAL_STATISTICS.name, scorers, NATURAL_STATISTICS.code)
    monkeypatch.setitem(job.PACKS, pack.name, pack)
    return pack


def run_here(monkeypatch):
    monkeypatch.setattr(
        "pipelines.slices.run_tasks", lambda tasks, work, **_: [work(task) for task in tasks]
    )


@pytest.fixture
def in_process(monkeypatch):
    """Run tasks here, so that they see what a test changed."""
    run_here(monkeypatch)


def test_several_packs_share_one_decoding(in_process, batch, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        "pipelines.batches.decode", lambda *args: decoded.append(1) or decode(*args)
    )
    report = score(batch, "b1", BOTH)
    assert (report.written, len(decoded)) == (10, 10)
    alone = ScoreConfig(pack="natural_statistics", encoder=None)
    assert alone.packs == ("natural_statistics",)
    assert score(batch, "b1", alone).unchanged == 10
    rows = batch.tables.read("scores/natural_statistics").to_pylist()
    assert all(np.isfinite(row["brisque"]) for row in rows)
    assert rows[0]["unscored_reason"] == "niqe: shorter side under 192"


def test_a_scorer_without_weights_is_null_with_a_reason_and_measured_alone_when_they_come(
    in_process, batch, monkeypatch
):
    lamed(monkeypatch, "niqe")
    report = score(batch, "b1", BOTH)
    assert report.notes == ("niqe of natural_statistics skipped: its weights are missing",)
    first = batch.tables.read("scores/natural_statistics").to_pylist()
    assert {row["niqe"] for row in first} == {None}
    assert {row["unscored_reason"] for row in first} == {"niqe: skipped, its weights are missing"}
    monkeypatch.undo()
    monkeypatch.setattr(
        "pipelines.slices.run_tasks", lambda tasks, work, **_: list(map(work, tasks))
    )
    measured = []
    monkeypatch.setattr("pipelines.scorers.brisque.load_regression", lambda: measured.append(1))
    report = score(batch, "b1", BOTH)
    assert report.notes == ("scores/natural_statistics: niqe measured, brisque kept",)
    assert (report.written, measured) == (10, [])
    where = {"scorer_version": NATURAL_STATISTICS.version}
    second = batch.tables.read("scores/natural_statistics", where=where).to_pylist()
    assert [row["brisque"] for row in second] == [row["brisque"] for row in first]
    assert {row["unscored_reason"] for row in second} == {"niqe: shorter side under 192"}
    assert json.loads(second[0]["scorer_versions"]) == NATURAL_STATISTICS.scorer_versions


def test_nothing_is_kept_of_a_batch_whose_images_changed(in_process, batch, monkeypatch):
    lamed(monkeypatch, "niqe")
    score(batch, "b1", BOTH)
    slice_ = {"ingest_batch": "b1"}
    less = batch.tables.read("samples", where=slice_).slice(0, 5)
    batch.tables.commit("samples", less, slice=slice_, inputs={"changed": 1}, job="tests")
    monkeypatch.setitem(score_module.PACKS, NATURAL_STATISTICS.name, NATURAL_STATISTICS)
    assert score(batch, "b1", BOTH).notes == ()


def test_an_executor_with_other_weights_than_the_drivers_is_refused(batch, monkeypatch):
    from pipelines.batches import image_tasks, open_batch

    plan = PackPlan("natural_statistics", NATURAL_STATISTICS.version, ("brisque",))
    lamed(monkeypatch, "niqe")
    task = image_tasks(batch, open_batch(batch, "b1"))[0]
    with pytest.raises(BadInput, match="on this executor and natural_statistics-"):
        measure(task, {plan.table: None}, config=BOTH, plans={plan.table: plan})


def test_unreadable_images_have_a_reason_in_every_pack(in_process, root, make_batch, images):
    make_batch(root, "b1", [*images(1), b"\xff\xd8\xff\xe0 not much of a JPEG"])
    score(root, "b1", BOTH)
    [_, broken] = root.tables.read("scores/natural_statistics").to_pylist()
    assert (broken["brisque"], broken["niqe"]) == (None, None)
    assert broken["unscored_reason"] == "brisque: truncated; niqe: truncated"


@pytest.mark.parametrize("packs", [["nope"], ["classical", "classical"], []])
def test_packs_that_are_not_there_or_stand_twice_are_refused(packs):
    with pytest.raises(ValueError, match="packs"):
        ScoreConfig(packs=packs)


def test_the_missing_slices_of_all_batches_are_planned_shown_and_measured(
    in_process, batch, make_batch, images
):
    make_batch(batch, "b2", images(3, seed=9))
    config = ScoreConfig(packs=("classical",), encoder=None)
    score(batch, "b1", config)
    plan = rescore(batch, config, dry_run=True)
    assert (plan.read, plan.unchanged, plan.written) == (13, 10, 0)
    [note] = plan.notes
    assert note.startswith("b2: about 0 s on ")
    assert "timed on 3" in note
    done = rescore(batch, config)
    assert (done.read, done.unchanged, done.written) == (13, 10, 3)
    assert rescore(batch, config).unchanged == 13


def test_a_batch_that_was_never_ingested_is_refused_by_name(batch):
    with pytest.raises(TableMissing, match="'nope' has no samples"):
        score(batch, "nope", CONFIG)


def test_the_same_job_on_the_same_batch_twice_at_once_is_refused(batch):
    with batch.lock("score", "b1"), pytest.raises(JobAlreadyRunning):
        score(batch, "b1", CONFIG)


def test_an_empty_batch_needs_no_session_and_is_done(root, make_batch, monkeypatch):
    make_batch(root, "b1", [])
    monkeypatch.setattr("pipelines.spark.get_session", lambda settings: pytest.fail("started"))
    assert score(root, "b1", CONFIG).read == 0
    assert score(root, "b1", CONFIG).written == 0


def test_a_dry_run_writes_nothing(batch):
    assert score(batch, "b1", CONFIG, dry_run=True).read == 10
    assert not batch.tables.exists("scores/classical")


def _fails_on_its_first_try(task, writers, **options):
    from pyspark import TaskContext

    counts = measure(task, writers, **options)
    if TaskContext.get().attemptNumber() == 0 and task.shard.endswith("1.tar"):
        raise RuntimeError("this try is lost after it wrote")
    return counts


def _always_fails(task, writers, **options):
    counts = measure(task, writers, **options)
    if task.shard.endswith("1.tar"):
        raise RuntimeError("this shard is lost")
    return counts


def test_a_task_that_is_tried_again_leaves_the_rows_of_an_undisturbed_run(
    spark, batch, make_batch, images, monkeypatch
):
    score(batch, "b1", CONFIG)
    undisturbed = rows_of(batch)
    for name in TABLES:
        slice_ = {"ingest_batch": "b1"}
        version = "scorer_version" if "scores" in name else "encoder_version"
        key = batch.tables.read(name)[version][0].as_py()
        empty = batch.tables.read(name).slice(0, 0)
        batch.tables.commit(name, empty, slice=slice_ | {version: key}, inputs={}, job="tests")
    monkeypatch.setattr(score_module, "measure", _fails_on_its_first_try)
    score(batch, "b1", CONFIG)
    assert rows_of(batch) == undisturbed


def test_a_failed_job_leaves_nothing_visible_and_the_next_run_is_whole(spark, batch, monkeypatch):
    monkeypatch.setattr(score_module, "measure", _always_fails)
    with pytest.raises(TasksFailed, match="this shard is lost"):
        score(batch, "b1", CONFIG)
    assert not batch.tables.exists("scores/classical")
    left = files_on_disk(batch)
    monkeypatch.undo()
    assert score(batch, "b1", CONFIG).written == 10
    # What finished tasks had left was used, and nothing lies there beside the rows.
    assert set(left) < set(files_on_disk(batch))
    assert files_on_disk(batch) == sorted(
        uri for name in TABLES for uri in batch.tables.open(name).file_uris()
    )


def test_spark_delta_rs_polars_and_duckdb_read_the_same_rows(spark, batch):
    score(batch, "b1", CONFIG)
    snapshot = batch.tables.open("scores/classical")
    ours = dict(
        zip(*(snapshot.read(["sample_row", "sharpness"]).to_pydict().values()), strict=True)
    )
    path = str(batch.tables.table_path("scores/classical"))
    by_spark = spark.read.option("basePath", path).parquet(*snapshot.file_uris())
    assert {r.sample_row: r.sharpness for r in by_spark.collect()} == ours
    assert {r["ingest_batch"] for r in by_spark.select("ingest_batch").collect()} == {"b1"}
    by_delta_rs = DeltaTable(path).to_pyarrow_table()
    by_polars = polars.read_delta(path)
    for table in (by_delta_rs.to_pydict(), by_polars.to_dict(as_series=False)):
        assert dict(zip(table["sample_row"], table["sharpness"], strict=True)) == ours
    dataset = DeltaTable(path).to_pyarrow_dataset()  # noqa: F841 - duckdb finds it by name
    by_duckdb = duckdb.sql("select sample_row, sharpness from dataset").fetchall()
    assert dict(by_duckdb) == ours


DRIVER = """
import sys, time
from pipelines.encoders import EncoderConfig
from pipelines.jobs import score as module
from schemas.root import Root

plain, mark = module.measure, sys.argv[2]

def slow(task, writers, **options):
    counts = plain(task, writers, **options)
    open(mark, "a").write("x")
    if not task.shard.endswith("0.tar"):
        time.sleep(60)
    return counts

module.measure = slow
module.score(Root.open(sys.argv[1]), "b1", module.ScoreConfig(encoder=EncoderConfig(resolution=32)))
"""


@pytest.mark.slow
def test_a_driver_killed_at_work_leaves_the_next_run_whole(spark, batch, tmp_path):
    mark = tmp_path / "mark"
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(batch.path), str(mark)],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not mark.exists() and time.monotonic() < deadline and driver.poll() is None:
            time.sleep(0.1)
        assert mark.exists()
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    assert not batch.tables.exists("scores/classical")
    assert score(batch, "b1", CONFIG).written == 10
    ids = batch.tables.read("scores/classical")["sample_row"]
    assert pc.count_distinct(ids).as_py() == len(ids) == 10
