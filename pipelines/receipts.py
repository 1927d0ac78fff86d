"""What finished tasks leave behind, so that a job that was stopped goes on where it was."""

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from schemas.ids import canonical_hash
from schemas.root import Root, write_json
from schemas.slice_writer import WrittenFile
from schemas.store import Store

# A vacuum removes files that no log names once they are a week old.
_MAX_AGE_SECONDS = 3 * 24 * 3600.0


@dataclass(frozen=True)
class Done:
    """What one finished task wrote, by table, and what it counted."""

    files: Mapping[str, list[WrittenFile]]
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Receipts:
    """Receipts of the tasks of one job, in a folder that is named by all that it depends on.

    Those are the slices that the job makes, all of them: a run that was killed between two of its
    commits goes on with the receipts that it had when neither was made.
    """

    folder: Path

    @classmethod
    def of(cls, root: Root, targets: Mapping[str, Any]) -> "Receipts":
        """Return those of the job that makes `targets` (slice and inputs, by table)."""
        facts = {"targets": targets, "exclusions": root.tables.version("exclusions")}
        return cls(root.work / "receipts" / canonical_hash(facts))

    def keep(self, task: object, done: Done) -> None:
        """Note that a task is finished; from an executor."""
        files = {table: [asdict(file) for file in some] for table, some in done.files.items()}
        write_json(self._path(task), {"files": files, "counts": dict(done.counts)})

    def find(self, task: object, stores: Mapping[str, Store]) -> Done | None:
        """Return what an earlier run of the task wrote for these tables.

        None if that is not all there, or not any more.
        """
        path = self._path(task)
        try:
            if time.time() - path.stat().st_mtime > _MAX_AGE_SECONDS:
                return None
            facts = json.loads(path.read_text())
        except (OSError, ValueError):
            return None
        if not set(stores) <= set(facts["files"]):
            return None
        files = {table: [WrittenFile(**file) for file in facts["files"][table]] for table in stores}
        done = Done(files, facts["counts"])
        whole = all(
            stores[table].size_or_none(file.path) == file.size
            for table, some in done.files.items()
            for file in some
        )
        return done if whole else None

    def forget(self) -> None:
        """Remove them all, the job is done; and others that are too old to count."""
        shutil.rmtree(self.folder, ignore_errors=True)
        others = self.folder.parent.iterdir() if self.folder.parent.exists() else ()
        for folder in others:
            with contextlib.suppress(OSError):  # another job's end removed it
                if time.time() - folder.stat().st_mtime > _MAX_AGE_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)

    def _path(self, task: object) -> Path:
        return self.folder / f"{hashlib.sha256(repr(task).encode()).hexdigest()[:24]}.json"
