"""The orchestrator's home inside a root: settings and run history."""

import sqlite3
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from sqlalchemy import event
from sqlalchemy.engine import Engine

from schemas.root import Root

CLI_CONFIG = "cli.yaml"


def home_of(root: Root) -> Path:
    """Write the orchestrator's settings into `<root>/dagster` and return that folder."""
    home = root.dagster
    home.mkdir(parents=True, exist_ok=True)
    served = _settings(home)
    # On a terminal a step's output belongs to the terminal, progress bars included; runs that the
    # web page starts keep theirs in files, where the page finds it.
    quiet = {
        "module": "dagster._core.storage.noop_compute_log_manager",
        "class": "NoOpComputeLogManager",
    }
    _write(home / "dagster.yaml", served)
    _write(home / CLI_CONFIG, served | {"compute_logs": quiet})
    return home


def open_instance(root: Root) -> dg.DagsterInstance:
    """Open the run history of a root for runs of this process.

    From here on this process writes the history without waiting for the disk: a step's events
    then cost 0.02 s instead of 0.6 s. A power cut may lose the history, never data: the truth
    about data stands in the tables, and `<root>/dagster` can be deleted at any time.
    """
    home = home_of(root)
    if not event.contains(Engine, "connect", _without_waiting):
        event.listen(Engine, "connect", _without_waiting)
    return dg.DagsterInstance.from_config(str(home), config_filename=CLI_CONFIG)


def _settings(home: Path) -> dict[str, Any]:
    return {
        "telemetry": {"enabled": False},
        "nux": {"enabled": False},
        # Runs start at once, without the queue that only a daemon empties.
        "run_coordinator": {
            "module": "dagster._core.run_coordinator",
            "class": "DefaultRunCoordinator",
        },
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
