"""Steps from one root schema version to the next."""

from collections.abc import Callable
from pathlib import Path

# Raised when a change to a contract or to the layout makes older roots unreadable.
ROOT_VERSION = 1

# from version -> a step that rewrites the root at that path to version + 1, safe to run again
MIGRATIONS: dict[int, Callable[[Path], None]] = {}
