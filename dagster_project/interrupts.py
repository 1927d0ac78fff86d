"""Ctrl-C inside a step stops the job, not the orchestrator around it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def keyboard_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGINT and SIGTERM inside the block.

    Dagster holds signals back between steps and raises an exception of its own inside them, which
    no job knows. Jobs (the trainer, say) save their work upon KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in held:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)


def end_spark(wait_seconds: float = 3.0) -> None:
    """End the JVM of this process, which is about to end too, without waiting for its jobs.

    After ctrl-C the JVM got no signal, and at our exit it may wait for ever for workers that did.
    """
    pyspark = sys.modules.get("pyspark")
    gateway = getattr(getattr(pyspark, "SparkContext", None), "_gateway", None)
    process = getattr(gateway, "proc", None)
    if process is None:
        return
    # Spark's threads in this process complain when the JVM goes.
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - open until the process ends
    process.terminate()
    try:
        process.wait(wait_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
