"""Kills a job before each of its durable steps in turn, and then lets it run to its end.

`python -m tests.faults.kill_points SCENARIO FOLDER`, see `test_kill_points.py`. Each run is a fork
of this process, which has loaded the libraries and used none of them, and ends by SIGKILL: nothing
is flushed, released or tidied up.
"""

import functools
import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pyarrow as pa

from pipelines import slices
from pipelines.ingest import IngestConfig, ingest
from pipelines.ingest.verify import warm_up
from pipelines.slices import Target
from schemas.registry import all_contracts, contract
from schemas.repair import check
from schemas.root import Root
from schemas.slice_writer import SliceWriter
from schemas.tables import Tables

CONFIG = IngestConfig(show_progress=False, num_workers=1, images_per_shard=2)
NUM_TASKS = 5
# What the tasks write, beside their rows' keys.
TABLES = {
    "reference_sets": {"reference_set": "x", "role": "trusted"},
    "duplicate_clusters": {"kind": "exact", "cluster_row": 0},
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}


class Steps:
    """Counts what changes the disk under a root, writes it down, and ends the process at one."""

    def __init__(self, root, log, last):
        self.root, self.last, self.count = f"{root}/", last, 0
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, words):
        os.write(self.log, f"{words}\n".encode())

    def step(self, words):
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1
        self.note(words)

    def watch(self):
        """Step before whatever Python does to a file, and before and after a library's commit."""
        sys.addaudithook(self._audit)
        for owner, name in ((SliceWriter, "_open"), (SliceWriter, "close"), (Tables, "_log")):
            setattr(owner, name, self._stepped(getattr(owner, name)))

    def _stepped(self, plain):
        @functools.wraps(plain)
        def stepped(*arguments, **options):
            self.step(f"before {plain.__qualname__}")
            result = plain(*arguments, **options)
            if plain.__name__ == "_log":
                self.step("after it")
            return result

        return stepped

    def _audit(self, event, arguments):
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str | os.PathLike) or not flags & _WRITES:
                return
        elif event not in _CHANGES:
            return
        path = os.fspath(arguments[0])
        # A bare name is one of a folder that is being removed.
        if "/" in path and (not path.startswith(self.root) or "/locks" in path):
            return
        if event == "os.mkdir" and os.path.exists(path):  # noqa: PTH110 - text is at hand
            return
        self.step(f"{event} {path.removeprefix(self.root)}")


def in_child(work):
    """Run in a fork; return its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told, and ended without this one's tidying
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def seen(root):
    """What a reader finds: damage, and the rows of every table."""
    tables = Root.open(root).tables
    names = [name for name in all_contracts() if tables.exists(name)]
    return {
        "damage": [one.line() for one in check(tables)],
        "rows": {name: tables.read(name).to_pylist() for name in names},
        "versions": tables.versions(names),
    }


def bring_in(source, root, steps):
    ingest(Root.open(root), "b", source, CONFIG, replace_source=True)


def run_slices(inputs, tasks, root, steps):
    """The job's own way of tasks, receipts and commits, one task after another, without Spark."""

    def work(task, writers):
        steps.note(f"task {task}")
        rows = list(range(10 * task, 10 * task + 10))
        for table, writer in writers.items():
            own = {name: [value] * 10 for name, value in TABLES[table].items()}
            writer.write(pa.table({"sample_row": rows} | own))
        return {"seen": 10}

    slices.run_tasks = lambda tasks, work, **_: [work(task) for task in tasks]
    keys = {table: contract(table).partition_by for table in TABLES}
    targets = [
        Target(table, {key: TABLES[table][key] for key in keys[table]}, inputs) for table in TABLES
    ]
    slices.run_slices(Root.open(root), targets, tasks, work, job="test", batch="b")


def scenario(name, folder):
    """Return what was done before, and what is killed."""
    first, second = (functools.partial(bring_in, folder / part) for part in ("first", "second"))
    return {
        "ingest": (None, first),
        "ingest of a changed source": (first, second),
        "tasks and their commit": (
            functools.partial(run_slices, {"n": 1}, [90]),
            functools.partial(run_slices, {"n": 2}, list(range(NUM_TASKS))),
        ),
    }[name]


def main(name, folder):
    before, job = scenario(name, folder)
    start = folder / "start"

    def prepare():
        Root.create(start)
        if before is not None:
            before(start, Steps(start, os.devnull, None))

    def killed(root, last):
        steps = Steps(root, root.with_suffix(".log"), last)
        steps.watch()
        job(root, steps)

    def again(root):
        root.with_suffix(".killed.json").write_text(json.dumps(seen(root), sort_keys=True))
        job(root, Steps(root, root.with_suffix(".log"), None))
        root.with_suffix(".again.json").write_text(json.dumps(seen(root), sort_keys=True))

    warm_up()
    assert in_child(prepare) == 0
    for number in itertools.count():
        root = folder / f"{number:03d}"
        shutil.copytree(start, root)
        code = in_child(functools.partial(killed, root, number))
        assert code in (0, -signal.SIGKILL), code
        assert in_child(functools.partial(again, root)) == 0
        if code == 0:
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
