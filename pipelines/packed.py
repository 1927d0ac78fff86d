"""`python -m pipelines.packed --out FOLDER`: what `spark-submit` needs to run our jobs.

Writes `packages.zip`, our packages for `--py-files`, and `job.py`, the script to submit. The nodes
bring what others made: pyarrow, torch and the like.
"""

import argparse
import importlib.util
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

PACKAGES = ("schemas", "ambient_omni", "pipelines")
_NO_PART = frozenset({"__pycache__"})
_SCRIPT = '''"""One job of `python -m pipelines`, for spark-submit."""

import sys

from pipelines.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
'''


def pack(folder: Path) -> tuple[Path, Path]:
    """Write `packages.zip` and `job.py` into `folder`; return both."""
    folder.mkdir(parents=True, exist_ok=True)
    packages, script = folder / "packages.zip", folder / "job.py"
    with zipfile.ZipFile(packages, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, name in _files():
            archive.write(path, name)
    script.write_text(_SCRIPT)
    return packages, script


def _files() -> Iterator[tuple[Path, str]]:
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        top = Path(spec.origin).parent
        for path in sorted(top.rglob("*")):
            if path.is_file() and not _NO_PART & set(path.parts):
                yield path, path.relative_to(top.parent).as_posix()


def source_of(path: Path) -> str:
    """Return the text of a source file of ours, also of one that lies in `packages.zip`."""
    for archive in path.parents:
        if archive.is_file():
            return zipfile.Path(archive, path.relative_to(archive).as_posix()).read_text("utf-8")
    return path.read_text("utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files and say how they are used; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.packed", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    packages, script = pack(parser.parse_args(arguments).out)
    sys.stdout.write(f"spark-submit --py-files {packages} {script} JOB --root DIR --batch B\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
