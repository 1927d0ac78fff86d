"""What code made an artefact."""

from __future__ import annotations

import functools
import importlib.metadata
import shutil
import subprocess
from pathlib import Path

_PACKAGE = "ambient-omni"


@functools.cache
def code_version() -> str:
    """Return ``<version>`` or, in a checkout, ``<version>+git.<commit>[.dirty]``."""
    try:
        version = importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    commit = _git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return version
    dirty = ".dirty" if _git("status", "--porcelain", "--untracked-files=no") else ""
    return f"{version}+git.{commit}{dirty}"


def _git(*arguments: str) -> str:
    git, here = shutil.which("git"), Path(__file__).resolve().parent
    # An installed package may lie inside somebody else's checkout: ours has the package at its top.
    if git is None or not (here.parent / ".git").exists():
        return ""
    done = subprocess.run(
        [git, "-C", str(here), *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""
