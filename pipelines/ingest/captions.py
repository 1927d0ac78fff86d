"""Captions and labels that lie beside images."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.ingest.config import IngestConfig
from schemas.errors import BadInput

# A sidecar is a text about one image. What is longer than this is cut, never read whole.
MAX_SIDECAR_BYTES = 2**20

# The csv module gives up on a whole file over one field above 128 KiB; captions of a megabyte
# are in the wild. Its limit is the process's own, so it is only ever raised.
csv.field_size_limit(max(csv.field_size_limit(), 16 * 2**20))

METADATA_NAMES = ("metadata.csv", "metadata.jsonl")


class Words(NamedTuple):
    """Caption and label of one image, None where there is none."""

    caption: str | None = None
    label: str | None = None

    def or_else(self, other: "Words") -> "Words":
        """Fill what is missing from `other`."""
        return Words(
            other.caption if self.caption is None else self.caption,
            other.label if self.label is None else self.label,
        )


def plain_text(data: bytes) -> str | None:
    """Return the text of a .txt or .cls sidecar without the white space around it."""
    text = data[:MAX_SIDECAR_BYTES].decode("utf-8-sig", "replace").strip()
    return text or None


def words_of_json(data: bytes, config: IngestConfig) -> Words:
    """Return what a JSON sidecar says; nothing if it is no JSON object."""
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return Words()
    return words_of_row(value, config) if isinstance(value, dict) else Words()


def words_of_row(row: Mapping[Any, Any], config: IngestConfig) -> Words:
    """Return caption and label of a JSON object or table row."""
    folded = {str(k).casefold(): v for k, v in row.items()}
    return Words(
        _first(folded, config.caption_keys),
        _first(folded, config.label_keys),
    )


def read_metadata(path: Path, config: IngestConfig) -> Iterator[tuple[str, Words]]:
    """Yield (file_name, words) of a metadata.csv or metadata.jsonl, as in HF imagefolder.

    Raises:
        BadInput: the file cannot be read, or a row names no file.
    """
    rows = _csv_rows(path) if path.suffix == ".csv" else _jsonl_rows(path)
    try:
        for line, row in rows:
            name = row.get("file_name")
            if not isinstance(name, str) or not name:
                raise BadInput(
                    f"{path}, line {line}: no file_name; every row must name its image there, "
                    "or rename the file if it is not about images"
                )
            yield name, words_of_row(row, config)
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise BadInput(f"{path} cannot be read ({error}); mend it or rename it") from error


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            yield reader.line_num, row


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise BadInput(f"{path}, line {line}: no JSON ({error}); mend the line") from error
            yield line, row if isinstance(row, dict) else {}


def _first(row: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    for key in keys:
        text = _as_text(row.get(key.casefold()))
        if text is not None:
            return text
    return None


def _as_text(value: Any) -> str | None:
    if isinstance(value, list) and value:
        value = value[0]  # several captions of one image: the first is taken
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    # JSON can spell lone surrogates, which no UTF-8 column can hold.
    text = str(value).encode("utf-8", "replace").decode().strip()
    return text or None
