"""Tables on an object store: the same promises as in a folder, and no secret anywhere."""

import contextlib
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas import __main__ as command
from schemas import maintenance
from schemas.errors import BadInput, CommitConflict, ContractViolation, TableMissing
from schemas.migrations import ROOT_VERSION
from schemas.registry import contract
from schemas.root import Root, migrate
from schemas.store import Store, parquet_of
from schemas.tables import Tables

NAME = "reference_sets"
SLICE = {"reference_set": "x"}


@pytest.fixture
def remote(tmp_path, object_store):
    """A root whose tables lie on the store, under a prefix of their own."""
    return Root.create(tmp_path / "r", tables=f"{object_store}/{tmp_path.name}")


def members(rows, reference_set="x"):
    return pa.table(
        {
            "reference_set": [reference_set] * len(rows),
            "sample_row": pa.array(rows, pa.int64()),
            "role": ["trusted"] * len(rows),
        },
        schema=contract(NAME).arrow_schema,
    )


def commit(root, rows, reference_set="x", inputs=None):
    return root.tables.commit(
        NAME,
        members(rows, reference_set),
        slice={"reference_set": reference_set},
        inputs=inputs or {"rows": list(rows)},
        job="test",
    )


def rows_of(root, **where):
    return root.tables.read(NAME, ["sample_row"], where or None)["sample_row"].to_pylist()


def data_files(root):
    return sorted(name for name in root.tables.store(NAME).names() if name.endswith(".parquet"))


def test_slices_are_replaced_replayed_and_pinned_as_in_a_folder(remote):
    assert not remote.tables.exists(NAME)
    assert commit(remote, [1, 2]).written == 2
    assert commit(remote, [5], "y").version == 1
    assert commit(remote, [1, 2]).unchanged == 2
    assert commit(remote, [3]).version == 2
    assert rows_of(remote, reference_set="x") == [3]
    assert sorted(rows_of(remote)) == [3, 5]
    then = remote.tables.open(NAME, 0)
    assert then.read()["sample_row"].to_pylist() == [1, 2]
    with pytest.raises(TableMissing, match="at version 9 cannot be opened"):
        remote.tables.open(NAME, 9)


def test_files_of_executors_become_visible_in_one_commit_and_others_can_be_discarded(remote):
    writers = [remote.tables.writer(NAME, SLICE, "run1") for _ in range(3)]
    done = []
    for number, writer in enumerate(map(pickle.loads, map(pickle.dumps, writers))):
        writer.write(members([number]))
        done += writer.close()
    assert not remote.tables.exists(NAME)
    remote.tables.commit(NAME, done, slice=SLICE, inputs={"n": 1}, job="test")
    assert rows_of(remote) == [0, 1, 2]
    lost = remote.tables.writer(NAME, SLICE, "run2")
    lost.write(members([9]))
    lost.close()
    assert remote.tables.discard(NAME, "run2") == 1
    assert data_files(remote) == sorted(file.path for file in done)
    uris = remote.tables.open(NAME).file_uris()
    assert all(uri.startswith("s3://") for uri in uris)
    assert pq.read_metadata(uris[0]).num_rows == parquet_of(uris[0]).metadata.num_rows == 1


def test_what_breaks_the_contract_leaves_no_file(remote):
    writer = remote.tables.writer(NAME, SLICE, "run1")
    writer.write(members([1]))
    with pytest.raises(ContractViolation, match="reference_set"):
        writer.write(members([2], "other"))
    writer.abort()
    twice = remote.tables.writer(NAME, SLICE, "run2")
    twice.write(members([1]))
    twice.write(members([1]))
    with pytest.raises(ContractViolation, match="repeat a key"):
        remote.tables.commit(NAME, twice.close(), slice=SLICE, inputs={"n": 1}, job="test")
    assert data_files(remote) == []


def test_four_writers_without_a_common_lock_all_commit_and_none_twice(remote, monkeypatch):
    # As on machines of their own: nothing but the store keeps the writers apart.
    monkeypatch.setattr(Tables, "_commit_lock", lambda self, name: contextlib.nullcontext())

    def commit_many(worker):
        root = Root.open(remote.path)
        for number in range(4):
            commit(root, [number], f"w{worker}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(commit_many, range(4)))
    assert remote.tables.version(NAME) == 15
    assert rows_of(remote) == [3, 3, 3, 3]


def test_compaction_and_vacuum_keep_rows_and_fingerprint(remote):
    writers = [remote.tables.writer(NAME, SLICE, "run1") for _ in range(4)]
    done = []
    for number, writer in enumerate(writers):
        writer.write(members([number]))
        done += writer.close()
    remote.tables.commit(NAME, done, slice=SLICE, inputs={"n": 1}, job="test")
    assert maintenance.compact(remote.tables, NAME).files_after == 1
    assert len(maintenance.vacuum(remote.tables, NAME, retention_hours=0)) == 4
    assert rows_of(remote) == [0, 1, 2, 3]
    assert len(data_files(remote)) == 1
    assert remote.tables.is_current(NAME, SLICE, {"n": 1})


def test_take_downs_are_applied_and_facts_removed(remote, make_batch, images):
    samples = make_batch(remote, "b", images(3, side=8))
    rows, gone = samples["sample_row"].to_pylist(), samples["sample_id"][1].as_py()
    commit(remote, rows)
    row = {"sample_id": gone, "excluded_at": "2026-01-01", "why": "asked"}
    table = pa.Table.from_pylist([row]).cast(
        pa.schema([("sample_id", "string"), ("excluded_at", "timestamp[s]"), ("why", "string")])
    )
    excluded = contract("exclusions").arrow_schema
    table = table.set_column(1, "excluded_at", table["excluded_at"].cast(excluded.field(1).type))
    remote.tables.upsert("exclusions", table.cast(excluded), job="test")
    assert rows_of(remote) == [rows[0], rows[2]]
    assert remote.tables.places_ever_of(frozenset([gone])).num_rows == 1
    assert maintenance.remove_rows(remote.tables, NAME, [rows[1]]).rows_removed == 1


def test_another_folder_joins_the_same_tables(remote, tmp_path, capsys):
    commit(remote, [1])
    location = remote.tables.place.location
    arguments = ["create", "--root", str(tmp_path / "other"), "--tables", location]
    assert command.main(arguments) == 0
    assert location in capsys.readouterr().out
    assert rows_of(Root.open(tmp_path / "other")) == [1]
    with pytest.raises(BadInput, match="lie at s3:"):
        Root.create(remote.path, tables=f"{location}-2")
    assert migrate(remote.path) == []


def test_the_schema_version_stands_where_the_tables_lie(remote):
    remote.tables.place.write_text("root.json", '{"schema_version": 1}')
    commit(Root(remote.path), [1])
    with pytest.raises(Exception, match="migrate"):
        Root.open(remote.path)
    assert migrate(remote.path) == list(range(2, ROOT_VERSION + 1))
    assert rows_of(Root.open(remote.path)) == [1]


def test_no_secret_is_in_what_travels_or_is_written(remote):
    commit(remote, [1])
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    assert len(secret) > 10
    writer = remote.tables.writer(NAME, SLICE, "run1")
    assert secret.encode() not in pickle.dumps(writer)
    store = remote.tables.place
    for name in store.names():
        with store.filesystem.open_input_stream(store.full(name)) as file:
            assert secret.encode() not in file.read()
    for path in remote.path.rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    "address", ["s3://key:hidden@bucket/x", "s3://bucket/x?secret=hidden", "gs://bucket/x", "s3://"]
)
def test_an_address_of_another_kind_or_with_a_secret_is_refused_and_not_repeated(address):
    with pytest.raises(BadInput, match="AWS_") as caught:
        Store.of(address)
    assert "hidden" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_one_clear_line(tmp_path, object_store):
    with pytest.raises(BadInput, match="check AWS_") as caught:
        Root.create(tmp_path / "r", tables="s3://no-such-bucket/x")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r" / "root.json").exists()


def test_two_machines_that_register_at_once_get_no_common_ordinal(remote):
    def row(name):
        return {
            "ingest_batch": name,
            "batch_ordinal": 0,
            "role": "pool",
            "source_kind": "folder",
            "source_uri": "u",
        }

    table = contract("ingest_batches").table
    remote.tables.upsert("ingest_batches", table([row("a")]), job="test")
    with pytest.raises((ContractViolation, CommitConflict), match="batch_ordinal stands once"):
        remote.tables.upsert("ingest_batches", table([row("b")]), job="test")
    assert remote.tables.read("ingest_batches").num_rows == 1
