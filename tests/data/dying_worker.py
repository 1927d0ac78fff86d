"""Work for a process pool, in a module of its own so that spawned processes can import it."""

import os
import time

from pipelines.ingest.verify import Verdict, start_worker


def die(*_):
    """End the process at once."""
    os._exit(11)


def double_or_die(chunk):
    """Return a verdict for each number; -1 ends the process as a broken decoder would."""
    if -1 in chunk:
        os._exit(11)
    return [Verdict(num_bytes=number * 2) for number in chunk]


def wait_as_a_worker(pool):
    """Wait for work that nobody gives."""
    start_worker(pool)
    time.sleep(600)
