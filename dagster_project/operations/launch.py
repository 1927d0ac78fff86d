"""The trainer as a process of its own: started, found again, followed, stopped.

The process stands in a session of its own and outlives whoever started it: a restart of the web
page or the daemon does not touch it. What is needed to find it again lies in the run's folder:

    runs/<run_id>/launch/config.json    what `python -m ambient_omni train` was given
                        /process.json   its process, and when that began
                        /output.log     what it said
                        /pipes.jsonl    what it reported to the orchestrator
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dagster_project.operations.config import LaunchConfig
from schemas.errors import AmbientOmniError, BadInput
from schemas.root import Root, write_json

FOLDER = "launch"
METRICS = "metrics.jsonl"
REFUSED, STOPPED = 2, 130
LATEST = "latest"
_POLL_SECONDS = 0.5
_NUM_LAST_LINES = 12


class TrainerFailed(AmbientOmniError):
    """The trainer's process ended before the run was finished."""


@dataclass(frozen=True)
class Step:
    """Something that a run did: a line of its metrics, and the newest sample grid by then."""

    metrics: Mapping[str, Any]
    grid: Path | None = None

    @property
    def is_evaluation(self) -> bool:
        """Say whether the held-out loss was measured."""
        return "held_out_total" in self.metrics

    def line(self) -> str:
        """Return it for a log."""
        numbers = [
            f"{name} {value:.4g}"
            for name, value in self.metrics.items()
            if isinstance(value, int | float) and name not in ("step", "images")
        ]
        return f"{self.metrics.get('images', 0):,} images: {', '.join(numbers)}"


@dataclass
class TrainerProcess:
    """The process of one training run.

    Attributes:
        folder: the run's folder.
        name: what people call the run.
        config: the trainer's configuration as plain values.
        launch: how it is started.
    """

    root: Root
    folder: Path
    name: str
    config: Mapping[str, Any]
    launch: LaunchConfig
    _child: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _read: int = field(default=0, init=False)

    def command(self) -> list[str]:
        """Return the words of the command that trains."""
        file = str(self._files / "config.json")
        script = ["-m", "dagster_project.train_child", "--config", file]
        script += ["--root", str(self.root.path)]
        words = [sys.executable, *script]
        several = self.launch.kind == "template" and self.launch.num_processes > 1
        if several or self.launch.kind == "torchrun":
            count = str(self.launch.num_processes)
            run = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", count]
            words = [sys.executable, *run, *script]
        if self.launch.kind != "template":
            return words
        return [w for t in self.launch.template for w in (words if t == "{command}" else [t])]

    def start(self, environment: Mapping[str, str] | None = None) -> bool:
        """Start the process unless it is there already; return whether it was started now.

        Raises:
            BadInput: the command of a template does not exist.
        """
        self._read = self._metrics_size()
        if self.is_alive():
            return False
        self._files.mkdir(parents=True, exist_ok=True)
        write_json(self._files / "config.json", dict(self.config))
        command = self.command()
        with (self._files / "output.log").open("wb") as log:
            try:
                self._child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=os.environ | dict(environment or {}),
                )
            except OSError as error:
                raise BadInput(
                    f"{command[0]} cannot be started ({error.strerror}); mend launch.template"
                ) from error
        facts = {"host": socket.gethostname(), "pid": self._child.pid, "command": command}
        write_json(self._files / "process.json", facts | {"began": _began(self._child.pid)})
        return True

    def is_alive(self) -> bool:
        """Say whether the process that was started last, by whomever, still runs."""
        if self._child is not None:
            return self._child.poll() is None
        facts = self._facts()
        if not facts or facts["host"] != socket.gethostname():
            return False
        began = _began(facts["pid"])
        return began is not None and began == facts["began"]

    def follow(self) -> Iterator[Step]:
        """Yield what the run does until its process ends.

        Raises:
            TrainerFailed: it ended otherwise than well.
        """
        while True:
            alive = self.is_alive()
            yield from self._new_steps()
            if not alive:
                break
            time.sleep(_POLL_SECONDS)
        code = self._child.wait() if self._child is not None else None
        if code:
            raise TrainerFailed(
                f"training {self.name} ended with code {code}: {self.last_words() or 'no words'}"
            )

    @property
    def exit_code(self) -> int | None:
        """How the process ended; None while it runs, or when another process started it."""
        return None if self._child is None else self._child.poll()

    def stop(self) -> None:
        """Ask the process to save and end, and end it if it does not."""
        facts = self._facts()
        if not facts or not self.is_alive():
            return
        _signal(facts["pid"], signal.SIGTERM)
        give_up = time.monotonic() + self.launch.stop_seconds
        while self.is_alive() and time.monotonic() < give_up:
            time.sleep(0.1)
        if self.is_alive():
            _signal(facts["pid"], signal.SIGKILL, group=True)
            while self.is_alive():
                time.sleep(0.1)

    def last_words(self) -> str:
        """Return the error the process ended with, or else the last line it said."""
        file = self._files / "output.log"
        text = file.read_text(errors="replace") if file.exists() else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()][-_NUM_LAST_LINES:]
        said = [line for line in lines if line.startswith("error: ")] or lines[-1:]
        return said[-1].removeprefix("error: ") if said else ""

    @property
    def messages(self) -> Path:
        """Where the process reports to the orchestrator."""
        self._files.mkdir(parents=True, exist_ok=True)
        return self._files / "pipes.jsonl"

    @property
    def _files(self) -> Path:
        return self.folder / FOLDER

    def _facts(self) -> dict[str, Any]:
        file = self._files / "process.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def _metrics_size(self) -> int:
        file = self.folder / METRICS
        return file.stat().st_size if file.exists() else 0

    def _new_steps(self) -> Iterator[Step]:
        """Yield the lines that were written since; a line half written waits."""
        size = self._metrics_size()
        if size < self._read:  # a resumed run forgets the lines of steps that it does again
            self._read = size
        if size == self._read:
            return
        with (self.folder / METRICS).open("rb") as file:
            file.seek(self._read)
            data = file.read(size - self._read)
        whole = data.rfind(b"\n") + 1
        self._read += whole
        grids = sorted(self.folder.glob("samples*.png"), key=lambda path: path.stat().st_mtime)
        for line in data[:whole].splitlines():
            try:
                yield Step(json.loads(line), grids[-1] if grids else None)
            except ValueError:
                continue  # the rest of a line that was cut off


def _began(pid: int) -> str | None:
    """Return when a process began, in ticks since the machine did; None if it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] == "Z" else fields[19]


def _signal(pid: int, number: int, *, group: bool = False) -> None:
    try:
        (os.killpg if group else os.kill)(pid, number)
    except ProcessLookupError:
        return


def pinned_versions(root: Root, wanted: Mapping[str, Any]) -> dict[str, int]:
    """Return the versions that a person names, without those that are to be the latest.

    Raises:
        BadInput: one is neither a number nor `latest`, or it is not there.
    """
    found = {}
    for name, version in wanted.items():
        if str(version) == LATEST:
            continue
        if not str(version).isdigit():
            raise BadInput(f"table_versions: {name}: {version!r} is no number and not `{LATEST}`")
        found[name] = int(version)
        if root.tables.exists(name):
            root.tables.open(name, found[name])
    return found
