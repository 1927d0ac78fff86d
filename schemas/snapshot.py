"""Reading a table at one version, with take-downs applied."""

import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

# With the package, although it brings in pandas: threads that import it first, several at once
# and by way of pyarrow, find half of it.
import pyarrow.dataset as ds
from deltalake import DeltaTable

from schemas.contract import Contract
from schemas.errors import TableDamaged
from schemas.store import Store, one_line

if TYPE_CHECKING:
    from schemas.take_downs import TakeDowns

# 15 hex digits are 60 bits: a Delta transaction version is a signed 64-bit integer.
FINGERPRINT_LENGTH = 15

Where = Mapping[str, Any]


class Snapshot:
    """One table at one version. Rows of excluded samples are left out by every read."""

    def __init__(
        self, wanted: Contract, store: Store, delta: DeltaTable, take_downs: "TakeDowns | None"
    ) -> None:
        self.contract = wanted
        self._store = store
        self._delta = delta
        self._take_downs = take_downs

    @property
    def version(self) -> int:
        """The version that is read, whatever is committed meanwhile."""
        return int(self._delta.version())

    def read(
        self,
        columns: Sequence[str] | None = None,
        where: Where | None = None,
        *,
        between: Mapping[str, tuple[Any, Any]] | None = None,
        exclude: bool = True,
    ) -> pa.Table:
        """Read rows, in the order of their key.

        Args:
            columns: names to return; all by default.
            where: column to a value, or to a list of values; joined by `and`.
            between: column to its lowest and highest value, both included; joined by `and`.
            exclude: leave out samples that were taken down (only the take-down itself sets False).

        Returns:
            A table of the contract's types.
        """
        names = list(columns) if columns is not None else self.contract.names
        rule = _and(_expression(self.contract, where), _ranges(between))
        if exclude:
            rule = _and(rule, self._exclusion_rule())
        wanted = [*dict.fromkeys([*names, *self.contract.key])]
        try:
            table = self._dataset(where).to_table(columns=wanted, filter=rule)
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise TableDamaged(
                f"{self.contract.name} at version {self.version}: {one_line(error)}; "
                "a vacuum removes what old versions held, else see "
                "`python -m schemas check --root DIR`"
            ) from error
        schema = pa.schema([self.contract.arrow_schema.field(n) for n in wanted])
        table = table.cast(schema)
        return table.sort_by(key_order(self.contract)).select(names)

    def file_uris(self, where: Where | None = None) -> list[str]:
        """Return the data files of the partitions named by `where`.

        Absolute paths, or `s3://` addresses; `schemas.store.parquet_of` opens both.
        """
        filters = [
            (k, "in", [*v]) if _is_list(v) else (k, "=", v) for k, v in (where or {}).items()
        ]
        return [_plain_path(uri) for uri in self._delta.file_uris(filters or None)]

    @property
    def delta(self) -> DeltaTable:
        """The Delta table at this version, for upkeep (`schemas.maintenance`)."""
        return self._delta

    def fingerprint(self, slice: Mapping[str, str]) -> str | None:
        """Return what a slice was made from, None if it was never committed."""
        found = self._delta.transaction_version(slice_key(self.contract, slice))
        return None if found is None else f"{found:0{FINGERPRINT_LENGTH}x}"

    def excluded_sample_rows(self) -> frozenset[int]:
        """Return the sample rows that were taken down, for readers that go past `read`."""
        return self._take_downs.sample_rows if self._take_downs is not None else frozenset()

    def _dataset(self, where: Where | None) -> ds.Dataset:
        # Not delta-rs's own dataset: its guarantees from file statistics make pyarrow's `is_in`
        # wrong where a bound is unknown. Parquet footers prune row groups just as well.
        parts = {k: v for k, v in (where or {}).items() if k in self.contract.partition_by}
        hive = pa.schema([self.contract.arrow_schema.field(k) for k in self.contract.partition_by])
        return ds.dataset(
            [uri.removeprefix("s3://") for uri in self.file_uris(parts)],
            schema=self.contract.arrow_schema,
            format="parquet",
            filesystem=self._store.filesystem,
            partitioning=ds.partitioning(hive, flavor="hive"),
            partition_base_dir=self._store.full(),
        )

    def _exclusion_rule(self) -> ds.Expression | None:
        if self._take_downs is None or "sample_row" not in self.contract.names:
            return None
        ids = self._take_downs.sample_ids
        if not ids:
            return None
        if "sample_id" in self.contract.names:
            gone = pa.array(sorted(ids))
            rule = ~ds.field("sample_id").isin(gone)
            # An attempt without bytes has no sample_id and stays visible.
            return rule | ds.field("sample_id").is_null()
        rows = pa.array(sorted(self._take_downs.sample_rows), type=pa.int64())
        return ~ds.field("sample_row").isin(rows) if len(rows) else None


def slice_key(wanted: Contract, slice: Mapping[str, str]) -> str:
    """Return the name that a slice's fingerprint stands under in the log."""
    if set(slice) != set(wanted.partition_by):
        raise ValueError(f"{wanted.name} wants a value for each of {wanted.partition_by}: {slice}")
    return f"{wanted.name}:" + ",".join(f"{k}={slice[k]}" for k in wanted.partition_by)


def slice_paths(delta: DeltaTable) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Yield each slice of a version with its data files, relative to the table."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for row in pa.table(delta.get_add_actions(flatten=True)).to_pylist():
        key = tuple(
            (name.removeprefix("partition."), value)
            for name, value in row.items()
            if name.startswith("partition.")
        )
        found.setdefault(key, []).append(urllib.parse.unquote(row["path"]))
    for key, files in found.items():
        yield dict(key), sorted(files)


def live_paths(delta: DeltaTable) -> set[str]:
    """Return the data files of a version, relative to the table, not URL-encoded."""
    actions = pa.table(delta.get_add_actions(flatten=True))
    return {urllib.parse.unquote(path) for path in actions["path"].to_pylist()}


def key_order(wanted: Contract) -> list[tuple[str, str]]:
    """Return the order of rows: by sample_row where there is one, then by the rest of the key."""
    first = [k for k in wanted.key if k == "sample_row"]
    rest = [k for k in wanted.key if k != "sample_row"]
    return [(k, "ascending") for k in first + rest]


def _expression(wanted: Contract, where: Where | None) -> ds.Expression | None:
    rule: ds.Expression | None = None
    for name, value in (where or {}).items():
        if _is_list(value):
            part = ds.field(name).isin(pa.array(list(value), type=wanted.column(name).type))
        else:
            part = ds.field(name) == pc.scalar(value)
        rule = _and(rule, part)
    return rule


def _ranges(between: Mapping[str, tuple[Any, Any]] | None) -> ds.Expression | None:
    rule: ds.Expression | None = None
    for name, (low, high) in (between or {}).items():
        rule = _and(rule, (ds.field(name) >= low) & (ds.field(name) <= high))
    return rule


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | set | frozenset)


def _and(left: ds.Expression | None, right: ds.Expression | None) -> ds.Expression | None:
    if left is None or right is None:
        return right if left is None else left
    return left & right


def _plain_path(uri: str) -> str:
    return urllib.parse.unquote(uri.removeprefix("file://"))
