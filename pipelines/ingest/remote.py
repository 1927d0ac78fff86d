"""Sources that lie elsewhere: anything that fsspec opens, such as ``s3://bucket/shards/*.tar``."""

import posixpath
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ambient_omni.progress import progress
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.items import IMAGE_SUFFIXES, Fetched, ListedItem, Source, text_of
from pipelines.ingest.url_list import SUFFIXES as LISTS
from schemas.addresses import open_store, told_in_a_line
from schemas.errors import BadInput
from schemas.ids import canonical_hash

_TAKEN = frozenset({".tar", ".parquet", ".csv", ".tsv", ".jsonl", ".txt", ".json"}) | IMAGE_SUFFIXES
# What a store may say of an object's content, the surest first; they do not agree on names.
_VERSIONS = ("ETag", "etag", "md5", "mtime", "LastModified", "last_modified", "updated", "created")


class RemoteSource:
    """Files of an object store, fetched into the work folder and then ingested from there.

    A file that was fetched whole stays until the batch is stored, so that a killed ingest goes on.

    Args:
        uri: of a file, a folder, or a pattern.
        config: of the ingest.
        open_local: opens what was fetched.

    Raises:
        BadInput: the store cannot be reached, or nothing is there.
    """

    def __init__(
        self, uri: str, config: IngestConfig, open_local: Callable[[Path, IngestConfig], Source]
    ) -> None:
        self.uri = uri
        self._config = config
        self._open_local = open_local
        self._single = ""  # the name of the file where a file was named
        self._files = _shards_alone(self._list())
        if not self._files:
            raise BadInput(f"{uri} holds no tar, Parquet file, list or image; check the address")
        self._by_place = self._places()

    @property
    def kind(self) -> str:
        """What the files are, by their names."""
        suffixes = {_suffix(name) for name in self._files}
        if suffixes == {".tar"}:
            return "tar"
        if suffixes == {".parquet"}:
            return "parquet"
        return "url_list" if len(self._files) == 1 and suffixes <= LISTS else "folder"

    @cached_property
    def signature(self) -> str:
        """Hash of the files' names, sizes, and what the store says of their content."""
        facts = [
            [name, info.get("size"), str(next((v for k in _VERSIONS if (v := info.get(k))), None))]
            for name, info in self._files.items()
        ]
        return canonical_hash(facts, 32)

    def items(self, work: Path, earlier: Mapping[str, Fetched]) -> list[ListedItem]:
        """Fetch what is not there yet, then list it; addresses are those of the store.

        Raises:
            BadInput: a file cannot be fetched, or is to stay and has no address of its own.
        """
        if self._config.in_place:
            for name in self._files:
                self._require_way_back(name)
        folder = work / f"remote-{self.signature}"
        total = sum(info.get("size") or 0 for info in self._files.values())
        with progress(label="fetch", unit="B", total=total, show=self._config.show_progress) as bar:
            for relative, name in self._by_place.items():
                self._fetch(name, folder / relative)
                bar.update(self._files[name].get("size") or 0)
        local = folder / self._single if self._single else folder
        opened = self._open_local(local, self._config)
        here = str(folder)
        names = {str(folder / relative): name for relative, name in self._by_place.items()}

        def moved(item: ListedItem) -> ListedItem:
            if item.path not in names:
                return replace(item, uri=self._top + item.uri.removeprefix(here))
            address = self._address(names[item.path])
            uri = address + item.uri.removeprefix(text_of(item.path))
            return replace(item, uri=uri, stays_at=address)

        return [moved(item) for item in opened.items(work, earlier)]

    def _address(self, name: str) -> str:
        return str(self._store.unstrip_protocol(name))

    def _require_way_back(self, name: str) -> None:
        """Refuse what no address alone leads to: files in archives, stores named by options."""
        with told_in_a_line(f"{name} of {self.uri} cannot be registered in place"):
            if open_store(self._address(name)) != (self._store, name):
                raise BadInput(
                    f"{name} of {self.uri} cannot be registered in place: the address "
                    f"{self._address(name)} does not lead back to it; copy it instead"
                )

    def _fetch(self, name: str, local: Path) -> None:
        if local.exists():
            return
        local.parent.mkdir(parents=True, exist_ok=True)
        aside = local.with_name(f".{local.name}.partial")
        with told_in_a_line(f"{name} cannot be fetched"):
            self._store.get_file(name, str(aside))
        aside.replace(local)

    def _list(self) -> dict[str, dict[str, Any]]:
        with told_in_a_line(f"{self.uri} cannot be opened"):
            self._store, path = open_store(self.uri)
            self._store.invalidate_cache()  # others write there too, while this process lives
            if any(sign in path for sign in "*?["):
                found = self._store.glob(path, detail=True)
                self._base = posixpath.dirname(
                    path[: min(path.find(s) for s in "*?[" if s in path)]
                )
            elif self._store.isdir(path):
                found = self._store.find(path, detail=True)
                self._base = path.rstrip("/")
            else:
                found = {path: self._store.info(path)}
                self._base, self._single = posixpath.split(path)
        return {
            name: info
            for name, info in sorted(found.items())
            if info.get("type") == "file" and _suffix(name) in _TAKEN
        }

    @property
    def _top(self) -> str:
        return self._address(self._base).rstrip("/")

    def _places(self) -> dict[str, str]:
        """Return the files' names by where they come to lie below the fetched folder."""
        found: dict[str, str] = {}
        for name in self._files:
            relative = self._relative(name)
            if relative in found:
                raise BadInput(
                    f"{found[relative]} and {name} would be one file here; ingest them as two "
                    "batches"
                )
            found[relative] = name
        return found

    def _relative(self, name: str) -> str:
        relative = posixpath.relpath(name, self._base)
        if relative.startswith(".."):
            raise BadInput(f"{name} lies outside of {self.uri}")
        return relative


def _shards_alone(files: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return only the tars of a listing of tars and what was written beside them, else all."""
    suffixes = {_suffix(name) for name in files}
    if ".tar" in suffixes and not suffixes & IMAGE_SUFFIXES:
        return {name: info for name, info in files.items() if _suffix(name) == ".tar"}
    return files


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()
