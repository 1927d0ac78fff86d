"""Files that others drop under a watched folder become batches, each file exactly once.

A file's place in the watched folder and its size name it: a file that grew is a new file. What was
taken stands in a manifest per batch, `<root>/drops/<batch>.json`; a manifest that got lost is made
again from `ingest_attempts`. So neither a lost cursor nor a restart brings anything in twice.

The files of a batch are linked (or, from another disk, copied) into `<root>/drops/<batch>/`, which
is the batch's source from then on: what comes later into the watched folder does not change it.
Those of an object store are fetched when the batch is ingested (`bring_here`), not by the sensor.
"""

import json
import os
import posixpath
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dagster_project.operations.config import Watch
from dagster_project.operations.places import fetch, folder_of, is_remote, listed
from dagster_project.request import BatchRequest, Request, change_request
from schemas.ids import canonical_hash
from schemas.root import Root, write_json

FOLDER = "drops"
Kind = Literal["images", "shards", "list"]
Key = tuple[str, int]  # place under the watched folder, bytes


@dataclass(frozen=True)
class Listing:
    """What lies in a watched folder now.

    Attributes:
        images, shards, lists: the settled files of each kind, ascending.
        beside: files that stand beside images (captions, labels), by folder and stem; those that
            speak of a whole folder (metadata.csv) by the folder and an empty stem.
        num_unsettled: files that are too young.
    """

    images: tuple[Key, ...]
    shards: tuple[Key, ...]
    lists: tuple[Key, ...]
    beside: dict[tuple[str, str], tuple[str, ...]]
    num_unsettled: int

    @cached_property
    def digest(self) -> str:
        """Changes when a file comes, goes or grows."""
        return canonical_hash([self.images, self.shards, self.lists, self.num_unsettled])


@dataclass(frozen=True)
class Drop:
    """One batch of dropped files."""

    batch: str
    watch: str
    role: str
    kind: Kind
    files: tuple[Key, ...]


def look(watch: Watch, now: float) -> Listing:
    """List a watched folder.

    A file is settled when its time is `settle_seconds` from now, on either side: the clock of the
    machine that wrote it may be ahead of ours.

    Raises:
        BadInput: the folder cannot be read.
    """
    from pipelines.ingest.captions import METADATA_NAMES
    from pipelines.ingest.items import IMAGE_SUFFIXES
    from pipelines.ingest.url_list import SUFFIXES

    settled, unsettled = [], 0
    for name, size, written in listed(watch):
        if abs(now - written) < watch.settle_seconds:
            unsettled += 1
        else:
            settled.append((name, size))
    images = [key for key in settled if _suffix(key[0]) in IMAGE_SUFFIXES]
    stems = {_stem(name) for name, _ in images}
    shards, lists = [], []
    beside: dict[tuple[str, str], list[str]] = {}
    for key in settled:
        folder, base = posixpath.split(key[0])
        if base in METADATA_NAMES:
            beside.setdefault((folder, ""), []).append(key[0])
        elif _stem(key[0]) in stems and _suffix(key[0]) not in IMAGE_SUFFIXES:
            beside.setdefault(_stem(key[0]), []).append(key[0])
        elif _suffix(key[0]) == ".tar":
            shards.append(key)
        elif _suffix(key[0]) in SUFFIXES:
            lists.append(key)
    return Listing(
        tuple(sorted(images)),
        tuple(sorted(shards)),
        tuple(sorted(lists)),
        {where: tuple(sorted(names)) for where, names in beside.items()},
        unsettled,
    )


def register_new(
    root: Root, watch: Watch, *, now: float | None = None, listing: Listing | None = None
) -> list[Drop]:
    """Make batches of what is new in a watched folder; return them, the newest last.

    Raises:
        BadInput: the folder cannot be read, or nothing was asked of the root yet.
        JobAlreadyRunning: another process registers drops of this folder.
    """
    with root.lock("drops", watch.name):
        found = listing or look(watch, time.time() if now is None else now)
        before = manifests(root, watch)
        _finish_staging(root, watch, found, before)
        taken = {key for drop in before for key in drop.files}
        number = _next_number(root, watch, before)
        drops: list[Drop] = []
        for kind, files in _groups(found, taken, watch.max_files_per_batch):
            drop = Drop(f"{watch.name}-{number:05d}", watch.name, watch.role, kind, tuple(files))
            # The manifest first: what it names is taken, whatever happens from here on.
            _write_manifest(root, drop)
            if not is_remote(watch):
                _stage(root, watch, drop, found)
            drops.append(drop)
            number += 1
        _ask_for(root, watch, [*before, *drops])
    return drops


def bring_here(root: Root, watches: Sequence[Watch], batch: str) -> None:
    """Fetch the files of a batch that an object store holds; nothing for any other batch.

    Raises:
        BadInput: the store cannot be read.
    """
    watch = next((w for w in watches if is_remote(w) and _is_of(batch, w)), None)
    if watch is None or not _manifest(root, batch).exists():
        return
    drop = _read_manifest(_manifest(root, batch))
    if not (root.path / FOLDER / batch).exists():
        with root.lock("fetch", batch):
            _stage(root, watch, drop, look(watch, time.time()))


def manifests(root: Root, watch: Watch) -> list[Drop]:
    """Return the batches that came from a watched folder, the lost manifests among them rebuilt."""
    ingested = root.tables.read("ingest_batches", ["ingest_batch", "source_uri", "role"])
    ours = str(root.path / FOLDER) + os.sep
    for row in ingested.to_pylist():
        name, file = row["ingest_batch"], _manifest(root, row["ingest_batch"])
        if row["source_uri"].startswith(ours) and _is_of(name, watch) and not file.exists():
            _write_manifest(root, _from_attempts(root, watch, row))
    files = (root.path / FOLDER).glob(f"{watch.name}-*.json")
    return [_read_manifest(file) for file in sorted(files) if _is_of(file.stem, watch)]


def source_of(root: Root, drop: Drop) -> Path:
    """Return where ingest reads a batch from."""
    staged = root.path / FOLDER / drop.batch
    return staged / drop.files[0][0] if drop.kind == "list" else staged


def _groups(found: Listing, taken: set[Key], largest: int) -> Iterator[tuple[Kind, Sequence[Key]]]:
    for kind, files, size in (
        ("images", found.images, largest),
        ("shards", found.shards, largest),
        ("list", found.lists, 1),
    ):
        new = [key for key in files if key not in taken]
        for start in range(0, len(new), size):
            yield kind, new[start : start + size]  # type: ignore[misc]


def _ask_for(root: Root, watch: Watch, drops: Iterable[Drop]) -> None:
    """Put the batches, and those that a killed process left, into the root's request."""
    new = [
        BatchRequest(
            name=drop.batch, role=watch.role, source=str(source_of(root, drop)), stream=watch.name
        )
        for drop in drops
    ]

    def change(request: Request) -> Request:
        known = {batch.name for batch in request.batches}
        return request.with_batches([batch for batch in new if batch.name not in known])

    change_request(root, change)


def _stage(root: Root, watch: Watch, drop: Drop, found: Listing) -> None:
    staged = root.path / FOLDER / drop.batch
    aside = staged.with_name(f".{staged.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    names = [name for name, _ in drop.files]
    if drop.kind == "images":
        folders = {posixpath.dirname(name) for name in names}
        names += [n for folder in folders for n in found.beside.get((folder, ""), ())]
        names += [n for name, _ in drop.files for n in found.beside.get(_stem(name), ())]
    _bring(watch, list(dict.fromkeys(names)), aside)
    aside.replace(staged)


def _bring(watch: Watch, names: Sequence[str], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    if is_remote(watch):
        fetch(watch, names, target)
        return
    top, made = folder_of(watch), set[Path]()
    for name in names:
        place = target / name
        if place.parent not in made:
            place.parent.mkdir(parents=True, exist_ok=True)
            made.add(place.parent)
        _link(top / name, place)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        return  # went away meanwhile; ingest sees what is there
    except OSError:
        shutil.copy2(source, target)


def _finish_staging(root: Root, watch: Watch, found: Listing, drops: Iterable[Drop]) -> None:
    """Link the files of a manifest whose process was killed before it had done so."""
    if is_remote(watch):
        return  # fetched when the batch is ingested
    for drop in drops:
        staged = root.path / FOLDER / drop.batch
        if staged.exists() or root.tables.fingerprint("samples", {"ingest_batch": drop.batch}):
            continue
        _stage(root, watch, drop, found)


def _from_attempts(root: Root, watch: Watch, row: dict[str, Any]) -> Drop:
    """Rebuild the manifest of an ingested batch from what was tried of it."""
    batch = row["ingest_batch"]
    staged = Path(root.path / FOLDER / batch)
    source = Path(row["source_uri"])
    kind: Kind = "images"
    if source != staged:
        kind, names = "list", {source.relative_to(staged).as_posix()}
    else:
        keys = root.tables.read("ingest_attempts", ["attempt_key"], {"ingest_batch": batch})
        tried = keys["attempt_key"].to_pylist()
        names = {key.split("#", 1)[0] for key in tried if ".tar#" in key}
        kind = "shards" if names else "images"
        names = names or set(tried)
    files = []
    there = {name: size for name, size, _ in listed(watch)} if is_remote(watch) else {}
    for name in sorted(names):
        place = staged / name
        if not (place.exists() or is_remote(watch)):
            place = folder_of(watch) / name
        if place.exists():
            files.append((name, place.stat().st_size))
        elif name in there:
            files.append((name, there[name]))
    return Drop(batch, watch.name, row["role"], kind, tuple(files))


def _next_number(root: Root, watch: Watch, drops: Iterable[Drop]) -> int:
    request = Request.load(root)
    names = {drop.batch for drop in drops}
    names |= {batch.name for batch in request.batches} if request else set()
    names |= set(root.tables.read("ingest_batches", ["ingest_batch"])["ingest_batch"].to_pylist())
    numbers = [int(name.rsplit("-", 1)[1]) for name in names if _is_of(name, watch)]
    return max(numbers, default=-1) + 1


def _is_of(batch: str, watch: Watch) -> bool:
    start, _, number = batch.rpartition("-")
    return start == watch.name and number.isdigit()


def _manifest(root: Root, batch: str) -> Path:
    return root.path / FOLDER / f"{batch}.json"


def _write_manifest(root: Root, drop: Drop) -> None:
    write_json(
        _manifest(root, drop.batch),
        {"watch": drop.watch, "role": drop.role, "kind": drop.kind, "files": drop.files},
    )


def _read_manifest(file: Path) -> Drop:
    found = json.loads(file.read_text())
    files = tuple((name, size) for name, size in found["files"])
    return Drop(file.stem, found["watch"], found["role"], found["kind"], files)


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _stem(name: str) -> tuple[str, str]:
    folder, base = posixpath.split(name)
    return folder, posixpath.splitext(base)[0]
