"""Steps from one root schema version to the next."""

from collections.abc import Callable

from deltalake import Schema

from schemas.registry import all_contracts
from schemas.store import Store

# Raised when a change to a contract or to the layout makes older roots unreadable, or leaves
# their logs behind what they hold.
ROOT_VERSION = 5


def add_new_columns(tables: Store) -> None:
    """Give every table the columns that its contract gained; they are null in the rows there are.

    Without it the rows can be read, but readers that go by the table's log miss the new columns.
    """
    for wanted in all_contracts().values():
        delta = tables.child(wanted.name).delta()
        if delta is None:
            continue
        known = {field.name for field in delta.schema().fields}
        fields = Schema.from_arrow(wanted.arrow_schema).fields
        new = [field for field in fields if field.name not in known]
        if new:
            delta.alter.add_columns(new)


# from version -> a step that rewrites the tables there to version + 1, safe to run again
MIGRATIONS: dict[int, Callable[[Store], None]] = {
    1: add_new_columns,
    2: add_new_columns,
    3: add_new_columns,
    4: add_new_columns,
}
