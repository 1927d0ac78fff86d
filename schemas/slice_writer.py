"""Writing the data files of one slice of one table; runs in the driver or in an executor."""

import datetime as dt
import json
import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.contract import Contract
from schemas.errors import ContractViolation
from schemas.registry import contract
from schemas.store import Store

MAX_STATISTICS_TEXT = 32  # characters; longer bounds are cut, outwards
ROWS_PER_GROUP = 131_072
# Read for single rows: of each file, one group.
SMALL_GROUPS = {"sample_index": 8192}


@dataclass(frozen=True)
class WrittenFile:
    """One finished data file that no reader sees until it is committed."""

    path: str  # relative to the table, not URL-encoded
    size: int
    modified_ms: int
    num_rows: int
    statistics: str  # Delta's JSON


@dataclass
class SliceWriter:
    """Writes validated rows of one slice to one Parquet file. Picklable until the first write.

    `commit_id` stands in the file name, so that the files of a failed job can be found.
    """

    store: Store  # of the table
    name: str
    slice: Mapping[str, str]
    commit_id: str
    _writer: pq.ParquetWriter | None = field(default=None, repr=False)
    _file: str = field(default="", repr=False)
    _footers: list[pq.FileMetaData] = field(default_factory=list, repr=False)

    @property
    def contract(self) -> Contract:
        """The contract that every row must fulfil."""
        return contract(self.name)

    def write(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Validate rows and append them.

        Partition columns may be left out of `rows`; where they stand they must equal the slice.

        Raises:
            ContractViolation: rows break the contract or belong to another slice.
        """
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        full = complete(self.contract, table, self.slice)
        self.contract.validate(full)
        if self._writer is None:
            self._open()
        assert self._writer is not None
        stored = self.contract.stored_schema
        self._writer.write_table(
            full.select(stored.names).cast(stored),
            row_group_size=SMALL_GROUPS.get(self.name, ROWS_PER_GROUP),
        )

    def close(self) -> list[WrittenFile]:
        """Finish the file and return its facts; an empty list if nothing was written."""
        if self._writer is None:
            return []
        self._writer.close()
        self._writer = None
        metadata = self._footers.pop()
        return [
            WrittenFile(
                path=self._file,
                size=self.store.size(self._file),
                modified_ms=int(time.time() * 1000),
                num_rows=metadata.num_rows,
                statistics=json.dumps(delta_statistics(metadata, self.contract.stored_schema)),
            )
        ]

    def abort(self) -> None:
        """Remove what was written."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._file:
            self.store.remove(self._file)

    def _open(self) -> None:
        keys = self.contract.partition_by
        folder = "".join(f"{key}={self.slice[key]}/" for key in keys)
        self._file = f"{folder}part-{self.commit_id}-{uuid.uuid4().hex[:12]}.parquet"
        path, filesystem = self.store.full(self._file), self.store.filesystem
        if self.store.is_local:
            filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        self._writer = pq.ParquetWriter(
            path,
            self.contract.stored_schema,
            filesystem=filesystem,
            compression="zstd",
            compression_level=3,
            metadata_collector=self._footers,
        )


def complete(wanted: Contract, table: pa.Table, slice_: Mapping[str, str]) -> pa.Table:
    """Add the partition columns of a slice and put columns in the contract's order.

    Raises:
        ContractViolation: a column is missing, unknown, of another type, or of another slice.
    """
    for key in wanted.partition_by:
        if key not in table.schema.names:
            values = pa.repeat(pa.scalar(slice_[key], pa.string()), table.num_rows)
            table = table.append_column(key, values)
    missing = [n for n in wanted.names if n not in table.schema.names]
    unknown = [n for n in table.schema.names if n not in wanted.names]
    if missing or unknown:
        raise ContractViolation(
            f"{wanted.name}: columns differ from the contract; missing {missing}, unknown {unknown}"
        )
    # Nulls are left to the contract's own check, which names their rows.
    types = pa.schema([column.arrow_field.with_nullable(True) for column in wanted.columns])
    try:
        table = table.select(wanted.names).cast(types)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise ContractViolation(f"{wanted.name}: {error}") from error
    for key in wanted.partition_by:
        found = table[key].unique().to_pylist()
        if found not in ([], [slice_[key]]):
            raise ContractViolation(
                f"{wanted.name}: rows of {key} {found[:3]} in the slice {dict(slice_)}"
            )
    return table


def delta_statistics(metadata: pq.FileMetaData, schema: pa.Schema) -> dict[str, Any]:
    """Return Delta's file statistics from a Parquet footer; unknown bounds are left out."""
    minimum: dict[str, Any] = {}
    maximum: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    unbounded: set[str] = set()
    columns = set(schema.names)
    for group in (metadata.row_group(i) for i in range(metadata.num_row_groups)):
        for chunk in (group.column(i) for i in range(group.num_columns)):
            name, found = chunk.path_in_schema, chunk.statistics
            if name not in columns:
                continue
            if found is None or not found.has_null_count:
                unbounded.add(name)
                continue
            nulls[name] = nulls.get(name, 0) + found.null_count
            if found.has_min_max:
                low, high = found.min, found.max
                minimum[name] = low if name not in minimum else min(minimum[name], low)
                maximum[name] = high if name not in maximum else max(maximum[name], high)
            elif found.null_count != chunk.num_values:
                unbounded.add(name)
    bounds = {
        name: (_json_bound(minimum[name], upper=False), _json_bound(maximum[name], upper=True))
        for name in sorted(minimum)
        if name not in unbounded
    }
    bounds = {name: pair for name, pair in bounds.items() if None not in pair}
    return {
        "numRecords": metadata.num_rows,
        "minValues": {name: low for name, (low, _) in bounds.items()},
        "maxValues": {name: high for name, (_, high) in bounds.items()},
        "nullCount": {n: c for n, c in sorted(nulls.items()) if n not in unbounded},
    }


def _json_bound(value: Any, *, upper: bool) -> Any:
    """Return a bound as Delta's statistics want it, None where it has no such form."""
    if isinstance(value, str) and len(value) > MAX_STATISTICS_TEXT:
        return value[:MAX_STATISTICS_TEXT] + ("\U0010ffff" if upper else "")
    if isinstance(value, dt.datetime):
        # Statistics carry milliseconds: round outwards.
        moved = value.astimezone(dt.UTC) + dt.timedelta(milliseconds=1 if upper else 0)
        return f"{moved:%Y-%m-%dT%H:%M:%S}.{moved.microsecond // 1000:03d}Z"
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str) else None
