"""``python -m dagster_project.cluster_job slurm|kubernetes ... -- COMMAND``: a command as a job.

For `launch.template`: waits until the job ends and ends with its exit code. SIGTERM is passed on,
so that a trainer saves before it ends; one that does not end in time is ended. The root must lie at
the same path on the nodes of the job.
"""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from schemas.errors import AmbientOmniError, BadInput

PIPES = ("DAGSTER_PIPES_CONTEXT", "DAGSTER_PIPES_MESSAGES")
_POLL_SECONDS = 1.0
_LOST = 1


class ClusterRefused(AmbientOmniError):
    """The cluster's own command failed; the message is what it said."""


class _Stopped(Exception):
    """SIGTERM came."""


class Job(Protocol):
    """A job of a cluster."""

    def submit(self) -> str:
        """Hand it in, or find it again; return what the cluster calls it."""

    def poll(self) -> int | None:
        """Return its exit code; None while it waits or runs."""

    def ask_to_stop(self) -> None:
        """Let its processes save and end."""

    def end(self) -> None:
        """End it at once."""


class SlurmJob:
    """A batch job: `sbatch --wait` lives as long as it does and ends as it does."""

    def __init__(self, command: Sequence[str], options: Sequence[str], name: str) -> None:
        self._words = ["sbatch", "--wait", "--parsable", f"--job-name={name}", *options]
        self._words.append(f"--wrap=exec {shlex.join(command)}")
        self._waiting: subprocess.Popen[str] | None = None
        self._job = ""

    def submit(self) -> str:
        """Hand it in."""
        # Ctrl-C and the like are ours to pass on.
        self._waiting = _popen(self._words)
        assert self._waiting.stdout is not None
        self._job = self._waiting.stdout.readline().strip().split(";")[0]
        if not self._job:
            raise ClusterRefused(f"sbatch took no job (code {self._waiting.wait()}); see above")
        return self._job

    def poll(self) -> int | None:
        """Return the job's exit code, as `sbatch --wait` does."""
        assert self._waiting is not None
        return self._waiting.poll()

    def ask_to_stop(self) -> None:
        """Signal the job's processes."""
        _run(["scancel", "--signal=TERM", "--full", self._job])

    def end(self) -> None:
        """Cancel the job."""
        _run(["scancel", self._job])


class KubernetesJob:
    """A Job made from a manifest: its first container gets the command."""

    def __init__(self, command: Sequence[str], manifest: Path, namespace: str, name: str) -> None:
        self._name = name
        self._kubectl = ["kubectl", *(["--namespace", namespace] if namespace else [])]
        self._job = _filled(manifest, name, command)

    def submit(self) -> str:
        """Create the Job; one of this name that still runs is found again."""
        known = self._get("job", self._name)
        if known is not None and _ended(known):
            self.end()
            known = None
        if known is None:
            self._say(["create", "-f", "-"], json.dumps(self._job))
        return self._name

    def poll(self) -> int | None:
        """Return the exit code of the Job's container."""
        job = self._get("job", self._name)
        if job is None:
            return _LOST
        if not _ended(job):
            return None
        # What its processes said belongs into the run's log.
        sys.stdout.write(self._say(["logs", f"job/{self._name}", "--tail=200"], check=False))
        return self._exit_code()

    def ask_to_stop(self) -> None:
        """Delete the Job: its pod is signalled and has its grace period to save."""
        self._say(["delete", f"job/{self._name}", "--wait=true", "--cascade=foreground"])

    def end(self) -> None:
        """Delete the Job and do not wait for what it does."""
        words = ["delete", f"job/{self._name}", "--ignore-not-found", "--grace-period=0", "--force"]
        self._say(words)

    def _exit_code(self) -> int:
        pods = self._get("pods", "--selector", f"job-name={self._name}") or {"items": []}
        codes = [
            int(status["state"]["terminated"]["exitCode"])
            for pod in pods["items"]
            for status in pod.get("status", {}).get("containerStatuses", ())[:1]
            if "terminated" in status.get("state", {})
        ]
        return codes[-1] if codes else _LOST

    def _get(self, *what: str) -> dict[str, Any] | None:
        said = self._say(["get", *what, "--ignore-not-found", "-o", "json"])
        found: dict[str, Any] | None = json.loads(said) if said.strip() else None
        return found

    def _say(self, words: Sequence[str], text: str = "", *, check: bool = True) -> str:
        return _run([*self._kubectl, *words], text, check=check)


def follow(job: Job, stop_seconds: float) -> int:
    """Hand a job in, wait for it, pass SIGTERM on; return the exit code.

    Raises:
        ClusterRefused: the cluster took no job, or cannot be asked.
    """
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        sys.stdout.write(f"job {job.submit()}\n")
        sys.stdout.flush()
        while (code := job.poll()) is None:
            time.sleep(_POLL_SECONDS)
        return code
    except _Stopped:
        return _stopped(job, stop_seconds)
    finally:
        signal.signal(signal.SIGTERM, before)


def _stopped(job: Job, stop_seconds: float) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    job.ask_to_stop()
    give_up = time.monotonic() + stop_seconds
    while job.poll() is None and time.monotonic() < give_up:
        time.sleep(_POLL_SECONDS)
    if job.poll() is None:
        job.end()
    return 128 + signal.SIGTERM


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _Stopped


def _filled(manifest: Path, name: str, command: Sequence[str]) -> dict[str, Any]:
    """Return a manifest with name, command, and where progress is reported.

    Raises:
        BadInput: it is no manifest of a Job with a container.
    """
    import yaml

    try:
        job: dict[str, Any] = yaml.safe_load(manifest.read_text())
        container: dict[str, Any] = job["spec"]["template"]["spec"]["containers"][0]
    except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError) as error:
        raise BadInput(f"{manifest} is no manifest of a Job with a container: {error}") from error
    job.setdefault("metadata", {})["name"] = name
    container["command"] = list(command)
    pipes = [{"name": v, "value": os.environ[v]} for v in PIPES if v in os.environ]
    container["env"] = [*container.get("env", ()), *pipes]
    return job


def _ended(job: dict[str, Any]) -> bool:
    conditions = job.get("status", {}).get("conditions", ())
    return any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in conditions)


def _popen(words: Sequence[str]) -> "subprocess.Popen[str]":
    try:
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    except OSError as error:
        raise ClusterRefused(f"{words[0]} cannot be started: {error.strerror}") from error


def _run(words: Sequence[str], text: str = "", *, check: bool = True) -> str:
    try:
        done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ClusterRefused(f"{words[0]} cannot be started: {error.strerror}") from error
    if done.returncode and check:
        said = " ".join(done.stderr.split()) or f"code {done.returncode}"
        raise ClusterRefused(f"{' '.join(words[:4])}: {said}")
    return done.stdout


def job_name(command: Sequence[str]) -> str:
    """Return a name that the cluster takes and that the same run has again."""
    words = list(command)
    config = Path(words[words.index("--config") + 1]) if "--config" in words else Path("run")
    run = config.parents[1].name if len(config.parents) > 1 else "run"
    return "ambient-omni-" + (re.sub(r"[^a-z0-9-]+", "-", run.lower()).strip("-") or "run")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command as a job; return its exit code, or 2 for what a person can mend."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    cut = words.index("--") if "--" in words else len(words)
    options, command = _parser().parse_args(words[:cut]), words[cut + 1 :]
    try:
        if not command:
            raise BadInput("no command: write it after `--`")
        name = job_name(command)
        job: Job = (
            SlurmJob(command, options.sbatch, name)
            if options.kind == "slurm"
            else KubernetesJob(command, options.manifest, options.namespace, name)
        )
        return follow(job, options.stop_seconds)
    except AmbientOmniError as error:
        sys.stdout.write(f"error: {error}\n")
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stop-seconds", type=float, default=45.0, help="time to save")
    kinds = parser.add_subparsers(dest="kind", required=True)
    slurm = kinds.add_parser("slurm")
    slurm.add_argument(
        "--sbatch", action="append", default=[], help="an option of sbatch; several times"
    )
    kubernetes = kinds.add_parser("kubernetes")
    kubernetes.add_argument("--manifest", type=Path, required=True, help="YAML of a Job")
    kubernetes.add_argument("--namespace", default="")
    return parser


if __name__ == "__main__":
    sys.exit(main())
