"""Reading columns of 1e8 rows in the order of sample_row, a million rows at a time."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.errors import TableMissing
from schemas.tables import Snapshot, Where

# Rows of one part, at least one row group.
_PART_ROWS = 1 << 20
# Arrays above this size are mapped from an unnamed file, which the page cache may drop.
_IN_MEMORY_BYTES = 256 << 20


@dataclass(frozen=True)
class _Group:
    """One row group of one data file, with the rows that it spans."""

    path: str
    number: int
    num_rows: int
    first: int
    last: int
    columns: tuple[str, ...]


class RowOrder:
    """The rows of some partitions of a table, excluded samples left out, ordered by sample_row.

    `Snapshot.read` sorts a table that it holds whole. Jobs write in the order of sample_row, so
    here the row groups are put in order instead, by their statistics; only where they overlap is
    the table read whole.

    Args:
        table: at a version.
        where: partition columns to a value or a list.
    """

    def __init__(self, table: Snapshot, where: Where) -> None:
        self._table, self._where = table, where
        self._groups = self._row_groups()
        self._gone = pa.array(sorted(table.excluded_sample_rows()), pa.int64())

    @property
    def max_rows(self) -> int:
        """How many rows there are, excluded ones included."""
        return sum(group.num_rows for group in self._groups)

    def parts(self, columns: Sequence[str], coded: Sequence[str] = ()) -> Iterator[pa.Table]:
        """Read sample_row and other columns, part by part.

        Args:
            columns: names, without partition columns.
            coded: those of them that come as dictionaries, having few distinct values.
        """
        names = [*dict.fromkeys(["sample_row", *columns])]
        if not _in_order(self._groups):
            yield self._table.read(names, self._where)
            return
        for groups in _runs(self._groups):
            with self._readable(groups[0].path):
                part = self._read(groups, names, coded)
            yield self._kept(_sorted(part))

    def _read(self, groups: list[_Group], names: list[str], coded: Sequence[str]) -> pa.Table:
        """Read row groups of one file; columns that the table gained since are null."""
        held = [name for name in names if name in groups[0].columns]
        dictionaries = [name for name in coded if name in held]
        with pq.ParquetFile(groups[0].path, read_dictionary=dictionaries) as file:
            part = file.read_row_groups([group.number for group in groups], columns=held)
        for name in names:
            if name not in held:
                kind = self._table.contract.column(name).type
                part = part.append_column(name, pa.nulls(part.num_rows, kind))
        return part

    @contextlib.contextmanager
    def _readable(self, path: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowInvalid) as error:
            name = self._table.contract.name
            raise TableMissing(
                f"{name} version {self._table.version} cannot be read, {path} is gone or damaged "
                f"({type(error).__name__}): restore it, or let a run that began on this version "
                "begin anew by removing its folder"
            ) from error

    def _row_groups(self) -> list[_Group]:
        groups: list[_Group] = []
        for path in self._table.file_uris(self._where):
            with self._readable(path):
                groups += _groups_of(path, pq.read_metadata(path))
        return sorted(groups, key=lambda group: group.first)

    def _kept(self, part: pa.Table) -> pa.Table:
        if not len(self._gone):
            return part
        return part.filter(pc.invert(pc.is_in(part["sample_row"], value_set=self._gone)))


class CodeColumn:
    """Gathers a column of few distinct texts as small numbers."""

    def __init__(self) -> None:
        self._codes: list[NDArray[np.int32]] = []
        self._number: dict[str, int] = {}
        self.num_missing = 0

    def add(self, column: pa.ChunkedArray) -> None:
        """Append values; missing ones are counted."""
        self.num_missing += column.null_count
        for chunk in column.chunks:
            coded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
            names = coded.dictionary.to_pylist()
            # A dictionary of a file also names what its rows do not hold, or no longer do.
            held = set(pc.unique(coded.indices).to_pylist())
            known = [
                self._number.setdefault(name, len(self._number)) if place in held else 0
                for place, name in enumerate(names)
            ]
            place = coded.indices.fill_null(0).to_numpy(zero_copy_only=False)
            self._codes.append(np.array(known or [0], np.int32)[place])

    def finish(
        self, pinned: Sequence[str] = ()
    ) -> tuple[NDArray[np.unsignedinteger], tuple[str, ...]]:
        """Return the number of each value, in the smallest type, and the names by number, sorted.

        Args:
            pinned: names that come first, in this order, also where no value has them any more.
        """
        names = [*pinned, *sorted(self._number.keys() - set(pinned))]
        place = np.zeros(max(1, len(names)), np.min_scalar_type(max(0, len(names) - 1)))
        for number, name in enumerate(names):
            if name in self._number:
                place[self._number[name]] = number
        codes = [place[part] for part in self._codes]
        return np.concatenate([np.empty(0, place.dtype), *codes]), tuple(names)


class Texts:
    """Captions of N samples in two mapped files; none of them is a Python string until asked for.

    Args:
        folder: where the unnamed files lie.
    """

    def __init__(self, folder: Path) -> None:
        self._bytes, self._offsets = scratch_file(folder), scratch_file(folder)
        self._end = 0
        self._num = 0

    def add(self, column: pa.ChunkedArray) -> None:
        """Append values, none of them null."""
        for chunk in column.chunks:
            text = chunk.cast(pa.large_string())
            if not len(text):
                continue
            offsets = np.frombuffer(text.buffers()[1], np.int64)[text.offset :][: len(text) + 1]
            begin, end = int(offsets[0]), int(offsets[-1])
            if end > begin:
                self._bytes.write(memoryview(text.buffers()[2])[begin:end])
            self._offsets.write((offsets[1:] - begin + self._end).tobytes())
            self._end += end - begin
            self._num += len(text)

    def __len__(self) -> int:
        return self._num

    def take(self, index: NDArray[np.integer]) -> tuple[str, ...]:
        """Return the texts of some samples."""
        ends, data = _mapped(self._offsets, np.int64), _mapped(self._bytes, np.uint8)
        begins = np.where(index > 0, ends[np.maximum(index, 1) - 1], 0)
        return tuple(
            data[begin:end].tobytes().decode()
            for begin, end in zip(begins.tolist(), ends[index].tolist(), strict=True)
        )


def scratch_file(folder: Path) -> BinaryIO:
    """Return a file without a name, which vanishes with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    return cast(BinaryIO, tempfile.TemporaryFile(dir=folder))


def scratch_bytes(shape: tuple[int, ...], folder: Path) -> NDArray[np.uint8]:
    """Return an array to fill: in memory if it is small, else mapped from a file without a name."""
    if np.prod(shape) <= _IN_MEMORY_BYTES:
        return np.empty(shape, np.uint8)
    return np.memmap(scratch_file(folder), np.uint8, "w+", shape=shape)


def _mapped(file: BinaryIO, kind: type[np.generic]) -> NDArray[np.generic]:
    file.flush()
    if not file.seek(0, 2):
        return np.empty(0, kind)
    return np.memmap(file, kind, "r")


def _groups_of(path: str, metadata: pq.FileMetaData) -> Iterator[_Group]:
    columns = tuple(metadata.schema.names)
    column = columns.index("sample_row")
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        found = group.column(column).statistics
        if not group.num_rows:
            continue
        known = found is not None and found.has_min_max
        first, last = (found.min, found.max) if known else (0, 1 << 62)
        yield _Group(path, number, group.num_rows, first, last, columns)


def _in_order(groups: Sequence[_Group]) -> bool:
    return all(a.last < b.first for a, b in itertools.pairwise(groups))


def _runs(groups: Sequence[_Group]) -> Iterator[list[_Group]]:
    """Join neighbouring row groups of one file to parts."""
    run: list[_Group] = []
    for group in groups:
        full = sum(g.num_rows for g in run) + group.num_rows > _PART_ROWS
        if run and (full or group.path != run[0].path):
            yield run
            run = []
        run.append(group)
    if run:
        yield run


def _sorted(part: pa.Table) -> pa.Table:
    rows = part["sample_row"].to_numpy()
    return part if (rows[1:] > rows[:-1]).all() else part.sort_by("sample_row")
