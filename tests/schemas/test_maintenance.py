"""Upkeep on real Delta tables: fewer files, no leftovers, pinned versions stay."""

import json
import threading

import pyarrow as pa
import pytest

from schemas import maintenance
from schemas.errors import CommitConflict, TableDamaged, TableMissing
from schemas.registry import contract
from schemas.tables import slice_paths

NAME = "scores/classical"
SLICE = {"scorer_version": "v1", "ingest_batch": "b"}


def rows_of(first, count):
    columns = {n: pa.nulls(count, pa.float64()) for n in contract(NAME).names}
    columns |= {
        "sample_row": pa.array(range(first, first + count), pa.int64()),
        "ingest_batch": pa.repeat("b", count),
        "scorer_version": pa.repeat("v1", count),
        "unscored_reason": pa.repeat("tests", count),
    }
    return pa.table({n: columns[n] for n in contract(NAME).names})


def write(root, parts, slice_=SLICE, inputs=None):
    files = []
    for number, count in enumerate(parts):
        writer = root.tables.writer(NAME, slice_, f"{number:016x}")
        table = rows_of(100 * ord(slice_["ingest_batch"]) + sum(parts[:number]), count)
        for key, value in slice_.items():
            place = table.schema.get_field_index(key)
            table = table.set_column(place, key, pa.repeat(value, count))
        writer.write(table)
        files += writer.close()
    return root.tables.commit(NAME, files, slice=slice_, inputs=inputs or {"a": 1}, job="tests")


def test_compaction_makes_few_files_of_many_and_changes_no_row_and_no_fingerprint(root):
    write(root, [3, 2, 4, 1, 5])
    write(root, [2, 2], {**SLICE, "ingest_batch": "c"})
    before = root.tables.read(NAME)
    pinned = root.tables.version(NAME)
    found = maintenance.compact(root.tables, NAME)
    assert (found.files_before, found.files_after, found.rows_removed) == (7, 3, 0)
    assert root.tables.read(NAME).equals(before)
    assert root.tables.open(NAME, pinned).read().equals(before)
    assert root.tables.is_current(NAME, SLICE, {"a": 1})
    assert maintenance.compact(root.tables, NAME).files_after == 3
    assert root.tables.version(NAME) == pinned + 1


def test_vacuum_keeps_what_runs_pinned_and_removes_the_rest(root):
    write(root, [3], inputs={"a": 1})
    pinned = root.tables.version(NAME)
    write(root, [4], inputs={"a": 2})
    lost = root.tables.version(NAME)
    write(root, [5], inputs={"a": 3})
    orphan = root.tables.table_path(NAME) / "scorer_version=v1/ingest_batch=b/part-x.parquet"
    orphan.write_bytes(b"left by a killed job")
    run = {
        "run_id": "r", "name": "r", "policy_id": "p", "ingest_batches": ["b"],
        "table_versions": json.dumps({NAME: pinned}), "noise_space": "pixel", "config": "{}",
        "code_version": "0", "status": "finished", "num_images_seen": 0, "checkpoint": None,
        "metrics": "{}", "audit": "{}",
    }  # fmt: skip
    row = {name: run.get(name) for name in contract("training_runs").names}
    root.tables.upsert("training_runs", contract("training_runs").table([row]), job="tests")
    assert len(maintenance.vacuum(root.tables, NAME, retention_hours=0, dry_run=True)) == 2
    assert orphan.exists()
    assert len(maintenance.vacuum(root.tables, NAME, retention_hours=0)) == 2
    assert not orphan.exists()
    assert root.tables.open(NAME, pinned).read().num_rows == 3
    assert root.tables.read(NAME).num_rows == 5
    with pytest.raises(TableDamaged, match="parquet; a vacuum"):
        root.tables.open(NAME, lost).read()


def test_removing_rows_touches_only_the_slices_that_hold_them(root):
    write(root, [3, 3])
    write(root, [2], {**SLICE, "ingest_batch": "c"})
    others = {s["ingest_batch"]: f for s, f in slice_paths(root.tables.open(NAME).delta)}
    found = maintenance.remove_rows(root.tables, NAME, [9804, 99])
    assert found.rows_removed == 1
    assert root.tables.read(NAME, ["sample_row"], {"ingest_batch": "b"})[
        "sample_row"
    ].to_pylist() == [9800, 9801, 9802, 9803, 9805]
    now = {s["ingest_batch"]: f for s, f in slice_paths(root.tables.open(NAME).delta)}
    assert now["c"] == others["c"]
    assert root.tables.is_current(NAME, SLICE, {"a": 1})


def test_a_slice_that_changes_meanwhile_keeps_its_new_rows(root, monkeypatch):
    write(root, [1, 1, 1, 1])
    told = maintenance._write_anew

    def slowly(*arguments):
        found = told(*arguments)
        write(root, [7], inputs={"a": 2})
        return found

    monkeypatch.setattr(maintenance, "_write_anew", slowly)
    with pytest.raises(CommitConflict, match="changed meanwhile"):
        maintenance.compact(root.tables, NAME)
    assert root.tables.read(NAME).num_rows == 7
    files = [f for _, slice_files in slice_paths(root.tables.open(NAME).delta) for f in slice_files]
    there = {p.name for p in root.tables.table_path(NAME).rglob("*.parquet")}
    assert {f.rpartition("/")[2] for f in files} <= there


def test_writers_compaction_and_vacuum_side_by_side_all_end_and_lose_nothing(root):
    for batch in "wxyz":
        write(root, [1, 1, 1, 1], {**SLICE, "ingest_batch": batch})
    failed = []

    def work(batch):
        for number in range(3):
            write(root, [1, 1, 1, 1 + number], {**SLICE, "ingest_batch": batch}, {"n": number})

    def upkeep():
        for _ in range(3):
            try:
                maintenance.compact(root.tables, NAME)
            except CommitConflict:
                continue
            except Exception as error:  # noqa: BLE001 - told below
                failed.append(error)

    threads = [threading.Thread(target=work, args=(b,)) for b in "wxyz"]
    threads.append(threading.Thread(target=upkeep))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    maintenance.vacuum(root.tables, NAME, retention_hours=0)
    assert not failed
    counts = {b: root.tables.read(NAME, where={"ingest_batch": b}).num_rows for b in "wxyz"}
    assert counts == dict.fromkeys("wxyz", 6)


def test_upkeep_of_a_table_that_is_not_there_is_a_clear_error(root):
    with pytest.raises(TableMissing, match="run the job that writes it"):
        maintenance.compact(root.tables, NAME)
