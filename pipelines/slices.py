"""Way of a job's rows: executors write Parquet files, the driver makes one commit a slice.

A task's files become visible only if the job commits them, and the job commits only what the
successful try of each task reported: a failed job leaves nothing visible, a task that ran twice
counts once. A finished task leaves a receipt, so that a job that was killed, stopped or failed
goes on with the tasks that are missing.
"""

import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pipelines.receipts import Done, Receipts
from pipelines.spark import SparkSettings, run_tasks
from schemas.root import Root
from schemas.slice_writer import SliceWriter
from schemas.tables import Commit

Task = TypeVar("Task")

Writers = Mapping[str, SliceWriter]


@dataclass(frozen=True)
class Target:
    """One slice of one table that a job writes, and what it is made from."""

    table: str
    slice: Mapping[str, str]
    inputs: Mapping[str, Any]

    def is_current(self, root: Root) -> bool:
        """Say whether the slice was already made from these inputs."""
        return root.tables.is_current(self.table, self.slice, self.inputs)


@dataclass(frozen=True)
class Outcome:
    """What a run over slices did: a commit a table, and what the tasks counted."""

    commits: Mapping[str, Commit] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    num_resumed: int = 0  # tasks that an earlier run of the same job had finished

    @property
    def written(self) -> int:
        """Rows of the fullest slice that was written."""
        return max((commit.written for commit in self.commits.values()), default=0)


@dataclass(frozen=True)
class _Attempt(Generic[Task]):
    """What travels to the executors."""

    work: Callable[[Task, Writers], Mapping[str, int]]
    blank: Mapping[str, SliceWriter]
    receipts: Receipts

    def __call__(self, task: Task) -> Done:
        writers = {
            name: SliceWriter(w.store, w.name, w.slice, w.commit_id)
            for name, w in self.blank.items()
        }
        try:
            counts = self.work(task, writers)
            done = Done({name: writer.close() for name, writer in writers.items()}, counts)
            self.receipts.keep(task, done)
            return done
        except BaseException:  # also when Spark kills the task: its file must go
            for writer in writers.values():
                writer.abort()
            raise


def run_slices(
    root: Root,
    targets: Sequence[Target],
    tasks: Sequence[Task],
    work: Callable[[Task, Writers], Mapping[str, int]],
    *,
    job: str,
    batch: str,
    weights: Sequence[int] | None = None,
    unit: str = "images",
    versions: Mapping[str, int] | None = None,
    settings: SparkSettings | None = None,
) -> Outcome:
    """Replace the `targets` that are not current with what `work` writes; one commit each.

    Args:
        root: where the tables are.
        targets: slices the job writes, at most one a table.
        tasks: independent pieces of the slices; picklable.
        work: called in an executor with a task and a writer a stale table; returns counts,
            which are summed over tasks. It may run more than once for a task, and what it writes
            depends on the targets' inputs, the task and the exclusions alone.
        job: name for progress and commit messages.
        batch: name for progress.
        weights: size of each task, for progress.
        unit: what the weights count.
        versions: table versions that were read, for the commit's metadata.
        settings: how to reach Spark.

    Raises:
        TasksFailed: a task failed on every try; nothing became visible.
    """
    receipts = Receipts.of(root, {t.table: [dict(t.slice), dict(t.inputs)] for t in targets})
    stale = [target for target in targets if not target.is_current(root)]
    if not stale:
        receipts.forget()  # of a run that was stopped behind its last commit
        return Outcome()
    commit_id = uuid.uuid4().hex[:16]
    blank = {t.table: root.tables.writer(t.table, t.slice, commit_id) for t in stale}
    stores = {t.table: root.tables.store(t.table) for t in stale}
    found = [receipts.find(task, stores) for task in tasks]
    missing = [number for number, one in enumerate(found) if one is None]
    fresh = run_tasks(
        [tasks[number] for number in missing],
        _Attempt(work, blank, receipts),
        label=f"{job} {batch}",
        weights=None if weights is None else [weights[number] for number in missing],
        unit=unit,
        settings=settings,
    )
    done = [one for one in [*found, *fresh] if one is not None]
    commits = {
        target.table: root.tables.commit(
            target.table,
            [file for one in done for file in one.files[target.table]],
            slice=target.slice,
            inputs=target.inputs,
            job=job,
            versions=versions,
        )
        for target in stale
    }
    counts: Counter[str] = Counter()
    for one in done:
        counts.update(one.counts)
    receipts.forget()
    return Outcome(commits, counts, len(tasks) - len(missing))
