"""Results on disk, named by the hash of what they depend on.

A result is a JSON and, where needed, arrays beside it; the JSON is written last and by renaming, so
that what is there is whole. A task is computed under a lock that dies with its process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.evidence.cells import Form, Task
from schemas.root import write_json

Arrays = Mapping[str, NDArray[Any]]


class Store:
    """The cache of one study.

    Args:
        folder: of the cache; made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, task: Task, form: Form) -> bool:
        """Say whether a result is there."""
        return self._file(task, form, ".json").exists()

    def facts(self, task: Task, form: Form) -> dict[str, Any]:
        """Return a result's JSON."""
        import json

        found: dict[str, Any] = json.loads(self._file(task, form, ".json").read_text())
        return found

    def arrays(self, task: Task, form: Form) -> dict[str, NDArray[Any]]:
        """Return a result's arrays by name."""
        with np.load(self._file(task, form, ".npz")) as kept:
            return {name: kept[name] for name in kept.files}

    def keep(self, task: Task, form: Form, facts: Mapping[str, Any], arrays: Arrays) -> None:
        """Write a result."""
        file = self._file(task, form, ".npz")
        file.parent.mkdir(exist_ok=True)
        if arrays:
            aside = file.with_name(f".{file.stem}-{os.getpid()}.npz")
            np.savez_compressed(aside, **arrays)
            aside.replace(file)
        write_json(file.with_suffix(".json"), dict(facts))

    def is_free(self, task: Task, form: Form) -> bool:
        """Say whether no process computes a task now."""
        with self.claimed(task, form) as mine:
            return mine

    @contextlib.contextmanager
    def claimed(self, task: Task, form: Form) -> Iterator[bool]:
        """Say whether this process may compute a task now; no other does, while the block runs."""
        file = self._file(task, form, ".lock")
        file.parent.mkdir(exist_ok=True)
        with file.open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield not self.has(task, form)

    def _file(self, task: Task, form: Form, suffix: str) -> Path:
        return self.folder / task.stage / f"{task.key(form)}{suffix}"
