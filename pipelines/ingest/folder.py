"""Ingest of a local folder, at any depth."""

import os
import posixpath
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipelines.ingest.captions import (
    MAX_SIDECAR_BYTES,
    METADATA_NAMES,
    Words,
    plain_text,
    read_metadata,
    words_of_json,
)
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.items import (
    IMAGE_SUFFIXES,
    MISSING_FILE,
    NOT_A_FILE,
    SYMLINK,
    UNREADABLE,
    Fetched,
    ListedItem,
    text_of,
    with_distinct_keys,
)
from schemas.errors import BadInput
from schemas.ids import canonical_hash

# Files that stand beside images and are never meant as one.
_SIDECARS = frozenset(
    {".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".cls", ".md", ".xml", ".yaml", ".yml"}
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One name found under the folder: relative path with forward slashes, size, time, refusal."""

    name: str
    size: int
    mtime_ns: int
    reason: str | None = None
    detail: str | None = None

    @property
    def suffix(self) -> str:
        """The extension in lower case, with its dot."""
        return posixpath.splitext(self.name)[1].lower()


class FolderSource:
    """Images under a folder, with captions beside them. Hidden names are not looked at."""

    kind = "folder"

    def __init__(self, path: Path, config: IngestConfig, entries: Iterable[Entry]) -> None:
        self._path = path
        self._config = config
        self._entries = sorted(entries, key=lambda entry: entry.name)
        if not any(e.suffix in IMAGE_SUFFIXES for e in self._entries):
            raise BadInput(
                f"{path} holds no image ({len(self._entries)} files seen); name a folder with "
                "JPEG, PNG or WebP files, at any depth"
            )

    @property
    def uri(self) -> str:
        """Absolute path of the folder."""
        return text_of(str(self._path))

    @cached_property
    def signature(self) -> str:
        """Hash of all names, sizes and times."""
        facts = [[text_of(e.name), e.size, e.mtime_ns, e.reason] for e in self._entries]
        return canonical_hash(facts, 32)

    def items(self, work: Path, earlier: Mapping[str, Fetched]) -> list[ListedItem]:
        """List every file that is not a sidecar, and what metadata files name in vain."""
        stated = self._stated_words()
        listed = [
            self._item(entry, stated.pop(entry.name, Words()))
            for entry in self._entries
            if entry.reason is not None or entry.suffix not in _SIDECARS
        ]
        named_in_vain = [self._missing(name, words) for name, words in sorted(stated.items())]
        return with_distinct_keys(listed + named_in_vain)

    def _item(self, entry: Entry, stated: Words) -> ListedItem:
        reason, detail = entry.reason, entry.detail
        if reason is None and entry.suffix not in IMAGE_SUFFIXES:
            reason = "unsupported_format"
            detail = f"extension {text_of(entry.suffix)!r}; JPEG, PNG and WebP are taken"
        words = stated if reason else stated.or_else(self._words_beside(entry))
        folder = posixpath.dirname(entry.name)
        if self._config.labels_from_folders and folder:
            words = Words(words.caption, text_of(posixpath.basename(folder)))
        path = str(self._path / entry.name)
        return ListedItem(
            key=text_of(entry.name),
            uri=text_of(path),
            source=self._source_of(entry.name),
            path=path,
            num_bytes=entry.size,
            caption=words.caption,
            label=words.label,
            reason=reason,
            detail=detail,
        )

    def _missing(self, name: str, words: Words) -> ListedItem:
        return ListedItem(
            key=text_of(name),
            uri=text_of(str(self._path / name)),
            source=self._source_of(name),
            caption=words.caption,
            label=words.label,
            reason=MISSING_FILE,
            detail="named by a metadata file",
        )

    def _source_of(self, name: str) -> str:
        if self._config.source_name:
            return self._config.source_name
        first, slash, _ = name.partition("/")
        return text_of(first if slash and first not in ("", "..") else self._path.name or "root")

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(e.name for e in self._entries if e.reason is None)

    def _words_beside(self, entry: Entry) -> Words:
        stem = posixpath.splitext(entry.name)[0]
        words = Words()
        if stem + ".txt" in self._names:
            words = Words(plain_text(self._read(stem + ".txt")))
        if stem + ".json" in self._names:
            words = words.or_else(words_of_json(self._read(stem + ".json"), self._config))
        return words

    def _read(self, name: str) -> bytes:
        try:
            with (self._path / name).open("rb") as file:
                return file.read(MAX_SIDECAR_BYTES)
        except OSError as error:
            raise BadInput(f"{self._path / name} cannot be read: {error.strerror}") from error

    def _stated_words(self) -> dict[str, Words]:
        """Return what metadata files say, by relative name; file_name is relative to its file."""
        stated: dict[str, Words] = {}
        for entry in self._entries:
            folder, base = posixpath.split(entry.name)
            if base in METADATA_NAMES and entry.reason is None:
                for name, words in read_metadata(self._path / entry.name, self._config):
                    stated.setdefault(posixpath.normpath(posixpath.join(folder, name)), words)
        return stated


def walk(top: Path) -> Iterator[Entry]:
    """Yield everything under `top`; links to files inside are followed, links to folders never."""
    real_top = top.resolve()
    stack = [""]
    while stack:
        folder = stack.pop()
        try:
            with os.scandir(top / folder) as found:
                entries = [e for e in found if not e.name.startswith(".")]
        except OSError as error:
            if not folder:
                raise BadInput(f"{top} cannot be read: {error.strerror}") from error
            yield Entry(folder, 0, 0, UNREADABLE, error.strerror)
            continue
        for found_entry in entries:
            name = posixpath.join(folder, found_entry.name)
            if found_entry.is_dir(follow_symlinks=False):
                stack.append(name)
            else:
                yield _entry(name, found_entry, real_top)


def _entry(name: str, found: os.DirEntry[str], real_top: Path) -> Entry:
    try:
        facts = found.stat()
        if found.is_symlink():
            # A folder behind a link may hold the link itself; a file behind one ends the way.
            if stat.S_ISDIR(facts.st_mode):
                return Entry(name, 0, 0, SYMLINK, "links to folders are not followed")
            if not Path(found.path).resolve().is_relative_to(real_top):
                return Entry(name, 0, 0, SYMLINK, "leads out of the folder")
    except FileNotFoundError:
        return Entry(name, 0, 0, MISSING_FILE, "a link to nothing")
    except OSError as error:
        return Entry(name, 0, 0, UNREADABLE, error.strerror)
    if not stat.S_ISREG(facts.st_mode):
        return Entry(name, 0, 0, NOT_A_FILE, "a pipe, socket or device")
    return Entry(name, facts.st_size, facts.st_mtime_ns)
