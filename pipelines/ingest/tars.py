"""Ingest of existing WebDataset tar shards."""

import glob
import posixpath
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import groupby
from pathlib import Path

from pipelines.ingest.captions import MAX_SIDECAR_BYTES, Words, plain_text, words_of_json
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.folder import walk
from pipelines.ingest.items import (
    IMAGE_SUFFIXES,
    MISSING_IMAGE,
    Fetched,
    ListedItem,
    text_of,
    with_distinct_keys,
)
from pipelines.ingest.tar_index import Member, read_index
from schemas.errors import BadInput
from schemas.ids import canonical_hash

_SIDECARS = frozenset({".txt", ".json", ".cls"})


class TarSource:
    """One shard, or all shards under a folder or of a glob pattern, in the order of their names."""

    kind = "tar"

    def __init__(self, source: str, config: IngestConfig) -> None:
        self._source = source
        self._config = config
        self._top, self._shards = _find(source)
        if not self._shards:
            raise BadInput(f"{source} matches no .tar file; uncompressed WebDataset tars are read")

    @property
    def uri(self) -> str:
        """Absolute path or pattern of the shards."""
        return text_of(str(Path(self._source).absolute()))

    @cached_property
    def signature(self) -> str:
        """Hash of the shards' names, sizes and times."""
        facts = []
        for shard in self._shards:
            found = (self._top / shard).stat()
            facts.append([text_of(shard), found.st_size, found.st_mtime_ns])
        return canonical_hash(facts, 32)

    def items(self, work: Path, earlier: Mapping[str, Fetched]) -> list[ListedItem]:
        """List every member that is no sidecar, every broken place, and captions without image."""
        return with_distinct_keys(item for shard in self._shards for item in self._of_shard(shard))

    def _of_shard(self, shard: str) -> Iterator[ListedItem]:
        path = self._top / shard
        try:
            members = list(read_index(path))
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}") from error
        # WebDataset: the members of one sample stand side by side and share the name up to the
        # first dot.
        for _, group in groupby(members, key=lambda member: _split(member.name)[0]):
            yield from self._of_sample(shard, path, list(group))

    def _of_sample(self, shard: str, path: Path, members: list[Member]) -> Iterator[ListedItem]:
        sidecars: list[Member] = []
        others: list[Member] = []
        for member in members:
            is_sidecar = member.reason is None and _suffix(member.name) in _SIDECARS
            (sidecars if is_sidecar else others).append(member)
        words = self._words(path, sidecars)
        for member in others:
            reason, detail = member.reason, member.detail
            if reason is None and _suffix(member.name) not in IMAGE_SUFFIXES:
                reason = "unsupported_format"
                detail = f"extension {_suffix(member.name)!r}; JPEG, PNG and WebP are taken"
            yield self._item(shard, path, member, words, reason, detail)
        if sidecars and not others:
            named = ", ".join(m.name for m in sidecars)[:200]
            yield self._item(shard, path, sidecars[0], words, MISSING_IMAGE, f"only {named}")

    def _item(
        self,
        shard: str,
        path: Path,
        member: Member,
        words: Words,
        reason: str | None,
        detail: str | None,
    ) -> ListedItem:
        place = member.name or f"@{member.offset}"
        return ListedItem(
            key=f"{text_of(shard)}#{place}",
            uri=text_of(f"{path}#{place}"),
            source=self._source_of(shard),
            path=str(path),
            offset=member.offset,
            num_bytes=member.num_bytes,
            caption=words.caption,
            label=words.label,
            reason=reason,
            detail=detail,
        )

    def _source_of(self, shard: str) -> str:
        if self._config.source_name:
            return self._config.source_name
        first, slash, _ = shard.partition("/")
        if slash:
            return text_of(first)
        # Numbered shards of one folder are one source.
        return text_of(self._top.name if len(self._shards) > 1 else Path(shard).stem)

    def _words(self, path: Path, sidecars: list[Member]) -> Words:
        words = Words()
        with path.open("rb") as file:
            for member in sorted(sidecars, key=lambda m: _suffix(m.name), reverse=True):
                file.seek(member.offset)
                data = file.read(min(member.num_bytes, MAX_SIDECAR_BYTES))
                words = words.or_else(self._said(_suffix(member.name), data))
        return words

    def _said(self, suffix: str, data: bytes) -> Words:
        if suffix == ".txt":
            return Words(caption=plain_text(data))
        if suffix == ".cls":
            return Words(label=plain_text(data))
        return words_of_json(data, self._config)


def _find(source: str) -> tuple[Path, list[str]]:
    """Return the folder that names are relative to, and the shards' names in order."""
    path = Path(source).absolute()
    if path.is_dir():
        found = [e.name for e in walk(path) if e.reason is None and e.suffix == ".tar"]
        return path, sorted(found)
    if path.is_file():
        return path.parent, [path.name]
    top = path
    while glob.has_magic(str(top)):
        top = top.parent
    matches = [Path(m) for m in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - absolute
    return top, sorted(
        m.relative_to(top).as_posix() for m in matches if m.is_file() and m.suffix == ".tar"
    )


def _split(name: str) -> tuple[str, str]:
    folder, base = posixpath.split(name)
    stem, _, extension = base.partition(".")
    return posixpath.join(folder, stem), extension


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()
