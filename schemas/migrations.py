"""Steps from one root schema version to the next."""

from collections.abc import Callable
from pathlib import Path

from deltalake import DeltaTable, Schema

from schemas.registry import all_contracts

# Raised when a change to a contract or to the layout makes older roots unreadable, or leaves
# their logs behind what they hold.
ROOT_VERSION = 2


def add_new_columns(root: Path) -> None:
    """Give every table the columns that its contract gained; they are null in the rows there are.

    Without it the rows can be read, but readers that go by the table's log miss the new columns.
    """
    for wanted in all_contracts().values():
        folder = str(root / "tables" / wanted.name)
        if not DeltaTable.is_deltatable(folder):
            continue
        delta = DeltaTable(folder)
        known = {field.name for field in delta.schema().fields}
        fields = Schema.from_arrow(wanted.arrow_schema).fields
        new = [field for field in fields if field.name not in known]
        if new:
            delta.alter.add_columns(new)


# from version -> a step that rewrites the root at that path to version + 1, safe to run again
MIGRATIONS: dict[int, Callable[[Path], None]] = {1: add_new_columns}
