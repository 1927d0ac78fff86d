"""Scores that others made, as slices of `scores/<pack>` under a version of their own."""

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.batches import BatchFacts, open_batch
from pipelines.imports.files import Listing, read_listing
from pipelines.imports.matching import Matches, match
from pipelines.job import JobReport
from pipelines.measures import scores_slice
from pipelines.slices import Target
from pipelines.spark import SparkSettings
from schemas.contract import Contract
from schemas.errors import BadInput
from schemas.ids import canonical_json
from schemas.registry import contract
from schemas.root import Root
from schemas.scores import EXTERNAL, EXTERNAL_COLUMN, PACKS

JOB = "import-scores"
NOT_FINITE = "not_finite"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class ImportedFile:
    """A file of measures, and how its rows name images; see `files.read_listing`."""

    path: Path
    key_column: str | None = None
    key_kind: str | None = None

    def read(self) -> Listing:
        """Read it."""
        return read_listing(self.path, self.key_column, self.key_kind)


def import_scores(
    root: Root,
    batch: str,
    file: ImportedFile,
    columns: Sequence[str] = (),
    *,
    name: str | None = None,
    pack: str = EXTERNAL,
    settings: SparkSettings | None = None,
    dry_run: bool = False,
) -> JobReport:
    """Write columns of a file as scores of a batch; the version is the hash of the file.

    In the pack `external` each column is a measure of its own, `<name>-<hash>`. In one of our
    packs the columns must be called as the pack's are, and are one slice, `imported-<hash>`. A
    sample that the file does not speak of, or calls no finite number, gets null with the reason.

    Args:
        root: where the tables are.
        batch: whose samples are meant.
        file: what to read.
        columns: which; none named: all that hold numbers, or that the pack has.
        name: of the measure, where one column is imported; by default the column's.
        pack: `external`, or one of the packs of scores.
        settings: how to reach Spark, which only keys by pixels need.
        dry_run: match and count, write nothing.

    Raises:
        BadInput: a column or key is missing, no row fits, or rows of one image differ.
        TableMissing: the batch was never ingested.
        ContractViolation: a score lies outside its column's range; nothing was written.
    """
    began = time.monotonic()
    with root.lock(JOB, batch):
        facts, listing = open_batch(root, batch), file.read()
        wanted = _wanted(listing, columns, pack)
        matches = match(root, facts, listing, settings)
        slices = _slices(listing, wanted, pack, name)
        rejected, current = Counter(matches.rejected), 0
        for version, part in slices.items():
            table, bad = _rows(listing, matches, part, pack, version)
            rejected[NOT_FINITE] += bad
            target = target_of(facts, listing, pack, version)
            current += target.is_current(root)
            if not dry_run:
                _commit(root, target, table)
    versions = ", ".join(slices)
    return JobReport(
        JOB,
        batch,
        read=len(facts),
        written=0 if dry_run or current == len(slices) else len(facts),
        unchanged=len(facts) if current == len(slices) else 0,
        rejected=dict(+rejected),
        versions=root.tables.versions([f"scores/{pack}"]),
        seconds=time.monotonic() - began,
        notes=(matches.note(), f"scores/{pack}: scorer_version {versions}"),
    )


def target_of(facts: BatchFacts, listing: Listing, pack: str, version: str) -> Target:
    """Return the slice that a file fills, and what it is made from."""
    inputs = {**facts.inputs, "file": listing.digest, "keys": listing.key_kind}
    return Target(f"scores/{pack}", scores_slice(version, facts.batch), inputs)


def measure_version(name: str, digest: str) -> str:
    """Return the scorer_version of an imported measure.

    Raises:
        BadInput: the name cannot stand in one.
    """
    if not _NAME.fullmatch(name):
        raise BadInput(
            f"{name!r} cannot name a measure; take letters, digits, '_', '.', '-', up to 64 "
            "characters (--name)"
        )
    return f"{name}-{digest}"


def write_measure(
    root: Root, facts: BatchFacts, listing: Listing, matches: Matches, column: str, version: str
) -> None:
    """Write one column of a file as an external measure of a batch."""
    table, _ = _rows(listing, matches, {EXTERNAL_COLUMN: column}, EXTERNAL, version)
    _commit(root, target_of(facts, listing, EXTERNAL, version), table)


def _commit(root: Root, target: Target, table: pa.Table) -> None:
    root.tables.commit(
        target.table,
        table,
        slice=target.slice,
        inputs=target.inputs,
        job=JOB,
        versions=root.tables.versions(["samples"]),
    )


def _wanted(listing: Listing, columns: Sequence[str], pack: str) -> list[str]:
    if pack not in PACKS:
        raise BadInput(f"there is no pack {pack!r}; there are {sorted(PACKS)}")
    names = [column.name for column in PACKS[pack]]
    if columns:
        wanted = list(dict.fromkeys(columns))
    elif pack == EXTERNAL:
        wanted = [n for n, values in listing.columns.items() if _is_number(values.type)]
    else:
        wanted = [n for n in listing.columns if n in names]
    missing = [n for n in wanted if n not in listing.columns]
    foreign = [n for n in wanted if pack != EXTERNAL and n not in names]
    if missing or foreign or not wanted:
        raise BadInput(
            f"{listing.path} has columns {sorted(listing.columns)}; "
            + (f"{missing} are not among them" if missing else "")
            + (f"{foreign} are none of {pack}, which has {names}" if foreign else "")
            + ("" if wanted else f"none is a score of {pack}")
        )
    return wanted


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind))


def _slices(
    listing: Listing, wanted: Sequence[str], pack: str, name: str | None
) -> dict[str, dict[str, str]]:
    """Return, by scorer_version, the columns of the table and where each comes from."""
    if pack != EXTERNAL:
        return {measure_version(name or "imported", listing.digest): {n: n for n in wanted}}
    if name is not None and len(wanted) > 1:
        raise BadInput(f"one name for {len(wanted)} measures {list(wanted)}; name one column")
    return {measure_version(name or n, listing.digest): {EXTERNAL_COLUMN: n} for n in wanted}


def _rows(
    listing: Listing, matches: Matches, part: dict[str, str], pack: str, version: str
) -> tuple[pa.Table, int]:
    """Return rows of the table, and how many numbers of the file are none."""
    wanted, count = contract(f"scores/{pack}"), len(matches.sample_rows)
    columns: dict[str, NDArray[np.float64]] = {}
    reasons: list[list[str]] = [[] for _ in range(count)]
    num_bad = 0
    for column in PACKS[pack]:
        values = np.full(count, np.nan)
        why = np.full(count, "not imported", object)
        if column.name in part:
            values, why, bad = _values(listing, matches, part[column.name])
            num_bad += bad
        columns[column.name] = values
        for place in np.flatnonzero(np.isnan(values)).tolist():
            reasons[place].append(f"{column.name}: {why[place]}")
    return _table(wanted, matches, columns, reasons, {n: version for n in part}), num_bad


def _values(
    listing: Listing, matches: Matches, name: str
) -> tuple[NDArray[np.float64], NDArray[np.object_], int]:
    numbers = listing.numbers(name)
    values = np.where(matches.found, numbers[matches.file_rows], np.nan)
    silent = matches.found & listing.nulls(name)[matches.file_rows]
    bad = matches.found & ~silent & ~np.isfinite(values)
    why = np.where(matches.found, "not finite in the file", "not in the file").astype(object)
    why[silent] = "null in the file"
    values[bad] = np.nan
    return values, why, int(bad.sum())


def _table(
    wanted: Contract,
    matches: Matches,
    columns: dict[str, NDArray[np.float64]],
    reasons: list[list[str]],
    versions: dict[str, str],
) -> pa.Table:
    count = len(matches.sample_rows)
    table: dict[str, object] = {"sample_row": matches.sample_rows}
    for name, values in columns.items():
        table[name] = pa.array(values, pa.float64(), mask=np.isnan(values))
    if "scorer_versions" in wanted.names:
        table["scorer_versions"] = pa.repeat(pa.scalar(canonical_json(versions)), count)
    table["unscored_reason"] = pa.array(["; ".join(r) or None for r in reasons], pa.string())
    return pa.table(table)
