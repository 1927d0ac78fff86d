"""The one door to the tables: pinned reads with exclusions applied, checked atomic commits.

Way of the rows: writers put Parquet files beside the log, then one delta-rs transaction makes
them visible and removes what the slice held before. A transaction id made from the job's inputs
makes a replay a no-op. Nothing else writes a table.
"""

import contextlib
import json
import random
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions
from filelock import FileLock

from schemas.contract import Contract
from schemas.errors import CommitConflict, ContractViolation, TableMissing
from schemas.ids import canonical_hash
from schemas.registry import contract
from schemas.slice_writer import SliceWriter, WrittenFile

NUM_COMMIT_TRIES = 20
# 15 hex digits are 60 bits: a Delta transaction version is a signed 64-bit integer.
FINGERPRINT_LENGTH = 15

Where = Mapping[str, Any]


@dataclass(frozen=True)
class Commit:
    """What a commit did. `version` is the table's version that holds the slice."""

    version: int
    written: int
    unchanged: int


class Snapshot:
    """One table at one version. Rows of excluded samples are left out by every read."""

    def __init__(self, tables: "Tables", wanted: Contract, delta: DeltaTable) -> None:
        self._tables = tables
        self._delta = delta
        self.contract = wanted

    @property
    def version(self) -> int:
        """The version that is read, whatever is committed meanwhile."""
        return int(self._delta.version())

    def read(
        self,
        columns: Sequence[str] | None = None,
        where: Where | None = None,
        *,
        exclude: bool = True,
    ) -> pa.Table:
        """Read rows, in the order of their key.

        Args:
            columns: names to return; all by default.
            where: column to a value, or to a list of values; joined by `and`.
            exclude: leave out samples that were taken down (only the take-down itself sets False).

        Returns:
            A table of the contract's types.
        """
        names = list(columns) if columns is not None else self.contract.names
        rule = _expression(self.contract, where)
        if exclude:
            rule = _and(rule, self._exclusion_rule())
        wanted = [*dict.fromkeys([*names, *self.contract.key])]
        table = self._dataset(where).to_table(columns=wanted, filter=rule)
        schema = pa.schema([self.contract.arrow_schema.field(n) for n in wanted])
        table = table.cast(schema)
        return table.sort_by(_order(self.contract)).select(names)

    def file_uris(self, where: Where | None = None) -> list[str]:
        """Return absolute paths of the data files of the partitions named by `where`."""
        filters = [
            (k, "in", [*v]) if _is_list(v) else (k, "=", v) for k, v in (where or {}).items()
        ]
        return [_plain_path(uri) for uri in self._delta.file_uris(filters or None)]

    @property
    def delta(self) -> DeltaTable:
        """The Delta table at this version, for upkeep (`schemas.maintenance`)."""
        return self._delta

    def excluded_sample_rows(self) -> frozenset[int]:
        """Return the sample rows that were taken down, for readers that go past `read`."""
        return self._tables.excluded_sample_rows

    def _dataset(self, where: Where | None) -> ds.Dataset:
        # Not delta-rs's own dataset: its guarantees from file statistics make pyarrow's `is_in`
        # wrong where a bound is unknown. Parquet footers prune row groups just as well.
        parts = {k: v for k, v in (where or {}).items() if k in self.contract.partition_by}
        hive = pa.schema([self.contract.arrow_schema.field(k) for k in self.contract.partition_by])
        return ds.dataset(
            self.file_uris(parts),
            schema=self.contract.arrow_schema,
            format="parquet",
            partitioning=ds.partitioning(hive, flavor="hive"),
            partition_base_dir=str(self._tables.table_path(self.contract.name)),
        )

    def _exclusion_rule(self) -> ds.Expression | None:
        ids = self._tables.excluded_sample_ids if "sample_row" in self.contract.names else None
        if not ids:
            return None
        if "sample_id" in self.contract.names:
            gone = pa.array(sorted(ids))
            rule = ~ds.field("sample_id").isin(gone)
            # An attempt without bytes has no sample_id and stays visible.
            return rule | ds.field("sample_id").is_null()
        rows = pa.array(sorted(self._tables.excluded_sample_rows), type=pa.int64())
        return ~ds.field("sample_row").isin(rows) if len(rows) else None


class Tables:
    """All tables of one root."""

    def __init__(self, path: Path, locks: Path) -> None:
        self.path = path
        self._locks = locks
        # What was taken down, kept for as long as the versions that it was read from are newest.
        self._excluded_ids: tuple[int, frozenset[str]] = (-1, frozenset())
        self._excluded_rows: tuple[tuple[int, int], frozenset[int]] = ((-1, -1), frozenset())

    def table_path(self, name: str) -> Path:
        """Folder of the table `name`; KeyError if no contract has that name."""
        return self.path / contract(name).name

    def exists(self, name: str) -> bool:
        """Say whether the table was ever committed to."""
        return self._delta(name) is not None

    def version(self, name: str) -> int | None:
        """Return the newest version, None where there is no table yet."""
        delta = self._delta(name)
        return None if delta is None else int(delta.version())

    def versions(self, names: Sequence[str]) -> dict[str, int]:
        """Return the newest versions of those of the named tables that exist."""
        found = {name: self.version(name) for name in names}
        return {name: version for name, version in found.items() if version is not None}

    def open(self, name: str, version: int | None = None) -> Snapshot:
        """Open a table, at its newest version or at a pinned one.

        Raises:
            TableMissing: no such table, or its version is gone.
        """
        delta = self._delta(name, version)
        if delta is None:
            raise TableMissing(f"there is no table {name} yet; run the job that writes it")
        return Snapshot(self, contract(name), delta)

    def read(
        self, name: str, columns: Sequence[str] | None = None, where: Where | None = None
    ) -> pa.Table:
        """Read the newest version; no rows where there is no table yet."""
        if not self.exists(name):
            empty = contract(name).empty()
            return empty if columns is None else empty.select(list(columns))
        return self.open(name).read(columns, where)

    def fingerprint(self, name: str, slice: Mapping[str, str]) -> str | None:
        """Return what the slice was made from, None if it was never committed.

        A job's own inputs are the fingerprints of the slices it reads and its configuration.
        """
        delta = self._delta(name)
        if delta is None:
            return None
        found = delta.transaction_version(_slice_key(contract(name), slice))
        return None if found is None else f"{found:0{FINGERPRINT_LENGTH}x}"

    def is_current(self, name: str, slice: Mapping[str, str], inputs: Mapping[str, Any]) -> bool:
        """Say whether the slice was made from exactly these inputs."""
        return self.fingerprint(name, slice) == fingerprint_of(inputs)

    def writer(self, name: str, slice: Mapping[str, str], commit_id: str) -> SliceWriter:
        """Return a writer of one data file of a slice, for this process or for an executor."""
        _slice_key(contract(name), slice)
        return SliceWriter(self.table_path(name), name, dict(slice), commit_id)

    def commit(
        self,
        name: str,
        data: pa.Table | Sequence[WrittenFile],
        *,
        slice: Mapping[str, str],
        inputs: Mapping[str, Any],
        job: str,
        versions: Mapping[str, int] | None = None,
    ) -> Commit:
        """Replace one slice, in one atomic commit.

        Args:
            name: the table.
            data: the slice's rows, or the files that `writer`s of this slice wrote.
            slice: a value for each partition column.
            inputs: everything the rows were made from; the same inputs are a no-op.
            job: who writes, kept in the log.
            versions: table versions that were read, kept in the log.

        Raises:
            ContractViolation: rows break the contract, or a key stands twice.
            CommitConflict: others kept committing; nothing became visible.
        """
        wanted = contract(name)
        key = _slice_key(wanted, slice)
        if isinstance(data, pa.Table):
            data = self._write(name, data, slice)
        else:
            self._check_keys(wanted, data, slice)
        properties = CommitProperties(
            custom_metadata={
                "job": job,
                "slice": key,
                "fingerprint": fingerprint_of(inputs),
                "read_versions": repr(dict(versions or {})),
            },
            app_transactions=[Transaction(key, int(fingerprint_of(inputs), 16))],
        )
        adds = [_add(file, slice) for file in data]
        num_rows = sum(file.num_rows for file in data)

        def attempt() -> Commit:
            delta = self._delta(name)
            if delta is not None and self.is_current(name, slice, inputs):
                if data and _live_paths(delta).issuperset(file.path for file in data):
                    # An earlier try landed although it was reported failed.
                    return Commit(int(delta.version()), num_rows, 0)
                self._remove(name, data)
                return Commit(int(delta.version()), 0, num_rows)
            removes = _removes(delta, slice)
            return Commit(self._log(wanted, delta, [*adds, *removes], properties), num_rows, 0)

        return self._retry(name, attempt, data)

    def upsert(self, name: str, rows: pa.Table, *, job: str) -> Commit:
        """Add rows to a small unpartitioned table, replacing those of the same key.

        Raises:
            ContractViolation: rows break the contract.
            CommitConflict: others kept committing; nothing became visible.
        """
        wanted = contract(name)
        if wanted.partition_by:
            raise ValueError(f"{name} is partitioned; use commit")
        wanted.validate(rows.cast(wanted.arrow_schema))
        rows = rows.cast(wanted.arrow_schema)

        def attempt() -> Commit:
            delta = self._delta(name)
            old = wanted.empty() if delta is None else Snapshot(self, wanted, delta).read()
            merged = _merge(wanted, old, rows)
            if delta is not None and merged.equals(old):
                return Commit(int(delta.version()), 0, rows.num_rows)
            files = self._write(name, merged, {})
            removes = _removes(delta, {})
            properties = CommitProperties(custom_metadata={"job": job})
            try:
                version = self._log(
                    wanted, delta, [*(_add(f, {}) for f in files), *removes], properties
                )
            except BaseException:
                self._remove(name, files)
                raise
            return Commit(version, rows.num_rows, 0)

        return self._retry(name, attempt, [])

    def replace_files(
        self,
        name: str,
        slice: Mapping[str, str],
        old: Sequence[str],
        new: Sequence[WrittenFile],
        properties: CommitProperties,
    ) -> Commit:
        """Put files in the place of others that hold the same facts; for upkeep alone.

        The slice keeps its fingerprint, so no job sees a difference.

        Raises:
            CommitConflict: the old files are no longer those of the slice, or others kept
                committing; nothing became visible.
        """
        wanted = contract(name)

        def attempt() -> Commit:
            delta = self._delta(name)
            if delta is None or not _live_paths(delta).issuperset(old):
                self._remove(name, new)
                raise CommitConflict(f"{name}: {dict(slice)} changed meanwhile; run upkeep again")
            removes = [a for a in _removes(delta, slice) if a.path in set(old)]
            version = self._log(
                wanted, delta, [*(_add(f, slice) for f in new), *removes], properties
            )
            return Commit(version, sum(file.num_rows for file in new), 0)

        return self._retry(name, attempt, new)

    def discard(self, name: str, commit_id: str) -> int:
        """Remove the uncommitted files of a failed job; return how many there were."""
        found = list(self.table_path(name).rglob(f"part-{commit_id}-*.parquet"))
        for file in found:
            file.unlink(missing_ok=True)
        return len(found)

    @property
    def excluded_sample_ids(self) -> frozenset[str]:
        """Sample ids that were taken down, by whichever process."""
        delta = self._delta("exclusions")
        if delta is None:
            return frozenset()
        version = int(delta.version())
        if self._excluded_ids[0] != version:
            ids = Snapshot(self, contract("exclusions"), delta).read(["sample_id"])["sample_id"]
            self._excluded_ids = (version, frozenset(ids.to_pylist()))
        return self._excluded_ids[1]

    @property
    def excluded_sample_rows(self) -> frozenset[int]:
        """Sample rows, in all batches, that are or ever were those of a sample taken down.

        An image may leave its source, and so `samples`, while facts about its row still stand.
        """
        ids = self.excluded_sample_ids
        samples = self._delta("samples") if ids else None
        if samples is None:
            return frozenset()
        versions = (self._excluded_ids[0], int(samples.version()))
        if self._excluded_rows[0] != versions:
            self._excluded_rows = (versions, self._rows_ever_of(ids))
        return self._excluded_rows[1]

    def places_ever_of(self, sample_ids: frozenset[str]) -> pa.Table:
        """Return shard, byte_offset and num_bytes of every place where samples ever lay.

        A batch that grows gets new shards, and those of its earlier versions stay on disk.
        """
        return self._ever_of(sample_ids, ["shard", "byte_offset", "num_bytes"])

    def _rows_ever_of(self, sample_ids: frozenset[str]) -> frozenset[int]:
        found = self._ever_of(sample_ids, ["sample_row"])
        return frozenset(found["sample_row"].to_pylist())

    def _ever_of(self, sample_ids: frozenset[str], columns: Sequence[str]) -> pa.Table:
        files = [path for path in self._ever_committed("samples") if path.exists()]
        rule = ds.field("sample_id").isin(pa.array(sorted(sample_ids), pa.string()))
        stored = ds.dataset(files, schema=contract("samples").stored_schema, format="parquet")
        return stored.to_table(columns=list(columns), filter=rule)

    def _ever_committed(self, name: str) -> list[Path]:
        """Return the data files of all versions whose log entries are kept."""
        path, delta = self.table_path(name), self._delta(name)
        found = set() if delta is None else _live_paths(delta)
        for entry in (path / "_delta_log").glob("*.json"):
            for line in entry.read_text(encoding="utf-8").splitlines():
                added = json.loads(line).get("add")
                if added is not None:
                    found.add(urllib.parse.unquote(added["path"]))
        return sorted(path / file for file in found)

    def _delta(self, name: str, version: int | None = None) -> DeltaTable | None:
        path = str(self.table_path(name))
        if not DeltaTable.is_deltatable(path):
            return None
        try:
            return DeltaTable(path, version=version)
        except DeltaError as error:
            asked = "" if version is None else f" at version {version}"
            raise TableMissing(f"table {name}{asked} cannot be opened: {error}") from error

    def _write(self, name: str, rows: pa.Table, slice: Mapping[str, str]) -> list[WrittenFile]:
        writer = self.writer(name, slice, uuid.uuid4().hex[:16])
        try:
            writer.write(rows)
            return writer.close()
        except BaseException:
            writer.abort()
            raise

    def _remove(self, name: str, files: Sequence[WrittenFile]) -> None:
        """Remove files that no commit made visible.

        A commit may land and then be reported failed, or be interrupted on its way back: what the
        log names is never touched.
        """
        delta = self._delta(name)
        live = set() if delta is None else _live_paths(delta)
        for file in files:
            if file.path not in live:
                (self.table_path(name) / file.path).unlink(missing_ok=True)

    def _check_keys(
        self, wanted: Contract, files: Sequence[WrittenFile], slice: Mapping[str, str]
    ) -> None:
        """Refuse, and remove, files that repeat a key; each was checked only as it was written."""
        if not files:
            return
        keys = [k for k in wanted.key if k not in slice]
        path = self.table_path(wanted.name)
        parts = [pq.read_table(path / f.path, columns=keys, partitioning=None) for f in files]
        table = pa.concat_tables(parts)
        distinct = table.group_by(keys).aggregate([]).num_rows
        if distinct != table.num_rows:
            self._remove(wanted.name, files)
            raise ContractViolation(
                f"{wanted.name}: {table.num_rows - distinct} rows repeat a key {keys} "
                f"in the slice {dict(slice)}"
            )

    def _log(
        self,
        wanted: Contract,
        delta: DeltaTable | None,
        actions: Sequence[AddAction | RemoveAction],
        properties: CommitProperties,
    ) -> int:
        schema, parts = Schema.from_arrow(wanted.arrow_schema), list(wanted.partition_by)
        path = self.table_path(wanted.name)
        if delta is None:
            create_table_with_add_actions(
                str(path),
                schema,
                [a for a in actions if isinstance(a, AddAction)],
                mode="error",
                partition_by=parts,
                # Training runs pin versions for as long as they are of interest, and delta-rs
                # would drop the log of a version after thirty days.
                configuration={"delta.enableExpiredLogCleanup": "false"},
                commit_properties=properties,
            )
            return 0
        delta.create_write_transaction(
            list(actions), "append", schema, parts, commit_properties=properties
        )
        return int(DeltaTable(str(path)).version())

    def _retry(
        self, name: str, attempt: Callable[[], Commit], files: Sequence[WrittenFile]
    ) -> Commit:
        last: Exception | None = None
        for number in range(NUM_COMMIT_TRIES):
            try:
                with self._commit_lock(name):
                    return attempt()
            except (CommitFailedError, DeltaError) as error:
                # Only the log entry is tried again, on a fresh snapshot; the files stay.
                last = error
                pause = min(2.0, 0.05 * 2**number)
                time.sleep(pause * random.random())  # noqa: S311 - jitter, not a draw of data
        self._remove(name, files)
        raise CommitConflict(f"{name}: no commit after {NUM_COMMIT_TRIES} tries: {last}")

    @contextlib.contextmanager
    def _commit_lock(self, name: str) -> Iterator[None]:
        """Serialise the log entries of this machine's writers; other machines meet in delta-rs."""
        self._locks.mkdir(parents=True, exist_ok=True)
        with FileLock(self._locks / f"commit--{name.replace('/', '_')}.lock"):
            yield


def fingerprint_of(inputs: Mapping[str, Any]) -> str:
    """Return the fingerprint of a job's inputs, 15 hex digits."""
    return canonical_hash(dict(inputs), FINGERPRINT_LENGTH)


def _slice_key(wanted: Contract, slice: Mapping[str, str]) -> str:
    if set(slice) != set(wanted.partition_by):
        raise ValueError(f"{wanted.name} wants a value for each of {wanted.partition_by}: {slice}")
    return f"{wanted.name}:" + ",".join(f"{k}={slice[k]}" for k in wanted.partition_by)


def _add(file: WrittenFile, slice: Mapping[str, str]) -> AddAction:
    partition: dict[str, str | None] = dict(slice)
    return AddAction(file.path, file.size, partition, file.modified_ms, True, file.statistics)


def _removes(delta: DeltaTable | None, slice: Mapping[str, str]) -> list[RemoveAction]:
    if delta is None:
        return []
    files = pa.table(delta.get_add_actions(flatten=True)).to_pylist()
    now = int(time.time() * 1000)
    return [
        # get_add_actions gives URL-encoded paths; a RemoveAction with one removes nothing.
        RemoveAction(urllib.parse.unquote(f["path"]), True, now, f["size_bytes"], dict(slice))
        for f in files
        if all(f[f"partition.{k}"] == v for k, v in slice.items())
    ]


def slice_paths(delta: DeltaTable) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Yield each slice of a version with its data files, relative to the table."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for row in pa.table(delta.get_add_actions(flatten=True)).to_pylist():
        key = tuple(
            (name.removeprefix("partition."), value)
            for name, value in row.items()
            if name.startswith("partition.")
        )
        found.setdefault(key, []).append(urllib.parse.unquote(row["path"]))
    for key, files in found.items():
        yield dict(key), sorted(files)


def _live_paths(delta: DeltaTable) -> set[str]:
    """Return the data files of a version, relative to the table, not URL-encoded."""
    actions = pa.table(delta.get_add_actions(flatten=True))
    return {urllib.parse.unquote(path) for path in actions["path"].to_pylist()}


def _merge(wanted: Contract, old: pa.Table, new: pa.Table) -> pa.Table:
    keys = list(wanted.key)
    # Arrow joins no tables with list columns: join the keys alone, then take the rows.
    places = old.select(keys).append_column("_place", pa.array(range(old.num_rows), pa.int64()))
    kept = places.join(new.select(keys), keys=keys, join_type="left anti")["_place"]
    merged = pa.concat_tables([old.take(kept), new])
    return merged.sort_by(_order(wanted))


def _order(wanted: Contract) -> list[tuple[str, str]]:
    """Return the order of rows: by sample_row where there is one, then by the rest of the key."""
    first = [k for k in wanted.key if k == "sample_row"]
    rest = [k for k in wanted.key if k != "sample_row"]
    return [(k, "ascending") for k in first + rest]


def _expression(wanted: Contract, where: Where | None) -> ds.Expression | None:
    rule: ds.Expression | None = None
    for name, value in (where or {}).items():
        if _is_list(value):
            part = ds.field(name).isin(pa.array(list(value), type=wanted.column(name).type))
        else:
            part = ds.field(name) == pc.scalar(value)
        rule = _and(rule, part)
    return rule


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | set | frozenset)


def _and(left: ds.Expression | None, right: ds.Expression | None) -> ds.Expression | None:
    if left is None or right is None:
        return right if left is None else left
    return left & right


def _plain_path(uri: str) -> str:
    return urllib.parse.unquote(uri.removeprefix("file://"))
