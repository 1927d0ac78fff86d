"""Shards that stay where they lie: registered, verified, read, and never changed."""

import os
import zipfile

import fsspec
import pytest
import s3fs
from s3fs import S3File
from torch.utils.data import DataLoader

from ambient_omni.data.shard_bytes import ShardBytes
from ambient_omni.images import decode
from pipelines.batches import image_tasks, open_batch, read_images
from pipelines.ingest import IngestConfig, ingest
from pipelines.jobs.upkeep import purge_all
from schemas.errors import BadInput
from schemas.ids import sample_id_of
from schemas.registry import contract
from schemas.shard_files import ShardReader, read_range
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


def test_only_tar_shards_can_stay(root, tmp_path):
    put(tmp_path / "folder" / "a.png", encoded(1))
    with pytest.raises(BadInput, match="is a folder; only uncompressed tar shards"):
        ingest(root, "b", tmp_path / "folder", IN_PLACE)


@pytest.fixture
def bucket(shards, object_store, tmp_path):
    """The same shards in an object store: its file system, and their address."""
    store, top = fsspec.core.url_to_fs(f"{object_store}/{tmp_path.name}")
    for path in shards.iterdir():
        store.pipe_file(f"{top}/shards/{path.name}", path.read_bytes())
    store.pipe_file(f"{top}/images/a.png", encoded(1))
    return store, f"{object_store}/{tmp_path.name}"


def test_shards_of_an_object_store_stay_there_and_nothing_of_them_is_kept_here(
    root, shards, bucket
):
    _, address = bucket
    ours = ingest(root, "copied", shards, COPIED)
    theirs = ingest(root, "b", f"{address}/shards", IN_PLACE)
    assert (theirs.read, theirs.written, theirs.rejected) == (ours.read, 3, ours.rejected)
    place = ("sample_row", "ingest_batch", "shard", "byte_offset", "source")

    def facts(batch):
        return [{k: v for k, v in r.items() if k not in place} for r in samples(root, batch)]

    assert facts("b") == facts("copied")
    assert {row["shard"] for row in samples(root)} == {f"{address}/shards/{n}.tar" for n in (0, 1)}
    assert not list((root.shards / "b").glob("*.tar"))
    assert not list(root.work.rglob("*.tar"))
    assert ingest(root, "b", f"{address}/shards", IN_PLACE).unchanged == 3
    with pytest.raises(BadInput, match="is a folder; only uncompressed tar shards"):
        ingest(root, "c", f"{address}/images", IN_PLACE)


def test_executors_and_loaders_read_the_shards_of_an_object_store(spark, root, bucket):
    ingest(root, "b", f"{bucket[1]}/shards", IN_PLACE)
    tasks = image_tasks(root, open_batch(root, "b"))
    own = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

    def work(task):
        os.environ.update(own)  # executors know the store from an environment of their own
        return _digests(task)

    found = spark.sparkContext.parallelize(tasks, len(tasks)).map(work).collect()
    assert dict(pair for part in found for pair in part) == {
        row["sample_row"]: sample_id_of(decode(encoded(n)).tobytes())
        for row, n in zip(samples(root), (1, 2, 3), strict=True)
    }
    data = ShardBytes.from_table(root.path, ["b"])
    assert data[2] == encoded(3)  # opened here, before the workers are forked
    loader = DataLoader(data, batch_size=1, num_workers=2, collate_fn=list)
    assert [batch[0] for batch in loader] == [encoded(n) for n in (1, 2, 3)]


def _digests(task):
    return [
        (int(row), sample_id_of(image.tobytes()))
        for chunk in read_images(task)
        for row, image in zip(chunk.sample_rows, chunk.images, strict=True)
    ]


def test_an_object_that_was_replaced_or_is_gone_is_told_and_gives_no_other_image(root, bucket):
    _, address = bucket
    ingest(root, "b", f"{address}/shards", IN_PLACE)
    before = samples(root)
    (first, second) = image_tasks(root, open_batch(root, "b"))
    # Somebody else's process does so: this one's listings know nothing of it.
    store = s3fs.S3FileSystem(skip_instance_cache=True)
    changed = bytearray(store.cat_file(first.shard))
    row = before[0]
    changed[row["byte_offset"] : row["byte_offset"] + row["num_bytes"]] = bytes(row["num_bytes"])
    store.pipe_file(first.shard, bytes(changed))
    assert [list(c.unreadable) for c in read_images(first)] == [
        [(row["sample_row"], "bytes_changed")]
    ]
    with pytest.raises(BadInput, match=r"0\.tar changed since it was ingested"):
        ShardBytes.from_table(root.path, ["b"])[0]
    store.rm_file(second.shard)
    with pytest.raises(BadInput, match=r"s3://\S+/1\.tar cannot be read: .* if it changed, ingest"):
        list(read_images(second))
    with pytest.raises(BadInput, match=r"1\.tar cannot be read"):
        ShardBytes.from_table(root.path, ["b"])[2]
    # Ingested again, the batch is what the bucket holds now, and images that stay keep their rows.
    report = ingest(root, "b", f"{address}/shards", IN_PLACE)
    assert report.rejected
    assert [r["sample_row"] for r in samples(root)] == [before[1]["sample_row"]]


@pytest.mark.parametrize("pattern", ["shards", "shards/*.tar", "shards/0.tar"])
def test_what_another_process_put_in_the_place_of_an_object_is_seen(root, bucket, pattern):
    _, address = bucket
    ingest(root, "b", f"{address}/{pattern}", IN_PLACE)
    other = s3fs.S3FileSystem(skip_instance_cache=True)
    other.pipe_file(f"{address}/shards/0.tar", tar_of([("z.png", encoded(7))]))
    ingest(root, "b", f"{address}/{pattern}", IN_PLACE)
    data = ShardBytes.from_table(root.path, ["b"])
    assert encoded(7) in [data[n] for n in range(len(data))]
    tasks = image_tasks(root, open_batch(root, "b"))
    assert [list(c.unreadable) for task in tasks for c in read_images(task)] == [[]] * len(tasks)


def test_keys_that_a_path_cannot_tell_apart_keep_their_own_addresses(root, bucket):
    store, address = bucket
    store.pipe_file(f"{address}/odd//0.tar", tar_of([("a.png", encoded(5))]))
    ingest(root, "b", f"{address}/odd", IN_PLACE)
    (row,) = samples(root)
    assert row["shard"] == f"{address}/odd//0.tar"
    assert ShardBytes.from_table(root.path, ["b"])[0] == encoded(5)
    assert {a["source_uri"] for a in attempts(root).values()} == {f"{address}/odd//0.tar#a.png"}
    store.pipe_file(f"{address}/odd/0.tar", tar_of([("b.png", encoded(6))]))
    with pytest.raises(BadInput, match="would be one file here; ingest them as two batches"):
        ingest(root, "c", f"{address}/odd", COPIED)


def test_what_a_downloader_writes_beside_its_shards_does_not_hide_them(root, bucket):
    store, address = bucket
    for name in ("0_stats.json", "0.parquet"):
        store.pipe_file(f"{address}/shards/{name}", b"{}")
    assert ingest(root, "b", f"{address}/shards", IN_PLACE).written == 3


def test_a_file_that_its_address_does_not_lead_to_cannot_stay(root, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("0.tar", tar_of([("a.png", encoded(1))]))
    inside = f"zip://*.tar::file://{tmp_path}/a.zip"
    with pytest.raises(BadInput, match=r"0\.tar of zip://\S+ cannot be registered in place"):
        ingest(root, "b", inside, IN_PLACE)
    assert ingest(root, "b", inside, COPIED).written == 1


def test_a_password_in_an_address_is_refused_and_not_repeated(root):
    with pytest.raises(BadInput, match=r"https://\.\.\. holds a password") as refused:
        ingest(root, "b", "https://me:sesame@example.org/0.tar", IN_PLACE)
    assert "sesame" not in str(refused.value)


def test_a_purge_leaves_the_bucket_alone_and_names_the_object(root, bucket):
    store, address = bucket
    ingest(root, "b", f"{address}/shards", IN_PLACE)
    theirs = store.cat(store.find(address))
    gone = samples(root)[0]
    row = {"sample_id": gone["sample_id"], "excluded_at": 0, "why": "asked for"}
    root.tables.upsert("exclusions", contract("exclusions").table([row]), job="tests")
    assert f"{address}/shards/0.tar" in purge_all(root).line()
    assert store.cat(store.find(address)) == theirs


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("nosuch://bucket/0.tar", "Protocol not known"),
        ("s3://no-such-bucket-of-ours/0.tar", "cannot be read"),
    ],
)
def test_a_store_that_refuses_is_one_clear_line(object_store, place, told):
    with pytest.raises(BadInput, match=told) as refused:
        ShardReader(place)
    assert len(str(refused.value).splitlines()) == 1


def test_credentials_that_are_not_there_are_one_clear_line(root, bucket, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(BadInput, match="cannot be opened: Unable to locate credentials"):
        ingest(root, "b", f"{bucket[1]}/shards", IN_PLACE)
    fsspec.filesystem("s3").clear_instance_cache()


def test_readers_in_the_order_of_offsets_ask_a_store_for_blocks_not_for_images(
    object_store, tmp_path, monkeypatch
):
    address = f"{object_store}/{tmp_path.name}/0.tar"
    store, path = fsspec.core.url_to_fs(address)
    store.pipe_file(path, bytes(range(256)) * 4096)  # 1 MiB
    asked = []
    fetch = S3File._fetch_range

    def counted(file, begin, end):
        asked.append(end - begin)
        return fetch(file, begin, end)

    monkeypatch.setattr(S3File, "_fetch_range", counted)
    with ShardReader(address, read_ahead_bytes=2**18) as shard:
        for offset in range(0, 2**20, 4096):
            assert shard.read(offset, 4096)[:3] == bytes([0, 1, 2])
    assert len(asked) <= 5
    assert sum(asked) <= 2**20
    assert read_range(address, 512, 300) == bytes(range(256)) + bytes(range(44))
    assert read_range(address, 2**20 - 4, 300) == bytes([252, 253, 254, 255])
