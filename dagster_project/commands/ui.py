"""`ambient-omni ui`: the orchestrator's web page, for this machine alone."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from dagster_project.defs.project import ROOT_VARIABLE
from dagster_project.instance import home_of
from schemas.errors import AmbientOmniError, BadInput
from schemas.root import Root

HOST = "127.0.0.1"
LOG = "ui.log"
STOP_SECONDS = 20
GROUP_SECONDS = 3


class PageNotServed(AmbientOmniError):
    """The web page ended by itself."""


def serve(root_path: Path, port: int) -> int:
    """Serve until ctrl-C or SIGTERM; return 0 then.

    Raises:
        BadInput: no root, or the port is taken.
        PageNotServed: the server ended by itself; the message names its log.
    """
    root = Root.open(root_path)
    _require_free(port)
    home = home_of(root)
    with (home / LOG).open("ab") as log:
        server = subprocess.Popen(
            command(port),
            env=environment(root, home),
            stdout=log,
            stderr=subprocess.STDOUT,
            # A session of its own, with signals as a shell in front of a person has them: started
            # from a script's background job the server would otherwise ignore SIGINT, and with it
            # SIGTERM, in all of its processes.
            start_new_session=True,
            preexec_fn=_ordinary_signals,
        )
    sys.stdout.write(f"http://{HOST}:{port}  (ctrl-C stops; log: {home / LOG})\n")
    sys.stdout.flush()
    return _wait(server, home / LOG)


def command(port: int) -> list[str]:
    """Return the command line of the server."""
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


def _wait(server: subprocess.Popen[bytes], log: Path) -> int:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    held = signal.signal(signal.SIGTERM, stop)
    try:
        code = server.wait()
    except KeyboardInterrupt:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
        _end_group(server.pid)
        return 0
    finally:
        signal.signal(signal.SIGTERM, held)
    raise PageNotServed(f"the web page ended with code {code}; see the end of {log}")


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
