"""Sources beside folders, tars and lists: Parquet with bytes, and files of an object store."""

import io
import tarfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.ingest import IngestConfig, ingest
from pipelines.ingest.remote import RemoteSource
from pipelines.ingest.source import open_source
from schemas.errors import BadInput
from tests.data.pictures import attempts, encoded, samples, stored_bytes

CONFIG = IngestConfig(show_progress=False, num_workers=1)


def write_parquet(path, column, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": column, **more}), path)
    return path


def hugging_face(*images):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": image, "path": f"{n}.png"} for n, image in enumerate(images)], kind)


def test_rows_of_parquet_files_become_samples_with_their_words(root, tmp_path):
    first = hugging_face(encoded(1), None, b"<html>")
    write_parquet(
        tmp_path / "set/data/0.parquet", first, text=["one", "two", "three"], label=[4, 5, 6]
    )
    write_parquet(tmp_path / "set/data/1.parquet", pa.array([encoded(2)], pa.large_binary()))
    report = ingest(root, "b", tmp_path / "set", CONFIG)
    assert (report.read, report.written) == (4, 2)
    stored = samples(root)
    assert [stored_bytes(root, row) for row in stored] == [encoded(1), encoded(2)]
    assert [(row["caption"], row["label"]) for row in stored] == [("one", "4"), (None, None)]
    assert {row["source"] for row in stored} == {"set"}
    found = {key: (row["status"], row["reason"]) for key, row in attempts(root).items()}
    assert found == {
        "data/0.parquet#0": ("stored", None),
        "data/0.parquet#1": ("rejected", "missing_image"),
        "data/0.parquet#2": ("rejected", "not_an_image"),
        "data/1.parquet#0": ("stored", None),
    }
    assert ingest(root, "b", tmp_path / "set", CONFIG).unchanged == 2
    assert not list(root.work.rglob("*.bin"))


def test_a_parquet_file_of_urls_is_a_list_and_one_with_bytes_is_none(tmp_path):
    urls = tmp_path / "urls.parquet"
    pq.write_table(pa.table({"url": ["http://a/1"], "image": ["no bytes"]}), urls)
    assert open_source(urls, CONFIG).kind == "url_list"
    assert (
        open_source(write_parquet(tmp_path / "a.parquet", [encoded(1)]), CONFIG).kind == "parquet"
    )


def test_a_damaged_parquet_file_and_a_row_with_too_many_bytes_are_told(root, tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [encoded(1), encoded(2)])
    small = CONFIG.model_copy(update={"max_image_bytes": 10})
    with pytest.raises(BadInput, match="too_many_bytes 2"):
        ingest(root, "b", path, small)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadInput, match=r"a\.parquet cannot be read"):
        ingest(root, "b", path, CONFIG)


@pytest.fixture
def store():
    """An object store in memory, with a shard, a Parquet file and a folder of images."""
    found = fsspec.filesystem("memory")
    found.store.clear()
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as out:
        for name, data in (
            ("0.png", encoded(1)),
            ("0.txt", b"of the tar"),
            ("../../x.png", encoded(2)),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    found.pipe("/bucket/shards/00000.tar", tar.getvalue())
    found.pipe("/bucket/shards/notes.md", b"nothing")
    buffer = io.BytesIO()
    pq.write_table(pa.table({"jpg": [encoded(3)]}), buffer)
    found.pipe("/bucket/table/a.parquet", buffer.getvalue())
    found.pipe("/bucket/images/cat/1.png", encoded(4))
    yield found
    found.store.clear()


def test_shards_of_an_object_store_are_ingested_under_their_own_addresses(root, store):
    report = ingest(root, "b", "memory://bucket/shards/*.tar", CONFIG)
    assert report.written == 2
    assert [row["caption"] for row in samples(root)] == ["of the tar", None]
    uris = {row["source_uri"] for row in attempts(root).values()}
    assert uris == {
        "memory:///bucket/shards/00000.tar#0.png",
        "memory:///bucket/shards/00000.tar#../../x.png",
    }
    assert not list(root.work.rglob("*.tar"))
    assert ingest(root, "b", "memory://bucket/shards/*.tar", CONFIG).unchanged == 2


@pytest.mark.parametrize(
    ("uri", "kind", "count"),
    [("shards", "tar", 2), ("table/a.parquet", "parquet", 1), ("images", "folder", 1)],
)
def test_folders_and_single_files_of_a_store_are_known_by_what_they_hold(
    root, store, uri, kind, count
):
    assert open_source(f"memory://bucket/{uri}", CONFIG).kind == kind
    assert ingest(root, "b", f"memory://bucket/{uri}", CONFIG).written == count


def test_what_was_fetched_whole_is_not_fetched_again(tmp_path, store, monkeypatch):
    source = RemoteSource("memory://bucket/shards", CONFIG, open_source)
    first = source.items(tmp_path, {})
    monkeypatch.setattr(type(store), "get_file", lambda *_: pytest.fail("fetched again"))
    assert RemoteSource("memory://bucket/shards", CONFIG, open_source).items(tmp_path, {}) == first


@pytest.mark.parametrize(
    "uri", ["memory://bucket/nothing", "nosuch://x/y", "memory://bucket/no*.tar"]
)
def test_an_address_with_nothing_behind_it_is_one_clear_line(root, store, uri):
    with pytest.raises(BadInput, match=f"{uri.split(':')[0]}.*(cannot be opened|holds no tar)"):
        ingest(root, "b", uri, CONFIG)
