"""A sample is found by the beginning of its hash; a batch that has no index is scanned."""

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.ids import sample_row_of
from schemas.lookup import find, index_all, index_batch
from schemas.registry import contract
from schemas.slice_writer import SMALL_GROUPS
from schemas.snapshot import Snapshot

PREFIXES = st.integers(1, 64)


def ids_of(seed, count):
    return [hashlib.sha256(f"{seed}-{n}".encode()).hexdigest() for n in range(count)]


def samples_table(ordinal, batch, ids):
    rows = [
        {
            "sample_row": sample_row_of(ordinal, position),
            "sample_id": sample_id,
            "ingest_batch": batch,
            "shard": f"{batch}/0.tar",
            "byte_offset": 512,
            "num_bytes": 10,
            "width": 8,
            "height": 8,
            "format": "png",
            "source": "s",
            "phash": 0,
            "loop_number": 0,
        }
        for position, sample_id in enumerate(ids)
    ]
    return pa.Table.from_pylist(rows, schema=contract("samples").arrow_schema)


def store(root, ordinal, batch, ids):
    table = samples_table(ordinal, batch, ids)
    slice_ = {"ingest_batch": batch}
    root.tables.commit("samples", table, slice=slice_, inputs={"ids": ids}, job="test")
    return table


def found(root, digits):
    return {(r["ingest_batch"], r["sample_id"]) for r in find(root.tables, digits).to_pylist()}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(seed=st.integers(0, 99), digits=PREFIXES, indexed=st.sets(st.sampled_from("abc")))
def test_every_prefix_finds_what_a_scan_finds_whatever_is_indexed(
    tmp_path_factory, seed, digits, indexed
):
    from schemas.root import Root

    root = Root.create(tmp_path_factory.mktemp("lookup") / "r")
    known = {name: ids_of(f"{seed}{name}", 40) for name in "ab"}
    known["c"] = known["a"][:3]  # the same images in another batch
    for ordinal, (name, ids) in enumerate(known.items()):
        store(root, ordinal, name, ids)
    for name in sorted(indexed):
        index_batch(root.tables, name)
    start = known["a"][0][:digits]
    wanted = {(b, i) for b, ids in known.items() for i in ids if i.startswith(start)}
    assert found(root, start) == wanted
    assert found(root, "f" * 60) == set()


def test_an_index_is_made_once_and_anew_when_its_batch_changes(root):
    ids = ids_of(0, 10)
    store(root, 0, "a", ids)
    store(root, 1, "b", ids_of(1, 10))
    assert index_all(root.tables) == 2
    assert index_all(root.tables) == 0
    store(root, 0, "a", [*ids[1:], *ids_of(2, 1)])
    assert found(root, ids[0]) == set()  # by a scan of that batch
    assert index_all(root.tables) == 1
    assert found(root, ids[0]) == set()
    assert found(root, ids_of(2, 1)[0][:12]) == {("a", ids_of(2, 1)[0])}


def test_one_row_group_a_batch_is_read_and_no_samples_but_the_one_found(root, monkeypatch):
    monkeypatch.setitem(SMALL_GROUPS, "sample_index", 100)
    batches = {f"b{n}": ids_of(n, 1000) for n in range(4)}
    for ordinal, (name, ids) in enumerate(batches.items()):
        store(root, ordinal, name, ids)
    index_all(root.tables)
    wanted = batches["b2"][500]
    groups = 0
    for uri in root.tables.open("sample_index").file_uris():
        metadata = pq.read_metadata(uri)
        column = metadata.schema.names.index("hash_prefix")
        prefix = int(wanted[:15], 16)
        ranges = [metadata.row_group(g).column(column).statistics for g in range(10)]
        groups += sum(r.min <= prefix <= r.max for r in ranges)
    assert groups <= 4
    read = []
    plain = Snapshot.read
    monkeypatch.setattr(
        Snapshot, "read", lambda self, *a, **k: read.append(plain(self, *a, **k)) or read[-1]
    )
    assert found(root, wanted) == {("b2", wanted)}
    assert sum(table.num_rows for table in read) == 2  # its row in the index and in samples


def test_a_root_without_samples_has_nothing_to_index(root):
    assert index_all(root.tables) == 0


@pytest.mark.parametrize("digits", ["", "0"])
def test_short_beginnings_find_all_that_begin_so(root, digits):
    ids = ids_of(0, 50)
    store(root, 0, "a", ids)
    index_all(root.tables)
    assert {i for _, i in found(root, digits)} == {i for i in ids if i.startswith(digits)}
