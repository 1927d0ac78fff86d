"""Upkeep of the tables: fewer files, no leftovers, no facts about what was taken down.

Rows that jobs made keep the fingerprint of their slice: upkeep makes nothing stale. Versions that
a training run pinned stay readable, in data and in log.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties

from schemas.errors import BadInput
from schemas.registry import all_contracts, contract
from schemas.slice_writer import WrittenFile
from schemas.tables import Commit, Tables, slice_paths

# A file of a million short rows is some ten megabytes: few files a batch, none of them huge.
ROWS_PER_FILE = 1_000_000
_ROWS_AT_ONCE = 65_536

Keep = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class Upkeep:
    """What was done to one table: files before and after, rows removed."""

    table: str
    files_before: int
    files_after: int
    rows_removed: int


def compact(tables: Tables, name: str, *, min_files: int = 4) -> Upkeep:
    """Rewrite the slices of a table that are spread over many files, each into few.

    Args:
        tables: of a root.
        name: the table.
        min_files: slices of fewer files are left alone.

    Raises:
        TableMissing: there is no such table yet.
        CommitConflict: others kept committing.
    """
    return _rewrite(tables, name, lambda rows: rows, lambda files: len(files) >= min_files)


def remove_rows(tables: Tables, name: str, sample_rows: Sequence[int]) -> Upkeep:
    """Remove all facts about some samples from the newest version of a table.

    Raises:
        TableMissing: there is no such table yet.
        CommitConflict: others kept committing.
    """
    gone = pa.array(sorted(sample_rows), pa.int64())
    store = tables.store(name)

    def concerned(files: Sequence[str]) -> bool:
        return any(
            pc.any(
                pc.is_in(store.columns(file, ["sample_row"])["sample_row"], value_set=gone)
            ).as_py()
            for file in files
        )

    def keep(rows: pa.Table) -> pa.Table:
        return rows.filter(pc.invert(pc.is_in(rows["sample_row"], value_set=gone)))

    return _rewrite(tables, name, keep, concerned)


def change_rows(
    tables: Tables, name: str, concerned: pa.Array, column: str, change: Keep
) -> Upkeep:
    """Rewrite the rows of a table whose `column` is one of `concerned`, through `change`.

    Raises:
        TableMissing: there is no such table yet.
        CommitConflict: others kept committing.
    """
    store = tables.store(name)

    def has_some(files: Sequence[str]) -> bool:
        return any(_has_any(store.columns(file, [column])[column], concerned) for file in files)

    return _rewrite(tables, name, change, has_some)


def pinned_versions(tables: Tables) -> dict[str, list[int]]:
    """Return, by table, the versions that training runs pinned."""
    pins: dict[str, set[int]] = {}
    for text in tables.read("training_runs", ["table_versions"])["table_versions"].to_pylist():
        for name, version in json.loads(text).items():
            pins.setdefault(name, set()).add(int(version))
    return {name: sorted(versions) for name, versions in pins.items()}


def vacuum(
    tables: Tables, name: str, *, retention_hours: int = 168, dry_run: bool = False
) -> list[str]:
    """Delete data files that no kept version needs, leftovers of killed jobs included.

    Kept are the newest version, those younger than the retention, and those that runs pinned.

    Args:
        tables: of a root.
        name: the table.
        retention_hours: files younger than this stay; they may belong to a job under way.
        dry_run: delete nothing.

    Returns:
        The files, relative to the table.

    Raises:
        TableMissing: there is no such table yet.
    """
    if retention_hours < 0:
        raise BadInput(f"a retention of {retention_hours} hours is in the future; 0 or more")
    delta = tables.open(name).delta
    pins = pinned_versions(tables).get(name, [])
    found: list[str] = delta.vacuum(
        retention_hours=retention_hours,
        dry_run=dry_run,
        enforce_retention_duration=False,
        full=True,
        keep_versions=pins or None,
    )
    return sorted(found)


def tables_of_samples(tables: Tables) -> Iterator[str]:
    """Yield the names of existing tables whose rows are facts about samples."""
    for name in all_contracts():
        # Where a sample lies is no fact about it, and take-downs are looked up by it.
        if name != "sample_index" and "sample_row" in contract(name).names and tables.exists(name):
            yield name


def _rewrite(
    tables: Tables, name: str, keep: Keep, wanted: Callable[[Sequence[str]], bool]
) -> Upkeep:
    before = after = removed = 0
    for slice_, files in list(slice_paths(tables.open(name).delta)):
        if not wanted(files):
            before, after = before + len(files), after + len(files)
            continue
        written, lost = _write_anew(tables, name, slice_, files, keep)
        _swap(tables, name, slice_, files, written)
        before, after, removed = before + len(files), after + len(written), removed + lost
    return Upkeep(name, before, after, removed)


def _write_anew(
    tables: Tables, name: str, slice_: Mapping[str, str], files: Sequence[str], keep: Keep
) -> tuple[list[WrittenFile], int]:
    commit_id, store = uuid.uuid4().hex[:16], tables.store(name)
    stored = contract(name).stored_schema
    done: list[WrittenFile] = []
    writer, held, lost = tables.writer(name, slice_, commit_id), 0, 0
    try:
        for file in files:
            with store.parquet(file) as opened:
                for batch in opened.iter_batches(_ROWS_AT_ONCE):
                    rows = _with_all_columns(pa.Table.from_batches([batch]), stored)
                    kept = keep(rows)
                    lost += rows.num_rows - kept.num_rows
                    if kept.num_rows:
                        writer.write(kept)
                        held += kept.num_rows
                    if held >= ROWS_PER_FILE:
                        done += writer.close()
                        writer, held = tables.writer(name, slice_, commit_id), 0
        return done + writer.close(), lost
    except BaseException:
        writer.abort()
        tables.discard(name, commit_id)
        raise


def _with_all_columns(rows: pa.Table, stored: pa.Schema) -> pa.Table:
    """Add columns that the contract gained since the file was written, all null."""
    for field in stored:
        if field.name not in rows.schema.names:
            rows = rows.append_column(field.name, pa.nulls(rows.num_rows, field.type))
    return rows.select(stored.names)


def _swap(
    tables: Tables,
    name: str,
    slice_: Mapping[str, str],
    old: Sequence[str],
    new: Sequence[WrittenFile],
) -> Commit:
    properties = CommitProperties(custom_metadata={"job": "upkeep"})
    return tables.replace_files(name, slice_, old, new, properties)


def _has_any(values: pa.ChunkedArray, wanted: pa.Array) -> bool:
    return bool(pc.any(pc.is_in(values, value_set=wanted)).as_py())
