"""Where the orchestrator's own events go when a terminal shows the run."""

import logging
from pathlib import Path

import dagster as dg


@dg.logger(config_schema={"path": str}, description="Appends the events of runs to a file.")
def file_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """Return the logger of one file; the same for every run of a process."""
    path = Path(context.logger_config["path"])
    logger = logging.Logger("ambient-omni", logging.DEBUG)
    logger.addHandler(_handler(path))
    return logger


_handlers: dict[Path, logging.Handler] = {}


def _handler(path: Path) -> logging.Handler:
    if path not in _handlers:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        _handlers[path] = handler
    return _handlers[path]
