"""The trainer's process, as the orchestrator starts it: `ambient_omni train`, reporting by Pipes.

The trainer knows nothing of the orchestrator. Started by hand, or by a process that is not the
first of several, this is plain `python -m ambient_omni train`.
"""

import argparse
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dagster_pipes import DAGSTER_PIPES_CONTEXT_ENV_VAR, PipesContext, open_dagster_pipes

_EVERY_SECONDS = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; return the trainer's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True)
    options = parser.parse_args(arguments)
    from ambient_omni.__main__ import main as ambient_omni

    command = ["train", "--config", str(options.config), "--root", str(options.root)]
    with ExitStack() as stack:
        pipes = _open(stack)
        if pipes is None:
            return ambient_omni(command)
        stack.enter_context(_warnings_to(pipes))
        stack.enter_context(_metrics_to(pipes, options.config.parents[1] / "metrics.jsonl"))
        code = ambient_omni(command)
        pipes.report_custom_message({"exit_code": code})
        return code


def _open(stack: ExitStack) -> PipesContext | None:
    if os.environ.get("RANK", "0") != "0" or DAGSTER_PIPES_CONTEXT_ENV_VAR not in os.environ:
        return None
    return stack.enter_context(open_dagster_pipes())


class _Handler(logging.Handler):
    def __init__(self, pipes: PipesContext) -> None:
        super().__init__(logging.WARNING)
        self._pipes = pipes

    def emit(self, record: logging.LogRecord) -> None:
        self._pipes.log.log(record.levelno, record.getMessage())


@contextmanager
def _warnings_to(pipes: PipesContext) -> Iterator[None]:
    """Send the trainer's warnings along."""
    handler, logger = _Handler(pipes), logging.getLogger("ambient_omni")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def _metrics_to(pipes: PipesContext, file: Path) -> Iterator[None]:
    """Send each new line of the run's metrics along while it trains."""
    done = threading.Event()
    start = file.stat().st_size if file.exists() else 0
    thread = threading.Thread(target=_tail, args=(pipes, file, start, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _tail(pipes: PipesContext, file: Path, start: int, done: threading.Event) -> None:
    last = False
    while not last:
        last = done.wait(_EVERY_SECONDS)  # once more after the end
        if not file.exists():
            continue
        data = file.read_bytes()
        start = min(start, len(data))
        end = data.rfind(b"\n") + 1
        for line in data[start:end].splitlines():
            pipes.log.info(_words(line))
        start = max(start, end)


def _words(line: bytes) -> str:
    try:
        found: dict[str, Any] = json.loads(line)
    except ValueError:
        return "a line of metrics that was cut off"
    numbers = [
        f"{name} {value:.4g}"
        for name, value in found.items()
        if isinstance(value, int | float) and name not in ("step", "images")
    ]
    return f"{found.get('images', 0):,} images: {', '.join(numbers)}"


if __name__ == "__main__":
    sys.exit(main())
