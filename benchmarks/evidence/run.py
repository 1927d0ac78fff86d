"""Running the study: workers that take whatever can be computed, and one line a finished task."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchmarks.evidence.cells import Form, Stage, Task
from benchmarks.evidence.store import Store

_WAIT_SEC = 2.0

_GUESS: dict[Stage, float] = {
    "curves": 90.0,
    "windows": 120.0,
    "train": 150.0,
    "measure": 60.0,
    "nearest": 5.0,
}
"""Seconds of a stage, until one was measured."""


def run(tasks: Sequence[Task], form: Form, folder: Path, workers: int) -> None:
    """Compute what is missing; a run that was stopped goes on where it was.

    Raises:
        SystemExit: a worker failed.
    """
    store = Store(folder)
    missing = [task for task in tasks if not store.has(task, form)]
    done = len(tasks) - len(missing)
    print(f"{form.name} form: {len(tasks)} tasks, {done} of them done; {folder}", flush=True)
    context = multiprocessing.get_context("spawn")
    crew: list[BaseProcess] = [
        context.Process(target=work, args=(missing, form, folder))
        for _ in range(min(workers, len(missing)))
    ]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the same command goes on"))
    try:
        for process in crew:
            process.start()
        _watch(missing, form, store, crew)
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on") from None
    finally:
        for process in crew:
            process.terminate()
    failed = [process for process in crew if process.exitcode not in (0, None, -signal.SIGTERM)]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(crew)} workers failed; see above")


def work(tasks: Sequence[Task], form: Form, folder: Path) -> None:
    """Compute tasks one after the other, whichever nobody else does, until none is left."""
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    import torch

    from benchmarks.evidence.tasks import compute

    torch.set_num_threads(1)
    store, left, failed = Store(folder), list(tasks), 0
    while left:
        if os.getppid() == 1:
            return  # whoever started it is gone
        task = _next(left, form, store)
        if task is None:
            left = [task for task in left if not store.has(task, form)]
            time.sleep(_WAIT_SEC if left else 0)
            continue
        with store.claimed(task, form) as mine:
            try:
                if mine:
                    compute(task, form, store)
                    left.remove(task)
            except Exception:  # noqa: BLE001 - it is told, and the worker ends with 1
                # One cell that fails must not cost a night: the rest goes on without it.
                print(f"{task.name} failed", file=sys.stderr)
                traceback.print_exc()
                failed, left = failed + 1, [t for t in left if not _rests_on(t, task)]
    if failed:
        raise SystemExit(1)


def _next(left: Sequence[Task], form: Form, store: Store) -> Task | None:
    """Return the first task that nobody computes and whose needs are there."""
    for task in left:
        ready = all(store.has(need, task.form_of(need, form)) for need in task.needs())
        if ready and not store.has(task, form) and store.is_free(task, form):
            return task
    return None


def _rests_on(task: Task, other: Task) -> bool:
    return task == other or any(_rests_on(need, other) for need in task.needs())


def seconds_left(tasks: Sequence[Task], form: Form, store: Store, workers: int) -> float:
    """Return about how long the missing tasks take, by what finished ones of a stage took."""
    took: dict[Stage, list[float]] = {}
    for task in tasks:
        if store.has(task, form):
            took.setdefault(task.stage, []).append(store.facts(task, form)["seconds"])
    mean = {stage: sum(times) / len(times) for stage, times in took.items()}
    left = [mean.get(t.stage, _GUESS[t.stage]) for t in tasks if not store.has(t, form)]
    return sum(left) / max(1, workers)


def _watch(tasks: Sequence[Task], form: Form, store: Store, crew: Sequence[BaseProcess]) -> None:
    waiting, began, done = list(tasks), time.monotonic(), 0
    while waiting:
        alive = [process for process in crew if process.is_alive()]
        for task in [task for task in waiting if store.has(task, form)]:
            waiting.remove(task)
            done += 1
            spent = time.monotonic() - began
            left = seconds_left(tasks, form, store, len(alive))
            print(
                f"[{done}/{len(tasks)}] {task.name}: {store.facts(task, form)['seconds']:.0f} s; "
                f"{60 * done / spent:.2f} tasks a minute, about {_told(left)} left",
                flush=True,
            )
        if not alive:
            break
        time.sleep(_WAIT_SEC / 4)
    if waiting and not any(process.is_alive() for process in crew):
        print(f"{len(waiting)} tasks were not computed", file=sys.stderr)


def _told(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5_400 else f"{seconds / 60:.0f} min"
