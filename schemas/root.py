"""A root: one folder that holds the tables, shards, packs and runs of one project.

Its tables may lie on an object store instead; `root.json` names the place then.
"""

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from schemas.errors import BadInput, JobAlreadyRunning, RootVersionMismatch
from schemas.migrations import MIGRATIONS, ROOT_VERSION
from schemas.store import Store, one_line
from schemas.tables import Tables

ROOT_VARIABLE = "AMBIENT_OMNI_ROOT"
"""Of the environment: the root of those who name none."""

ROOT_FILE = "root.json"
# A path made of an address has lost one of its slashes.
_ADDRESS = re.compile(r"[a-z][a-z0-9+]+:/")
SAFE_NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


class Root:
    """The folders of a root, its tables and its locks.

    Open one with `Root.create` (makes it where there is none) or `Root.open` (it must exist).
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: str | Path, *, tables: str | None = None) -> "Root":
        """Open the root at `path`, making it first in an absent or empty folder.

        Args:
            path: the folder.
            tables: `s3://bucket/prefix` of the tables, where they do not lie in the folder. What
                stands there already is joined.

        Raises:
            BadInput: the folder holds other things or a root with tables elsewhere, or an
                address cannot be used.
            RootVersionMismatch: the root was written under another schema version.
        """
        where = _local(path)
        place = None if tables is None else Store.of(tables)
        if not (where / ROOT_FILE).exists():
            if where.exists() and (not where.is_dir() or any(map(_is_foreign, where.iterdir()))):
                raise BadInput(
                    f"{where} is not empty and is no root; give --root a new or an empty folder"
                )
            where.mkdir(parents=True, exist_ok=True)
            _begin(where, place)
        root = cls.open(where)
        if place is not None and root.tables.place != place:
            raise BadInput(f"the tables of {where} lie at {root.tables.place.location} already")
        return root

    @classmethod
    def open(cls, path: str | Path) -> "Root":
        """Open an existing root.

        Raises:
            BadInput: there is no root at `path`.
            RootVersionMismatch: it was written under another schema version.
        """
        where = _local(path)
        found = read_root_version(where)
        if found != ROOT_VERSION:
            raise RootVersionMismatch(_mismatch(where, found))
        return cls(where)

    @property
    def shards(self) -> Path:
        """Folder of the tar shards, one folder a batch."""
        return self.path / "shards"

    @property
    def packs(self) -> Path:
        """Folder of the training packs, by transform and batch."""
        return self.path / "packs"

    @property
    def classifiers(self) -> Path:
        """Folder of the noise classifiers' weights, by classifier_id."""
        return self.path / "classifiers"

    @property
    def runs(self) -> Path:
        """Folder of the training runs, by run_id."""
        return self.path / "runs"

    @property
    def reports(self) -> Path:
        """Folder of the reports."""
        return self.path / "reports"

    @property
    def dagster(self) -> Path:
        """The orchestrator's home for this root."""
        return self.path / "dagster"

    @property
    def work(self) -> Path:
        """Folder of intermediate files that a restarted job picks up."""
        return self.path / "work"

    @cached_property
    def tables(self) -> Tables:
        """The one door to the tables."""
        return Tables(_tables_of(self.path), self.path / "locks")

    @contextmanager
    def lock(self, job: str, batch: str) -> Iterator[None]:
        """Hold the lock of one job on one batch; a process that dies releases it.

        Raises:
            JobAlreadyRunning: at once, when another holder is alive.
        """
        name = f"{_safe(job)}--{_safe(batch)}"
        folder = self.path / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock, holder = FileLock(folder / f"{name}.lock"), folder / f"{name}.holder.json"
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise JobAlreadyRunning(
                f"{job} already runs on {batch} ({_describe(holder)}); wait for it or stop it first"
            ) from None
        try:
            write_json(holder, {"pid": os.getpid(), "host": socket.gethostname()})
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


def read_root_version(path: Path) -> int:
    """Return the schema version that the root at `path` was written under.

    It stands where the tables lie, so that all who share them see it change.

    Raises:
        BadInput: there is no readable root.
    """
    if not (path / ROOT_FILE).exists():
        raise BadInput(f"{path} is no root (no {ROOT_FILE}); make one with `ambient-omni run`")
    tables = _tables_of(path)
    facts = _facts(path / ROOT_FILE) if tables.is_local else _facts_of(tables)
    try:
        return int(facts["schema_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path / ROOT_FILE, error) from error


def migrate(path: str | Path) -> list[int]:
    """Bring a root to this code's schema version; return the versions passed through.

    Raises:
        RootVersionMismatch: no chain of migrations leads here.
    """
    where, passed = _local(path), []
    version = read_root_version(where)
    while version != ROOT_VERSION:
        if version not in MIGRATIONS:
            raise RootVersionMismatch(_mismatch(where, version))
        tables = _tables_of(where)
        MIGRATIONS[version](tables)
        version += 1
        _note_version(where, tables, version)
        passed.append(version)
    return passed


def write_json(path: Path, value: object) -> None:
    """Write a JSON file as `write_whole` does."""
    write_whole(path, json.dumps(value, indent=1, sort_keys=True))


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _begin(where: Path, place: Store | None) -> None:
    if place is None or place.is_local:
        write_json(where / ROOT_FILE, {"schema_version": ROOT_VERSION})
        return
    if not place.has(ROOT_FILE):
        _note_version(where, place, ROOT_VERSION)
    write_json(where / ROOT_FILE, {"tables": place.location})


def _tables_of(where: Path) -> Store:
    file = where / ROOT_FILE
    location = _facts(file).get("tables") if file.exists() else None
    return Store.of(where / "tables" if location is None else location)


def _note_version(where: Path, tables: Store, version: int) -> None:
    if tables.is_local:
        write_json(where / ROOT_FILE, {"schema_version": version})
    else:
        tables.write_text(ROOT_FILE, json.dumps({"schema_version": version}))


def _facts(file: Path) -> dict[str, Any]:
    return _parsed(file, file.read_text())


def _facts_of(tables: Store) -> dict[str, Any]:
    try:
        return _parsed(f"{tables.location}/{ROOT_FILE}", tables.read_text(ROOT_FILE))
    except OSError as error:
        raise BadInput(
            f"{tables.location} cannot be read ({one_line(error)}); check AWS_* variables"
        ) from error


def _parsed(file: str | Path, text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise _damaged(file, error) from error


def _damaged(file: str | Path, error: Exception) -> BadInput:
    return BadInput(f"{file} is damaged ({error}); restore it from a backup")


def _is_foreign(path: Path) -> bool:
    # A process killed while it made a root leaves the file that it had not renamed yet.
    return not path.name.startswith(f".{ROOT_FILE}.")


def _local(path: str | Path) -> Path:
    if _ADDRESS.match(str(path)):
        raise BadInput(
            f"{path}: a root is a folder, but its tables may lie on an object store: "
            "`python -m schemas create --root DIR --tables s3://bucket/prefix`"
        )
    return Path(path).expanduser().absolute()


def _mismatch(where: Path, found: int) -> str:
    if found > ROOT_VERSION:
        advice = "install the newer release that wrote it"
    elif found in MIGRATIONS:
        advice = f"run `python -m schemas migrate --root {where}`"
    else:
        advice = "no migration leads from it; make a new root and ingest again"
    return f"{where} has schema version {found}, this code speaks {ROOT_VERSION}; {advice}"


def _safe(name: str) -> str:
    return "".join(c if c in SAFE_NAME_CHARS else "_" for c in name)


def _describe(holder: Path) -> str:
    try:
        facts = json.loads(holder.read_text())
        return f"process {facts['pid']} on {facts['host']}"
    except (OSError, ValueError, KeyError):
        return "another process"
