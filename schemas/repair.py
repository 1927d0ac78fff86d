"""Finding what is damaged in the tables, by name, and mending what can be made again.

Disks fill, machines lose power, files get lost in a copy. A commit that was half written, a
checkpoint that was, and slices whose files are gone or cut are set aside: their jobs make them
again. What nobody can make again is named and left to a backup.
"""

import json
import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import DeltaError

from schemas.errors import TableDamaged
from schemas.registry import all_contracts, contract
from schemas.snapshot import slice_key, slice_paths
from schemas.store import Store
from schemas.tables import Tables

_LOG = "_delta_log"
_COMMIT = re.compile(rf"{_LOG}/(\d{{20}})\.json")
_CHECKPOINT = re.compile(rf"{_LOG}/(\d{{20}})\.checkpoint.*\.parquet")
_HINT = f"{_LOG}/_last_checkpoint"
_ASIDE = ".damaged"


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong with a table: which file, what, and whether `repair` mends it."""

    table: str
    file: str
    what: str
    mendable: bool

    def line(self) -> str:
        """Return it as one line for a person."""
        advice = "" if self.mendable else "; restore it from a backup"
        return f"{self.table}: {self.file} {self.what}{advice}"


def check(tables: Tables, *, read_all: bool = False) -> list[Damage]:
    """Look at the log and the data files of every table's newest version.

    Args:
        tables: of a root.
        read_all: also decode every page of every data file, instead of footers and sizes alone.
    """
    found: list[Damage] = []
    for name in all_contracts():
        store = tables.store(name)
        there = set(store.names())
        if not any(path.startswith(f"{_LOG}/") for path in there):
            continue
        damaged = list(_damaged_log(name, store, there))
        found += damaged or _damaged_data(name, store, there, read_all=read_all)
    return found


def repair(tables: Tables) -> list[str]:
    """Set damaged log entries aside and forget slices whose files are gone; say what was done.

    Forgotten slices are stale: the jobs that made them make them again.

    Raises:
        TableDamaged: what cannot be made again is damaged; nothing was changed.
        CommitConflict: others kept committing.
    """
    done: list[str] = []
    for _ in range(2):  # a table whose log is mended may lack files too
        found = check(tables)
        lost = [damage for damage in found if not damage.mendable]
        if lost:
            raise TableDamaged("; ".join(damage.line() for damage in lost))
        for name in dict.fromkeys(damage.table for damage in found):
            files = [damage.file for damage in found if damage.table == name]
            done += _mend(tables, name, files)
    return done


def _damaged_log(name: str, store: Store, there: set[str]) -> Iterator[Damage]:
    commits = {int(m[1]): path for path in there if (m := _COMMIT.fullmatch(path))}
    checkpoints = {int(m[1]): path for path in there if (m := _CHECKPOINT.fullmatch(path))}
    for path in sorted(checkpoints.values()):
        if not _is_parquet(store, path):
            whole = set(commits) >= set(range(max(commits, default=0) + 1))
            yield Damage(name, path, "is half a checkpoint", mendable=whole)
    bad = {version for version, path in commits.items() if not _is_commit(store, path)}
    for version in sorted(bad):
        # Only the last commits can be taken back; what came later was built on the others.
        last = set(range(version, max(commits) + 1)) <= bad and version > 0
        yield Damage(name, commits[version], "is half a commit", mendable=last)
    first = max((v for v, path in checkpoints.items() if _is_parquet(store, path)), default=0)
    gaps = sorted(set(range(first, max(commits, default=first) + 1)) - set(commits) - {first})
    if gaps:
        yield Damage(name, f"{_LOG}/{gaps[0]:020d}.json", "is missing", mendable=False)


def _damaged_data(name: str, store: Store, there: set[str], *, read_all: bool) -> Iterator[Damage]:
    try:
        delta = store.delta()
    except (DeltaError, OSError) as error:
        yield Damage(name, _LOG, f"cannot be read ({str(error).splitlines()[0]})", mendable=False)
        return
    if delta is None:
        return
    sizes = _sizes(delta)
    mendable = bool(contract(name).partition_by)
    for _, files in slice_paths(delta):
        for file in files:
            if file not in there:
                yield Damage(name, file, "is missing", mendable)
            elif store.size(file) != sizes[file] or not _is_parquet(store, file, whole=read_all):
                yield Damage(name, file, "is cut or changed", mendable)


def _sizes(delta: DeltaTable) -> dict[str, int]:
    files = pa.table(delta.get_add_actions(flatten=True)).to_pylist()
    return {urllib.parse.unquote(file["path"]): file["size_bytes"] for file in files}


def _is_commit(store: Store, path: str) -> bool:
    try:
        lines = [json.loads(line) for line in store.read_text(path).splitlines()]
    except ValueError:
        return False
    return bool(lines)


def _is_parquet(store: Store, path: str, *, whole: bool = False) -> bool:
    try:
        with store.parquet(path) as parquet:
            if whole:
                for _ in parquet.iter_batches():
                    pass
    except (pa.ArrowInvalid, OSError):
        return False
    return True


def _mend(tables: Tables, name: str, files: list[str]) -> list[str]:
    log = [file for file in files if file.startswith(f"{_LOG}/")]
    if log:
        return _set_aside(tables.store(name), name, log)
    return _forget_slices(tables, name, set(files))


def _set_aside(store: Store, name: str, files: list[str]) -> list[str]:
    for file in files:
        store.move(file, file + _ASIDE)
    if any(_CHECKPOINT.fullmatch(file) for file in files):
        store.remove(_HINT)
    return [f"{name}: {file} set aside as {file}{_ASIDE}" for file in files]


def _forget_slices(tables: Tables, name: str, gone: set[str]) -> list[str]:
    done = []
    for slice_, files in list(slice_paths(tables.open(name).delta)):
        if not gone & set(files):
            continue
        # Fingerprint 0 is that of no inputs, so no job takes the slice for current.
        properties = CommitProperties(
            custom_metadata={"job": "repair"},
            app_transactions=[Transaction(slice_key(contract(name), slice_), 0)],
        )
        tables.replace_files(name, slice_, files, [], properties)
        done.append(f"{name}: {slice_} forgotten; the job that made it makes it again")
    return done
