"""How contracts and job reports look in the orchestrator: schemas, figures, previews."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import pyarrow as pa

from pipelines.job import JobReport
from schemas.contract import Column, Contract
from schemas.registry import contract
from schemas.root import Root

NUM_PREVIEW_ROWS = 5
_MAX_CELL = 48


def described(*tables: str) -> str:
    """Say what one row of each table is, for an asset's description."""
    lines = [f"Table `{name}`: one row is {contract(name).one_row_is}." for name in tables]
    return "\n".join(lines)


def static_metadata(table: str) -> dict[str, Any]:
    """Return what is known of a table before it is written: its columns, key and partitions."""
    wanted = contract(table)
    return {
        "dagster/column_schema": column_schema(wanted),
        "table": table,
        "key": ", ".join(wanted.key),
        "contract_version": wanted.version,
    }


def column_schema(wanted: Contract) -> dg.TableSchema:
    """Return a contract's columns as the orchestrator shows them."""
    return dg.TableSchema(columns=[_column(column) for column in wanted.columns])


def _column(column: Column) -> dg.TableColumn:
    parts = [column.meaning]
    if column.unit:
        parts[0] += f" [{column.unit}]"
    if column.nullable:
        parts.append(f"null: {column.null_meaning}")
    limits = [(column.minimum, ">="), (column.maximum, "<=")]
    rules = [f"{sign} {value:g}" for value, sign in limits if value is not None]
    if column.allowed:
        rules.append("one of " + ", ".join(column.allowed))
    text = ". ".join(parts)
    return dg.TableColumn(
        column.name,
        str(column.type),
        description=text,
        constraints=dg.TableColumnConstraints(nullable=column.nullable, other=rules),
    )


def figures(report: JobReport) -> dict[str, Any]:
    """Return a job's report as metadata of a materialization."""
    found: dict[str, Any] = {
        "dagster/row_count": report.written + report.unchanged,
        "written": report.written,
        "unchanged": report.unchanged,
        "seconds": round(report.seconds, 3),
        "line": line_of(report),
    }
    if report.read and report.seconds > 0:
        found["per_second"] = round(report.read / report.seconds, 2)
    if report.rejected:
        found["rejected"] = dict(report.rejected)
    if report.versions:
        found["table_versions"] = dict(report.versions)
    return found


def line_of(report: JobReport) -> str:
    """Return a job's outcome in a few words, for the progress line."""
    done = report.written + report.unchanged
    parts = [f"{done:,} unchanged" if done and not report.written else f"{done:,} rows"]
    if report.rejected:
        reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(report.rejected.items()))
        parts.append(f"{report.num_rejected:,} rejected ({reasons})")
    return ", ".join(parts)


def preview(
    root: Root, table: str, where: Mapping[str, Any], columns: Sequence[str] | None = None
) -> dg.MarkdownMetadataValue:
    """Return the first rows of a slice as a Markdown table; vectors are left out."""
    wanted = contract(table)
    names = columns or [c.name for c in wanted.columns if not pa.types.is_list(c.type)]
    rows = root.tables.read(table, names, where).slice(0, NUM_PREVIEW_ROWS)
    return dg.MetadataValue.md(markdown_table(rows))


def markdown_table(rows: pa.Table) -> str:
    """Return rows as a Markdown table. Cells are untrusted: captions come from anywhere."""
    lines = [
        "| " + " | ".join(rows.column_names) + " |",
        "|" + "---|" * rows.num_columns,
    ]
    cells = [" | ".join(_cell(value) for value in row.values()) for row in rows.to_pylist()]
    lines += [f"| {line} |" for line in cells]
    return "\n".join(lines)


def plain_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return dictionaries of the same keys as a Markdown table, escaped."""
    return markdown_table(pa.Table.from_pylist([dict(row) for row in rows]))


def _cell(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = " ".join(str(value).split())
    if len(text) > _MAX_CELL:
        text = text[: _MAX_CELL - 1] + "…"
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]()|!#~" else c for c in escaped)


def picture(png: bytes, alternative: str) -> dg.MarkdownMetadataValue:
    """Return a small PNG as metadata that the web page shows inline."""
    return pictures_below([png], alternative)


def pictures_below(pngs: Sequence[bytes], alternative: str) -> dg.MarkdownMetadataValue:
    """Return small PNGs, one below the other."""
    data = [base64.b64encode(png).decode() for png in pngs]
    lines = [f"![{alternative}](data:image/png;base64,{text})" for text in data]
    return dg.MetadataValue.md("\n\n".join(lines))
