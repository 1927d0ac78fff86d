"""`ambient-omni ui`: the orchestrator's web page, for this machine alone."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dagster_project.defs.project import Project
from dagster_project.instance import HOME_VARIABLE, end_lost_runs, home_of, open_instance
from schemas.errors import AmbientOmniError, BadInput
from schemas.root import ROOT_VARIABLE, Root

HOST = "127.0.0.1"
LOG = "ui.log"
STOP_SECONDS = 20
GROUP_SECONDS = 3
_POLL_SECONDS = 0.2


class PageNotServed(AmbientOmniError):
    """The web page ended by itself."""


def serve(root_path: Path, port: int, *, daemon: bool = True) -> int:
    """Serve until ctrl-C or SIGTERM; return 0 then.

    Args:
        root_path: the root's folder.
        port: of the page.
        daemon: also run what empties the queue and ticks sensors and schedules.

    Raises:
        BadInput: no root, or the port is taken.
        PageNotServed: the server or the daemon ended by itself; the message names the log.
    """
    root = Root.open(root_path)
    if own_home := os.environ.get(HOME_VARIABLE):
        raise BadInput(
            f"the history of this machine is the one of {own_home} ({HOME_VARIABLE}): serve it as "
            "deploy/compose.yaml does, or take the variable away"
        )
    _require_free(port)
    operations = Project(root_path=str(root.path)).operations
    home = home_of(root, max_concurrent_runs=operations.max_concurrent_runs if daemon else None)
    lost = end_lost_runs(open_instance(root))
    commands = {"web page": command(port)} | ({"daemon": DAEMON} if daemon else {})
    with (home / LOG).open("ab") as log:
        servers = {
            name: subprocess.Popen(
                words,
                env=environment(root, home),
                stdout=log,
                stderr=subprocess.STDOUT,
                # A session of its own, with signals as a shell in front of a person has them:
                # started from a script's background job a server would otherwise ignore SIGINT,
                # and with it SIGTERM, in all of its processes.
                start_new_session=True,
                preexec_fn=_ordinary_signals,
            )
            for name, words in commands.items()
        }
    if lost:
        sys.stdout.write(f"{len(lost)} runs had lost their process; they are marked as failed\n")
    sys.stdout.write(f"http://{HOST}:{port}  (ctrl-C stops; log: {home / LOG})\n")
    sys.stdout.flush()
    return _wait(servers, home / LOG)


DAEMON = [sys.executable, "-m", "dagster._daemon", "run", "-m", "dagster_project.definitions"]


def command(port: int) -> list[str]:
    """Return the command line of the web page's server."""
    return [
        *(sys.executable, "-m", "dagster_webserver"),
        *("-m", "dagster_project.definitions"),
        *("--host", HOST, "--port", str(port)),
    ]


def environment(root: Root, home: Path) -> dict[str, str]:
    """Return the server's environment: which root, and no telemetry."""
    return os.environ | {
        "DAGSTER_HOME": str(home),
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "PYTHONWARNINGS": "ignore",
        ROOT_VARIABLE: str(root.path),
    }


def _wait(servers: dict[str, subprocess.Popen[bytes]], log: Path) -> int:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    held = signal.signal(signal.SIGTERM, stop)
    try:
        while all(server.poll() is None for server in servers.values()):
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        _stop(list(servers.values()))
        signal.signal(signal.SIGTERM, held)
    name, code = next((n, s.returncode) for n, s in servers.items() if s.returncode is not None)
    raise PageNotServed(f"the {name} ended with code {code}; see the end of {log}")


def _stop(servers: Sequence[subprocess.Popen[bytes]]) -> None:
    for server in servers:
        if server.poll() is None:
            server.terminate()
    give_up = time.monotonic() + STOP_SECONDS
    for server in servers:
        try:
            server.wait(max(0.1, give_up - time.monotonic()))
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        _end_group(server.pid)


def _end_group(group: int) -> None:
    """End the server's own children, which would otherwise outlive it by some seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        end = time.monotonic() + GROUP_SECONDS
        try:
            os.killpg(group, number)
            while time.monotonic() < end:
                os.killpg(group, 0)
                time.sleep(0.1)
        except ProcessLookupError:
            return


def _ordinary_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise BadInput(f"port {port} cannot be used ({error}); give another --port") from error
