"""Sources that lie elsewhere: anything that fsspec opens, such as ``s3://bucket/shards/*.tar``."""

import posixpath
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ambient_omni.progress import progress
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.items import Fetched, ListedItem, Source
from pipelines.ingest.url_list import SUFFIXES as LISTS
from schemas.addresses import open_store, told_in_a_line
from schemas.errors import BadInput
from schemas.ids import canonical_hash

_TAKEN = frozenset(
    {
        ".tar",
        ".parquet",
        ".csv",
        ".tsv",
        ".jsonl",
        ".txt",
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".json",
    }
)


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
        self._files = self._list()
        if not self._files:
            raise BadInput(f"{uri} holds no tar, Parquet file, list or image; check the address")

    @property
    def kind(self) -> str:
        """What the files are, by their names."""
        suffixes = {posixpath.splitext(name)[1].lower() for name in self._files}
        if suffixes == {".tar"}:
            return "tar"
        if suffixes == {".parquet"}:
            return "parquet"
        return "url_list" if len(self._files) == 1 and suffixes <= LISTS else "folder"

    @cached_property
    def signature(self) -> str:
        """Hash of the files' names, sizes, and what the store says of their content."""
        facts = [
            [
                name,
                info.get("size"),
                str(info.get("ETag") or info.get("mtime") or info.get("created")),
            ]
            for name, info in self._files.items()
        ]
        return canonical_hash(facts, 32)

    def items(self, work: Path, earlier: Mapping[str, Fetched]) -> list[ListedItem]:
        """Fetch what is not there yet, then list it; addresses are those of the store.

        Raises:
            BadInput: a file cannot be fetched.
        """
        folder = work / f"remote-{self.signature}"
        total = sum(info.get("size") or 0 for info in self._files.values())
        with progress(label="fetch", unit="B", total=total, show=self._config.show_progress) as bar:
            for name, info in self._files.items():
                self._fetch(name, folder / self._relative(name))
                bar.update(info.get("size") or 0)
        local = folder / self._single if self._single else folder
        opened = self._open_local(local, self._config)
        here = str(folder)

        def address(name: str) -> str:
            return self._top + name.removeprefix(here)

        return [
            replace(item, uri=address(item.uri), stays_at=address(item.path) if item.path else "")
            for item in opened.items(work, earlier)
        ]

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
            if info.get("type") == "file" and posixpath.splitext(name)[1].lower() in _TAKEN
        }

    @property
    def _top(self) -> str:
        return str(self._store.unstrip_protocol(self._base)).rstrip("/")

    def _relative(self, name: str) -> str:
        relative = posixpath.relpath(name, self._base)
        if relative.startswith(".."):
            raise BadInput(f"{name} lies outside of {self.uri}")
        return relative
