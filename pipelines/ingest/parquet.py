"""Ingest of Parquet files that hold image bytes, as Hugging Face datasets do."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.ingest.captions import words_of_row
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.items import MISSING_IMAGE, TOO_MANY_BYTES, Fetched, ListedItem
from schemas.errors import BadInput
from schemas.ids import canonical_hash

# Rows of a file are decompressed a few at a time: each may hold megabytes.
_ROWS_AT_ONCE = 32
_INDEX = pa.schema(
    [
        ("row", pa.int64()),
        ("offset", pa.int64()),
        ("num_bytes", pa.int64()),
        ("caption", pa.string()),
        ("label", pa.string()),
        ("reason", pa.string()),
    ]
)


class ParquetSource:
    """Files with a column of image bytes, plain or as Hugging Face's struct of bytes and path.

    Bytes inside a Parquet file cannot be pointed at, so they are unpacked beside each other into
    one spool file per file, in the work folder, until the shards are written.
    """

    kind = "parquet"

    def __init__(self, path: Path, files: Sequence[Path], config: IngestConfig) -> None:
        self._path = path
        self._files = list(files)
        self._config = config

    @property
    def uri(self) -> str:
        """Absolute path of the file or folder."""
        return str(self._path)

    @cached_property
    def signature(self) -> str:
        """Hash of the files' names, sizes and times."""
        found = [(self._name(file), file.stat()) for file in self._files]
        return canonical_hash([[name, s.st_size, s.st_mtime_ns] for name, s in found], 32)

    def items(self, work: Path, earlier: Mapping[str, Fetched]) -> list[ListedItem]:
        """List every row; rows without bytes, or with too many, are refused at once.

        Raises:
            BadInput: a file cannot be read.
        """
        return [item for file in self._files for item in self._of_file(file, work)]

    def _of_file(self, file: Path, work: Path) -> Iterator[ListedItem]:
        name = self._name(file)
        spool = work / f"parquet-{canonical_hash([name, self.signature])}.bin"
        index = spool.with_suffix(".index")
        if not index.exists():
            work.mkdir(parents=True, exist_ok=True)
            self._unpack(file, spool, index)
        for row in pq.read_table(index).to_pylist():
            yield ListedItem(
                key=f"{name}#{row['row']}",
                uri=f"{file}#{row['row']}",
                source=self._config.source_name or self._path.stem,
                path=str(spool),
                offset=row["offset"],
                num_bytes=row["num_bytes"],
                caption=row["caption"],
                label=row["label"],
                reason=row["reason"],
            )

    def _unpack(self, file: Path, spool: Path, index: Path) -> None:
        rows: list[dict[str, Any]] = []
        try:
            with pq.ParquetFile(file) as opened, spool.open("wb") as out:
                column = image_column(opened.schema_arrow)
                assert column is not None
                for batch in opened.iter_batches(_ROWS_AT_ONCE):
                    for row in batch.to_pylist():
                        rows.append(self._store(row, column, len(rows), out))
                out.flush()
                os.fsync(out.fileno())
        except (OSError, pa.ArrowException) as error:
            raise BadInput(f"{file} cannot be read: {error}") from error
        aside = index.with_suffix(".partial")
        pq.write_table(pa.Table.from_pylist(rows, schema=_INDEX), aside)
        aside.replace(index)

    def _store(self, row: dict[str, Any], column: str, number: int, out: Any) -> dict[str, Any]:
        data = row.pop(column)
        if isinstance(data, dict):
            data = data.get("bytes")
        words = words_of_row(row, self._config)
        reason = None
        if data is None:
            reason = MISSING_IMAGE
        elif len(data) > self._config.max_image_bytes:
            reason = TOO_MANY_BYTES
        offset = out.tell()
        if reason is None:
            out.write(data)
        return {
            "row": number,
            "offset": offset,
            "num_bytes": 0 if data is None else len(data),
            "caption": words.caption,
            "label": words.label,
            "reason": reason,
        }

    def _name(self, file: Path) -> str:
        return file.name if file == self._path else file.relative_to(self._path).as_posix()


def image_column(schema: pa.Schema) -> str | None:
    """Return the first column that holds bytes, or a struct of them; None if there is none."""
    for field in schema:
        if _is_bytes(field.type):
            return str(field.name)
        if pa.types.is_struct(field.type):
            inner = {
                field.type.field(i).name: field.type.field(i).type
                for i in range(field.type.num_fields)
            }
            if "bytes" in inner and _is_bytes(inner["bytes"]):
                return str(field.name)
    return None


def holds_images(file: Path) -> bool:
    """Say whether a Parquet file has image bytes, and is not a list of URLs.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        return image_column(pq.read_schema(file)) is not None
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"{file} cannot be read: {error}") from error


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
