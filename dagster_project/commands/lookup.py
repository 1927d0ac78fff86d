"""Finding one sample by what a person has at hand, and text tables."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from schemas.errors import BadInput
from schemas.lookup import find
from schemas.root import Root

MIN_DIGITS = 6
_NUM_NAMED = 3


def samples_of(root: Root, sample_id: str) -> list[dict[str, Any]]:
    """Return the rows of `samples` that hold an image, one per batch, taken-down ones included.

    Args:
        root: where to look.
        sample_id: the whole SHA-256, or at least six of its first digits if they name one image.

    Raises:
        BadInput: too few digits, no such image, or more than one.
    """
    start = sample_id.lower()
    if len(start) < MIN_DIGITS or set(start) - set("0123456789abcdef"):
        raise BadInput(
            f"{sample_id!r} is no sample id; give {MIN_DIGITS} to 64 hex digits, for example from "
            "the report or of `sha256sum FILE`"
        )
    if not root.tables.exists("samples"):
        raise BadInput(f"{root.path} has no samples yet; run `ambient-omni run` first")
    snapshot = root.tables.open("samples")
    found = find(root.tables, start)
    distinct = sorted(set(found["sample_id"].to_pylist()))
    if not distinct:
        raise BadInput(f"no sample of {root.path} begins with {sample_id}; check the digits")
    if len(distinct) > 1:
        named = ", ".join(i[:16] for i in distinct[:_NUM_NAMED])
        raise BadInput(
            f"{len(distinct)} samples begin with {sample_id} ({named}); give more digits"
        )
    batches = {"ingest_batch": found["ingest_batch"].to_pylist()}
    places = found["sample_row"].to_pylist()
    rows: list[dict[str, Any]] = snapshot.read(
        where=batches | {"sample_id": distinct[0]},
        between={"sample_row": (min(places), max(places))},
        exclude=False,
    ).to_pylist()
    return rows


def text_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return rows as aligned columns of text; numbers to the right."""
    cells = [[_text(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    right = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]

    def line(values: Sequence[str]) -> str:
        padded = [
            v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), *(line(row) for row in cells)])


def count_by(rows: pa.Table, column: str) -> dict[str, int]:
    """Return how many rows each value of a column has, by value."""
    counts = rows.group_by(column).aggregate([([], "count_all")]).sort_by(column)
    return dict(zip(counts[column].to_pylist(), counts["count_all"].to_pylist(), strict=True))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def printable(text: str) -> str:
    """Return text without control characters: captions and file names come from anywhere."""
    return "".join(c if c.isprintable() else "?" for c in text)
