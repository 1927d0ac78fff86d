"""Ctrl-C inside a step stops the job, not the orchestrator around it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


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
