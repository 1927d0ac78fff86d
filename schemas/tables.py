"""The one door to the tables: pinned reads with exclusions applied, checked atomic commits.

Way of the rows: writers put Parquet files beside the log, then one delta-rs transaction makes
them visible and removes what the slice held before. A transaction id made from the job's inputs
makes a replay a no-op. Nothing else writes a table.
"""

import contextlib
import random
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions
from filelock import FileLock

from schemas.contract import Contract
from schemas.errors import BadInput, CommitConflict, ContractViolation, TableMissing
from schemas.ids import canonical_hash
from schemas.registry import contract
from schemas.slice_writer import SliceWriter, WrittenFile
from schemas.snapshot import (
    FINGERPRINT_LENGTH,
    Snapshot,
    Where,
    key_order,
    live_paths,
    slice_key,
    slice_paths,
)
from schemas.store import Store, one_line
from schemas.take_downs import TakeDowns

NUM_COMMIT_TRIES = 20

__all__ = ["Commit", "Snapshot", "Tables", "Where", "fingerprint_of", "slice_paths"]


@dataclass(frozen=True)
class Commit:
    """What a commit did.

    `version` is the table's version that holds the slice; with writers on other machines it may be
    one of theirs, behind it.
    """

    version: int
    written: int
    unchanged: int


class Tables:
    """All tables of one root."""

    def __init__(self, place: Store, locks: Path) -> None:
        self.place = place
        self._locks = locks
        self._take_downs = TakeDowns(place)
        # For commits alone, under the lock: a handle brought up to date reads the new entries of
        # the log, a new one reads all of them. With the stamp of its own entry.
        self._heads: dict[str, tuple[DeltaTable, tuple[int, int] | None]] = {}

    def store(self, name: str) -> Store:
        """Where the table `name` lies; KeyError if no contract has that name."""
        return self.place.child(contract(name).name)

    def table_path(self, name: str) -> Path:
        """Folder of the table `name`, in a root whose tables lie in a folder.

        Raises:
            BadInput: they lie on an object store.
        """
        store = self.store(name)
        if not store.is_local:
            raise BadInput(f"{store.location} is no folder; this needs tables in one")
        return Path(store.location)

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
        return Snapshot(contract(name), self.store(name), delta, self._take_downs)

    def read(
        self, name: str, columns: Sequence[str] | None = None, where: Where | None = None
    ) -> pa.Table:
        """Read the newest version; no rows where there is no table yet."""
        if not self.exists(name):
            empty = contract(name).empty()
            return empty if columns is None else empty.select(list(columns))
        return self.open(name).read(columns, where)

    def fingerprint(
        self, name: str, slice: Mapping[str, str], version: int | None = None
    ) -> str | None:
        """Return what the slice was made from, None if it was never committed.

        A job's own inputs are the fingerprints of the slices it reads and its configuration.

        Args:
            name: of the table.
            slice: a value for each column that the table is partitioned by.
            version: as of an older version of the table; the newest by default.

        Raises:
            TableMissing: that version is gone.
        """
        delta = self._delta(name, version)
        if delta is None:
            return None
        return self._made_from(name, delta, slice)

    def is_current(self, name: str, slice: Mapping[str, str], inputs: Mapping[str, Any]) -> bool:
        """Say whether the slice was made from exactly these inputs."""
        return self.fingerprint(name, slice) == fingerprint_of(inputs)

    def writer(self, name: str, slice: Mapping[str, str], commit_id: str) -> SliceWriter:
        """Return a writer of one data file of a slice, for this process or for an executor."""
        slice_key(contract(name), slice)
        return SliceWriter(self.store(name), name, dict(slice), commit_id)

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
        key = slice_key(wanted, slice)
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
            delta = self._head(name)
            if delta is not None and self._made_from(name, delta, slice) == fingerprint_of(inputs):
                if data and live_paths(delta).issuperset(file.path for file in data):
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
            delta = self._head(name)
            old = wanted.empty() if delta is None else self.open(name, int(delta.version())).read()
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
            delta = self._head(name)
            if delta is None or not live_paths(delta).issuperset(old):
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
        store, ours = self.store(name), f"part-{commit_id}-"
        found = [path for path in store.names() if path.rpartition("/")[2].startswith(ours)]
        for path in found:
            store.remove(path)
        return len(found)

    @property
    def excluded_sample_ids(self) -> frozenset[str]:
        """Sample ids that were taken down, by whichever process."""
        return self._take_downs.sample_ids

    @property
    def excluded_sample_rows(self) -> frozenset[int]:
        """Sample rows, in all batches, that are or ever were those of a sample taken down."""
        return self._take_downs.sample_rows

    def places_ever_of(self, sample_ids: frozenset[str]) -> pa.Table:
        """Return shard, byte_offset and num_bytes of every place where samples ever lay."""
        return self._take_downs.places_ever_of(sample_ids)

    def _delta(self, name: str, version: int | None = None) -> DeltaTable | None:
        try:
            return self.store(name).delta(version)
        except (DeltaError, OSError) as error:
            asked = "" if version is None else f" at version {version}"
            raise TableMissing(
                f"table {name}{asked} cannot be opened: {one_line(error)}"
            ) from error

    def _head(self, name: str) -> DeltaTable | None:
        """Return the newest version, to be committed to at once by who holds the lock."""
        head, stamp = self._heads.pop(name, (None, None))  # kept again only if nothing fails
        # With another entry of the log in the place of its own, the table was removed meanwhile.
        if head is not None and stamp is not None and self._stamp(name, head) == stamp:
            with contextlib.suppress(DeltaError, OSError):
                head.update_incremental()
                self._heads[name] = head, self._stamp(name, head)
                return head
        head = self._delta(name)
        if head is not None:
            self._heads[name] = head, self._stamp(name, head)
        return head

    def _stamp(self, name: str, delta: DeltaTable) -> tuple[int, int] | None:
        return self.store(name).stamp(_entry(int(delta.version())))

    def _made_from(self, name: str, delta: DeltaTable, slice: Mapping[str, str]) -> str | None:
        return Snapshot(contract(name), self.store(name), delta, None).fingerprint(slice)

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
        live = set() if delta is None else live_paths(delta)
        for file in files:
            if file.path not in live:
                self.store(name).remove(file.path)

    def _check_keys(
        self, wanted: Contract, files: Sequence[WrittenFile], slice: Mapping[str, str]
    ) -> None:
        """Refuse, and remove, files that repeat a key; each was checked only as it was written."""
        if not files:
            return
        keys = [k for k in wanted.key if k not in slice]
        store = self.store(wanted.name)
        table = pa.concat_tables([store.columns(file.path, keys) for file in files])
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
        store = self.store(wanted.name)
        if delta is None:
            create_table_with_add_actions(
                store.location,
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
        version = int(delta.version()) + 1
        delta.create_write_transaction(
            list(actions), "append", schema, parts, commit_properties=properties
        )
        # The handle stays where it was, and to update it costs as much as the commit. Versions have
        # no gaps: ours is the next one, or behind it those of other machines.
        # What landed has landed, whether or not the store can be asked which version it is.
        with contextlib.suppress(BadInput):
            while store.has(_entry(version + 1)):
                version += 1
        return version

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


def _entry(version: int) -> str:
    return f"_delta_log/{version:020d}.json"


def _add(file: WrittenFile, slice: Mapping[str, str]) -> AddAction:
    partition: dict[str, str | None] = dict(slice)
    return AddAction(file.path, file.size, partition, file.modified_ms, True, file.statistics)


def _removes(delta: DeltaTable | None, slice: Mapping[str, str]) -> list[RemoveAction]:
    # A new slice has no files; only where there are some, all entries of the log are looked at.
    if delta is None or not delta.file_uris([(k, "=", v) for k, v in slice.items()] or None):
        return []
    files = pa.table(delta.get_add_actions(flatten=True))
    names = ["path", "size_bytes", *(f"partition.{k}" for k in slice)]
    now = int(time.time() * 1000)
    return [
        # get_add_actions gives URL-encoded paths; a RemoveAction with one removes nothing.
        RemoveAction(urllib.parse.unquote(f["path"]), True, now, f["size_bytes"], dict(slice))
        for f in files.select(names).to_pylist()
        if all(f[f"partition.{k}"] == v for k, v in slice.items())
    ]


def _merge(wanted: Contract, old: pa.Table, new: pa.Table) -> pa.Table:
    keys = list(wanted.key)
    # Arrow joins no tables with list columns: join the keys alone, then take the rows.
    places = old.select(keys).append_column("_place", pa.array(range(old.num_rows), pa.int64()))
    kept = places.join(new.select(keys), keys=keys, join_type="left anti")["_place"]
    merged = pa.concat_tables([old.take(kept), new])
    return merged.sort_by(key_order(wanted))
