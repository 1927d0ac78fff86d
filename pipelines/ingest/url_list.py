"""Ingest of a list of URLs, downloaded by img2dataset."""

import csv
import json
import urllib.parse
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.ingest.captions import Words, words_of_row
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.download import download
from pipelines.ingest.items import (
    BAD_ROW,
    NO_STATUS,
    NO_URL,
    UNSUPPORTED_SCHEME,
    Fetched,
    ListedItem,
    with_distinct_keys,
)
from schemas.errors import BadInput
from schemas.ids import canonical_hash

SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".parquet", ".txt"})

# One row of the list: its number from 1, and its columns or what is wrong with it.
Row = tuple[int, dict[str, Any] | str]


class UrlListSource:
    """A csv, tsv, jsonl, parquet or plain text file with one URL a row."""

    kind = "url_list"

    def __init__(self, path: Path, config: IngestConfig) -> None:
        self._path = path
        self._config = config

    @property
    def uri(self) -> str:
        """Absolute path of the list."""
        return str(self._path)

    @cached_property
    def signature(self) -> str:
        """Hash of the list's size and time: what the servers would say today is not asked."""
        found = self._path.stat()
        return canonical_hash([found.st_size, found.st_mtime_ns], 32)

    def items(self, work: Path, earlier: Mapping[str, Fetched]) -> list[ListedItem]:
        """Download what is listed; one item for each row, in the order of the list.

        A URL that stands in several rows is fetched once, and one of which `earlier` knows not
        at all.

        Raises:
            BadInput: the list is empty, or img2dataset is not installed.
            IngestIncomplete: the download broke off; run again and it goes on.
        """
        listed = [self._listed(number, row) for number, row in self._rows()]
        if not listed:
            raise BadInput(f"{self._path} lists nothing; give it one http or https URL a row")
        wanted = list(dict.fromkeys(item.uri for item in listed if item.reason is None))
        missing = [url for url in wanted if url not in earlier]
        fetched = {url: earlier[url] for url in wanted if url in earlier}
        if missing:
            fetched |= download(missing, work, self._config)
        return with_distinct_keys(_with_bytes(item, fetched.get(item.uri)) for item in listed)

    def _listed(self, number: int, row: dict[str, Any] | str) -> ListedItem:
        if isinstance(row, str):
            return self._item(number, "", Words(), BAD_ROW, row)
        words = words_of_row(row, self._config)
        url = _get(row, self._config.download.url_column)
        if not isinstance(url, str) or not url.strip():
            return self._item(number, "", words, NO_URL, None)
        url = url.strip().encode("utf-8", "replace").decode()
        if (scheme := _scheme(url)) not in ("http", "https"):
            return self._item(number, url, words, UNSUPPORTED_SCHEME, f"{scheme!r}"[:100])
        return self._item(number, url, words, None, None)

    def _item(
        self, number: int, url: str, words: Words, reason: str | None, detail: str | None
    ) -> ListedItem:
        return ListedItem(
            key=f"{number}:{url}",
            uri=url,
            source=self._config.source_name or self._path.stem,
            caption=words.caption,
            label=words.label,
            reason=reason,
            detail=detail,
        )

    def _rows(self) -> Iterator[Row]:
        read = {
            ".csv": lambda: self._csv(","),
            ".tsv": lambda: self._csv("\t"),
            ".jsonl": self._jsonl,
            ".parquet": self._parquet,
            ".txt": self._text,
        }[self._path.suffix.lower()]
        try:
            yield from read()
        except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
            raise BadInput(f"{self._path} cannot be read: {error}") from error

    def _csv(self, delimiter: str) -> Iterator[Row]:
        with self._path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            self._check_column(reader.fieldnames or [])
            yield from enumerate(reader, start=1)

    def _parquet(self) -> Iterator[Row]:
        with pq.ParquetFile(self._path) as file:
            self._check_column(file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row

    def _jsonl(self) -> Iterator[Row]:
        with self._path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _json_row(line)

    def _text(self) -> Iterator[Row]:
        with self._path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, {self._config.download.url_column: line}

    def _check_column(self, names: Any) -> None:
        wanted = self._config.download.url_column
        if wanted.casefold() not in {str(n).casefold() for n in names}:
            raise BadInput(
                f"{self._path} has no column {wanted!r} but {list(names)}; rename one or set "
                "download.url_column"
            )


def _json_row(line: str) -> dict[str, Any] | str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"[:200]
    return row if isinstance(row, dict) else "no JSON object"


def _get(row: dict[str, Any], name: str) -> Any:
    return next((v for k, v in row.items() if str(k).casefold() == name.casefold()), None)


def _scheme(url: str) -> str:
    try:
        return urllib.parse.urlsplit(url).scheme.lower()
    except ValueError:
        return url.partition(":")[0]


def _with_bytes(item: ListedItem, fetched: Fetched | None) -> ListedItem:
    if item.reason is not None:
        return item
    found = fetched or Fetched(reason=NO_STATUS, detail="img2dataset never spoke of this row")
    return ListedItem(
        key=item.key,
        uri=item.uri,
        source=item.source,
        path=found.path,
        offset=found.offset,
        num_bytes=found.num_bytes,
        caption=item.caption,
        label=item.label,
        reason=found.reason,
        detail=found.detail,
        sample_id=found.sample_id,
        verified=found.verified,
    )
