"""The orchestrator's home inside a root: settings and run history."""

import os
import sqlite3
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from sqlalchemy import event
from sqlalchemy.engine import Engine

from schemas.root import Root

CLI_CONFIG = "cli.yaml"
SERVED_CONFIG = "dagster.yaml"
HOME_VARIABLE = "AMBIENT_OMNI_DAGSTER_HOME"


def home_of(root: Root, *, max_concurrent_runs: int | None = None) -> Path:
    """Write the orchestrator's settings into `<root>/dagster` and return that folder.

    Args:
        root: whose home it is.
        max_concurrent_runs: of the page's runs; the daemon lets the others wait. None: runs start
            at once, for a page without a daemon.
    """
    home = root.dagster
    home.mkdir(parents=True, exist_ok=True)
    common = _settings(home)
    # On a terminal a step's output belongs to the terminal, progress bars included; runs that the
    # web page starts keep theirs in files, where the page finds it.
    quiet = {
        "module": "dagster._core.storage.noop_compute_log_manager",
        "class": "NoOpComputeLogManager",
    }
    _write(home / SERVED_CONFIG, common | _coordination(max_concurrent_runs))
    _write(home / CLI_CONFIG, common | _coordination(None) | {"compute_logs": quiet})
    return home


def _coordination(max_concurrent_runs: int | None) -> dict[str, Any]:
    if max_concurrent_runs is None:
        direct = {"module": "dagster._core.run_coordinator", "class": "DefaultRunCoordinator"}
        return {"run_coordinator": direct}
    return {
        "run_coordinator": {
            "module": "dagster._core.run_coordinator",
            "class": "QueuedRunCoordinator",
            "config": {"max_concurrent_runs": max_concurrent_runs, "dequeue_interval_seconds": 1},
        },
        # A run whose process was killed is started again where its job allows it; one that failed
        # by itself would fail again.
        "run_retries": {
            "enabled": True,
            "max_retries": 0,
            "retry_on_asset_or_op_failure": False,
        },
        "run_monitoring": {
            "enabled": True,
            "start_timeout_seconds": 300,
            "cancel_timeout_seconds": 180,
            "poll_interval_seconds": 20,
        },
    }


def open_instance(root: Root) -> dg.DagsterInstance:
    """Open the run history of a root for runs of this process.

    From here on this process writes the history without waiting for the disk: a step's events
    then cost 0.02 s instead of 0.6 s. A power cut may lose the history, never data: the truth
    about data stands in the tables, and `<root>/dagster` can be deleted at any time.

    With the variable AMBIENT_OMNI_DAGSTER_HOME the history is the one that the `dagster.yaml` there
    names, in PostgreSQL for example: commands and the served page then share it.
    """
    if own_home := os.environ.get(HOME_VARIABLE):
        return dg.DagsterInstance.from_config(own_home)
    home = root.dagster
    if not (home / CLI_CONFIG).exists():  # else a served page may be using what stands there
        home_of(root)
    if not event.contains(Engine, "connect", _without_waiting):
        event.listen(Engine, "connect", _without_waiting)
    return dg.DagsterInstance.from_config(str(home), config_filename=CLI_CONFIG)


def end_lost_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs as failed whose process is gone without a word; return their ids.

    A machine that lost power, or a page that was killed, leaves runs that look as if they went on
    for ever. Queued runs are not lost: the daemon finds them.
    """
    unfinished = dg.RunsFilter(
        statuses=[
            dg.DagsterRunStatus.STARTED,
            dg.DagsterRunStatus.STARTING,
            dg.DagsterRunStatus.CANCELING,
        ]
    )
    lost = []
    for run in instance.get_runs(unfinished):
        if not any(_is_orchestrator(pid) for pid in _pids_of(instance, run.run_id)):
            instance.report_run_failed(run, "its process ended without a word")
            lost.append(run.run_id)
    return lost


def _pids_of(instance: dg.DagsterInstance, run_id: str) -> set[int]:
    found = set()
    for event_ in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        assert event_.dagster_event is not None
        pid = event_.dagster_event.engine_event_data.metadata.get("pid")
        if pid is not None and str(pid.value).isdigit():
            found.add(int(str(pid.value)))
    return found


def _is_orchestrator(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    # A run's process is forked or spawned by a code server, or is the command line itself.
    return b"dagster" in words or b"multiprocessing" in words or b"ambient" in words


def _settings(home: Path) -> dict[str, Any]:
    return {
        "telemetry": {"enabled": False},
        "nux": {"enabled": False},
        # One file for all runs; by default each run makes a database of its own.
        "event_log_storage": {
            "module": "dagster._core.storage.event_log",
            "class": "ConsolidatedSqliteEventLogStorage",
            "config": {"base_dir": str(home / "history")},
        },
    }


def _write(file: Path, settings: dict[str, Any]) -> None:
    text = yaml.safe_dump(settings, sort_keys=False)
    if not file.exists() or file.read_text() != text:
        file.write_text(text)


def _without_waiting(connection: Any, _record: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")
