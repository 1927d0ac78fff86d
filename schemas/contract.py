"""What a table promises: columns with meaning and unit, key, partitions, constraints."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import ContractViolation

NUM_ROWS_NAMED = 3
PARTITION_VALUE_PATTERN = r"^[A-Za-z0-9_.\-]{1,128}$"


@dataclass(frozen=True)
class Column:
    """One column: its Arrow type and what it means.

    `minimum` and `maximum` are inclusive. Floats are finite unless null: NaN and infinity
    never enter a table.
    """

    name: str
    type: pa.DataType
    meaning: str
    unit: str = ""
    nullable: bool = False
    null_meaning: str = ""
    minimum: float | None = None
    maximum: float | None = None
    allowed: tuple[str, ...] | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        if self.nullable != bool(self.null_meaning):
            raise ValueError(f"column {self.name}: nullable and null_meaning go together")

    @property
    def arrow_field(self) -> pa.Field:
        """The column as an Arrow field."""
        return pa.field(self.name, self.type, nullable=self.nullable)


@dataclass(frozen=True)
class RowConstraint:
    """A rule over several columns; `violations` maps a table to a boolean mask of bad rows."""

    rule: str
    violations: Callable[[pa.Table], pa.ChunkedArray]


@dataclass(frozen=True)
class Contract:
    """The contract of one table."""

    name: str
    version: int
    one_row_is: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    partition_by: tuple[str, ...] = ()
    constraints: tuple[RowConstraint, ...] = field(default=())

    def __post_init__(self) -> None:
        names = {column.name for column in self.columns}
        missing = (set(self.key) | set(self.partition_by)) - names
        if missing:
            raise ValueError(f"contract {self.name}: no column {sorted(missing)}")

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        """Columns in their order; the only place where their types are declared."""
        return pa.schema([column.arrow_field for column in self.columns])

    @cached_property
    def stored_schema(self) -> pa.Schema:
        """Columns inside the data files: all but the partition columns."""
        return pa.schema(
            [c.arrow_field for c in self.columns if c.name not in set(self.partition_by)]
        )

    def column(self, name: str) -> Column:
        """Return the column of that name; KeyError if there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"{self.name} has no column {name!r}")

    def empty(self) -> pa.Table:
        """Return a table of no rows."""
        return self.arrow_schema.empty_table()

    def table(self, data: dict[str, Any] | list[dict[str, Any]]) -> pa.Table:
        """Build a table of this schema from columns or from rows and validate it."""
        if isinstance(data, dict):
            table = pa.table(
                [pa.array(data[n], type=self.arrow_schema.field(n).type) for n in self.names],
                schema=self.arrow_schema,
            )
        else:
            table = pa.Table.from_pylist(data, schema=self.arrow_schema)
        self.validate(table)
        return table

    @property
    def names(self) -> list[str]:
        """Column names in order."""
        return [column.name for column in self.columns]

    def validate(self, table: pa.Table, *, unique: bool = True) -> None:
        """Check rows against the contract.

        Args:
            table: rows with all columns, partition columns included.
            unique: also check that no two rows share a key.

        Raises:
            ContractViolation: names the first broken rule, its column, and up to three rows.
        """
        self._check_schema(table.schema)
        for column in self.columns:
            self._check_column(table, column)
        for constraint in self.constraints:
            self._refuse(table, constraint.violations(table), constraint.rule)
        if unique:
            self._check_unique(table)

    def _check_schema(self, schema: pa.Schema) -> None:
        have, want = set(schema.names), set(self.names)
        if have != want:
            raise ContractViolation(
                f"{self.name}: columns differ from the contract; missing {sorted(want - have)}, "
                f"unknown {sorted(have - want)}"
            )
        for column in self.columns:
            found = schema.field(column.name).type
            if found != column.type:
                raise ContractViolation(
                    f"{self.name}.{column.name} is {found}, the contract says {column.type}"
                )

    def _check_column(self, table: pa.Table, column: Column) -> None:
        values = table[column.name]
        where = column.name
        if not column.nullable:
            self._refuse(table, pc.is_null(values), f"{where} must not be null")
        if pa.types.is_list(column.type):
            self._check_list(table, column, values)
            return
        if pa.types.is_floating(column.type):
            self._refuse(table, pc.invert(pc.is_finite(values)), f"{where} must be finite or null")
        if column.minimum is not None:
            self._refuse(table, pc.less(values, column.minimum), f"{where} < {column.minimum:g}")
        if column.maximum is not None:
            self._refuse(table, pc.greater(values, column.maximum), f"{where} > {column.maximum:g}")
        if column.allowed is not None:
            known = pc.is_in(values, pa.array([*column.allowed], type=column.type))
            bad = pc.and_(pc.is_valid(values), pc.invert(known))
            self._refuse(table, bad, f"{where} is not one of {list(column.allowed)}")
        pattern = column.pattern
        if pattern is None and column.name in self.partition_by:
            pattern = PARTITION_VALUE_PATTERN
        if pattern is not None:
            bad = pc.invert(pc.match_substring_regex(values, pattern))
            self._refuse(table, bad, f"{where} does not match {pattern}")

    def _check_list(self, table: pa.Table, column: Column, values: pa.ChunkedArray) -> None:
        inner = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        elements = inner.flatten()
        bad = pc.is_null(elements)
        if pa.types.is_floating(elements.type):
            bad = pc.or_(bad, pc.fill_null(pc.invert(pc.is_finite(elements)), True))
        if column.minimum is not None:
            bad = pc.or_(bad, pc.fill_null(pc.less(elements, column.minimum), False))
        if column.maximum is not None:
            bad = pc.or_(bad, pc.fill_null(pc.greater(elements, column.maximum), False))
        parents = pc.list_parent_indices(inner).filter(bad)
        if len(parents):
            rows = parents.unique().slice(0, NUM_ROWS_NAMED).to_pylist()
            raise ContractViolation(
                f"{self.name}: {column.name} holds a null, non-finite or out-of-range element in "
                f"{len(parents.unique())} rows, first {self._name_rows(table, rows)}"
            )

    def _check_unique(self, table: pa.Table) -> None:
        keys = table.select(list(self.key)).group_by(list(self.key)).aggregate([([], "count_all")])
        if keys.num_rows == table.num_rows:
            return
        doubled = keys.filter(pc.greater(keys["count_all"], 1)).drop_columns(["count_all"])
        named = doubled.slice(0, NUM_ROWS_NAMED).to_pylist()
        raise ContractViolation(
            f"{self.name}: {doubled.num_rows} keys {self.key} stand more than once, first {named}"
        )

    def _refuse(self, table: pa.Table, bad: pa.ChunkedArray, rule: str) -> None:
        mask = pc.fill_null(bad, False)
        count = pc.sum(mask).as_py() or 0
        if count:
            rows = pc.indices_nonzero(mask).slice(0, NUM_ROWS_NAMED).to_pylist()
            raise ContractViolation(
                f"{self.name}: {rule} in {count} of {table.num_rows} rows, "
                f"first {self._name_rows(table, rows)}"
            )

    def _name_rows(self, table: pa.Table, rows: Sequence[int]) -> list[dict[str, Any]]:
        return [{k: table[k][i].as_py() for k in self.key} for i in rows]
