"""Where drops come from: a folder of this machine, or whatever fsspec opens (`s3://bucket/inbox`)."""

import posixpath
import shutil
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from dagster_project.operations.config import Watch
from schemas.addresses import is_address, open_store, told_in_a_line
from schemas.errors import BadInput

Listed = tuple[str, int, float]  # place under the watched folder, bytes, seconds since 1970


def is_remote(watch: Watch) -> bool:
    """Say whether a watched folder is an object store's."""
    return is_address(watch.path)


def listed(watch: Watch) -> Iterator[Listed]:
    """Yield the files of a watched folder, at any depth, hidden names left out.

    Raises:
        BadInput: the folder cannot be read.
    """
    if is_remote(watch):
        yield from _listed_remotely(watch)
        return
    from pipelines.ingest.folder import walk

    for entry in walk(folder_of(watch)):
        if entry.reason is None:
            yield entry.name, entry.size, entry.mtime_ns / 1e9


def fetch(watch: Watch, names: Iterable[str], target: Path) -> None:
    """Copy files of an object store under a folder; one that went away meanwhile is left out.

    Raises:
        BadInput: the store cannot be read.
    """
    store, top = _open(watch)
    for name in names:
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = place.with_name(f".{place.name}.partial")
        with told_in_a_line(f"{watch.path}/{name} cannot be fetched"):
            try:
                with store.open(f"{top}/{name}", "rb") as source, aside.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
            except FileNotFoundError:
                aside.unlink(missing_ok=True)
                continue
        aside.replace(place)


def folder_of(watch: Watch) -> Path:
    """Return a watched folder of this machine.

    Raises:
        BadInput: it is not there.
    """
    path = Path(watch.path).expanduser().absolute()
    if not path.is_dir():
        raise BadInput(
            f"watched folder {watch.path} ({watch.name}) is not there; make it or mount it"
        )
    return path


def _listed_remotely(watch: Watch) -> Iterator[Listed]:
    store, top = _open(watch)
    with told_in_a_line(f"watched folder {watch.path} cannot be read"):
        store.invalidate_cache()
        found = store.find(top, detail=True)
    for path, info in found.items():
        name = posixpath.relpath(path, top)
        hidden = any(part.startswith(".") for part in name.split("/"))
        if info.get("type") == "file" and not hidden:
            yield name, int(info.get("size") or 0), _seconds(info)


def _open(watch: Watch) -> tuple[Any, str]:
    with told_in_a_line(f"watched folder {watch.path} cannot be opened"):
        store, top = open_store(watch.path)
    return store, top.rstrip("/")


def _seconds(info: dict[str, Any]) -> float:
    """Return when a file was written; stores name it differently, and some do not tell."""
    found = info.get("LastModified") or info.get("mtime") or info.get("created") or 0.0
    return found.timestamp() if isinstance(found, datetime) else float(found)
