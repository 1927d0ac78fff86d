"""Where the orchestrator's own events go when a terminal shows the run."""

import logging
import sys
from pathlib import Path

import dagster as dg


@dg.logger(config_schema={"path": str}, description="Appends the events of runs to a file.")
def file_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """Return the logger of one file; the same for every run of a process."""
    path = Path(context.logger_config["path"])
    logger = logging.Logger("ambient-omni", logging.DEBUG)
    logger.addHandler(_handler(path))
    return logger


@dg.logger(
    config_schema={},
    description="Shows what jobs say, and not the orchestrator's own events, on a terminal.",
)
def terminal_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """Return a logger that writes plain lines to standard output."""
    logger = logging.Logger("ambient-omni-terminal", logging.INFO)
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(_is_said_by_a_job)
    handler.setFormatter(_Plain())
    logger.addHandler(handler)
    return logger


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return str(getattr(record, "dagster_meta", {}).get("orig_message", record.getMessage()))


def _is_said_by_a_job(record: logging.LogRecord) -> bool:
    return getattr(record, "dagster_meta", {}).get("dagster_event") is None


_handlers: dict[Path, logging.Handler] = {}


def _handler(path: Path) -> logging.Handler:
    if path not in _handlers:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        _handlers[path] = handler
    return _handlers[path]
