"""Shards that stay where they lie: registered, verified, read, and never changed."""

import pytest

from ambient_omni.data.shard_bytes import ShardBytes
from pipelines.batches import image_tasks, open_batch, read_images
from pipelines.ingest import IngestConfig, ingest
from pipelines.jobs.upkeep import purge_all
from schemas.errors import BadInput
from schemas.registry import contract
from tests.data.pictures import attempts, encoded, put, samples, stored_bytes
from tests.pipelines.test_ingest_tars import tar_of

COPIED = IngestConfig(show_progress=False)
IN_PLACE = IngestConfig(show_progress=False, in_place=True)


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "theirs"
    put(
        folder / "0.tar",
        tar_of(
            [("a.png", encoded(1)), ("a.txt", "one"), ("b.jpg", b"<html>"), ("c.png", encoded(2))]
        ),
    )
    put(folder / "1.tar", tar_of([("d.png", encoded(3)), ("e.png", encoded(1))]) + b"\1" * 700)
    return folder


def test_a_batch_in_place_is_the_copied_one_but_for_where_its_bytes_lie(root, shards):
    ours = ingest(root, "copied", shards, COPIED)
    theirs = ingest(root, "b", shards, IN_PLACE)
    assert (theirs.read, theirs.written, theirs.rejected) == (ours.read, 3, ours.rejected)
    place = ("sample_row", "ingest_batch", "shard", "byte_offset")

    def facts(batch):
        return [{k: v for k, v in r.items() if k not in place} for r in samples(root, batch)]

    assert facts("b") == facts("copied")
    told = [a["status"] for a in attempts(root).values()]
    assert told == [a["status"] for a in attempts(root, "copied").values()]
    assert {row["shard"] for row in samples(root)} == {str(shards / f"{n}.tar") for n in (0, 1)}
    assert list((root.shards / "b").glob("*.tar")) == []
    assert [stored_bytes(root, row) for row in samples(root)] == [encoded(n) for n in (1, 2, 3)]


def test_jobs_and_trainers_read_shards_where_they_lie(root, shards):
    ingest(root, "b", shards, IN_PLACE)
    facts = open_batch(root, "b")
    chunks = [chunk for task in image_tasks(root, facts) for chunk in read_images(task)]
    assert sum(len(chunk.images) for chunk in chunks) == 3
    assert [list(chunk.unreadable) for chunk in chunks] == [[], []]
    data = ShardBytes.from_table(root.path, ["b"])
    assert [data[n] for n in range(3)] == [encoded(n) for n in (1, 2, 3)]


def test_again_changes_nothing_and_a_grown_shard_keeps_the_rows_there_were(root, shards):
    ingest(root, "b", shards, IN_PLACE)
    before = samples(root)
    assert ingest(root, "b", shards, IN_PLACE).unchanged == 3
    put(shards / "2.tar", tar_of([("f.png", encoded(4))]))
    ingest(root, "b", shards, IN_PLACE)
    assert samples(root)[:3] == before
    assert len(samples(root)) == 4


def test_bytes_that_changed_since_are_unreadable_and_not_another_image(root, shards):
    ingest(root, "b", shards, IN_PLACE)
    row = samples(root)[1]
    with (shards / "0.tar").open("r+b") as file:
        file.seek(row["byte_offset"])
        file.write(encoded(9)[: row["num_bytes"]])
    tasks = image_tasks(root, open_batch(root, "b"))
    unreadable = [u for task in tasks for chunk in read_images(task) for u in chunk.unreadable]
    assert unreadable == [(row["sample_row"], "bytes_changed")]


def test_what_is_taken_down_is_read_no_more_and_a_purge_says_where_its_bytes_still_are(
    root, shards
):
    ingest(root, "copied", shards, COPIED)
    ingest(root, "b", shards, IN_PLACE)
    theirs = {path: path.read_bytes() for path in shards.glob("*.tar")}
    gone = samples(root)[0]
    row = {"sample_id": gone["sample_id"], "excluded_at": 0, "why": "asked for"}
    root.tables.upsert("exclusions", contract("exclusions").table([row]), job="tests")
    report = purge_all(root)
    # The copy that is ours is blanked, the shard that is not stays as it was.
    assert report.written == 1
    assert "1 shards were registered where they lie and are not changed" in report.line()
    assert str(shards / "0.tar") in report.line()
    assert {path: path.read_bytes() for path in shards.glob("*.tar")} == theirs
    assert gone["sample_row"] not in open_batch(root, "b").sample_rows
    assert ingest(root, "b", shards, IN_PLACE).unchanged == 3
    assert gone["sample_row"] not in open_batch(root, "b").sample_rows


def test_only_tar_shards_of_this_machine_can_stay(root, tmp_path):
    put(tmp_path / "folder" / "a.png", encoded(1))
    with pytest.raises(BadInput, match="is a folder; only uncompressed tar shards"):
        ingest(root, "b", tmp_path / "folder", IN_PLACE)
