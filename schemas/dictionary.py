"""The data dictionary and the frozen dumps, both generated from the contracts."""

import json
from pathlib import Path
from typing import Any

from schemas.contract import Column, Contract
from schemas.registry import all_contracts

FROZEN = Path(__file__).parent / "frozen"


def frozen_dump(contract: Contract) -> str:
    """Return the contract as JSON text, one fact a line, so that a change shows as a diff."""
    dump = {
        "name": contract.name,
        "version": contract.version,
        "one_row_is": contract.one_row_is,
        "key": list(contract.key),
        "partition_by": list(contract.partition_by),
        "constraints": [constraint.rule for constraint in contract.constraints],
        "columns": [_facts(column) for column in contract.columns],
    }
    return json.dumps(dump, indent=1, ensure_ascii=False) + "\n"


def frozen_path(contract: Contract, folder: Path = FROZEN) -> Path:
    """Return where the dump of a contract is kept."""
    return folder / f"{contract.name.replace('/', '__')}.json"


def freeze(folder: Path = FROZEN) -> list[Path]:
    """Write the dumps of all contracts and remove those of tables that are gone."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {frozen_path(c, folder): frozen_dump(c) for c in all_contracts().values()}
    for stale in set(folder.glob("*.json")) - set(wanted):
        stale.unlink()
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    return sorted(wanted)


def data_dictionary() -> str:
    """Return the data dictionary of all tables as Markdown."""
    parts = [
        "# Data dictionary",
        "Generated from the contracts in `schemas/` by `python -m schemas dictionary`; "
        "do not edit. Floats are finite unless null; a missing row is an error, never a default.",
    ]
    parts += [_table(contract) for contract in all_contracts().values()]
    return "\n\n".join(parts) + "\n"


def _facts(column: Column) -> dict[str, Any]:
    facts = {
        "name": column.name,
        "type": str(column.type),
        "nullable": column.nullable,
        "meaning": column.meaning,
        "unit": column.unit,
        "null_meaning": column.null_meaning,
        "minimum": column.minimum,
        "maximum": column.maximum,
        "allowed": list(column.allowed) if column.allowed else None,
        "pattern": column.pattern,
    }
    return {k: v for k, v in facts.items() if v not in (None, "")}


def _table(contract: Contract) -> str:
    lines = [
        f"## `{contract.name}` (version {contract.version})",
        f"One row is {contract.one_row_is}. Key: {_names(contract.key)}."
        + (f" Partitioned by {_names(contract.partition_by)}." if contract.partition_by else ""),
    ]
    lines += [f"Constraint: {c.rule}." for c in contract.constraints]
    rows = [
        "| column | type | unit | meaning | null means | allowed |",
        "|---|---|---|---|---|---|",
        *(_row(column) for column in contract.columns),
    ]
    return "\n\n".join([*lines, "\n".join(rows)])


def _row(column: Column) -> str:
    cells = [
        f"`{column.name}`",
        str(column.type),
        column.unit,
        column.meaning,
        column.null_meaning if column.nullable else "never null",
        _allowed(column),
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _allowed(column: Column) -> str:
    if column.allowed:
        return ", ".join(column.allowed)
    low, high = column.minimum, column.maximum
    if low is None and high is None:
        return ""
    return f"{'' if low is None else f'{low:g}'} .. {'' if high is None else f'{high:g}'}".strip()


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)
