"""What is missing of a batch's scores: which scorers have to run, what an earlier slice gives."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.scorers.base import Pack, Scores
from pipelines.slices import Target
from schemas.contract import Contract
from schemas.ids import canonical_json
from schemas.registry import contract
from schemas.root import Root

VERSIONS_COLUMN = "scorer_versions"


@dataclass(frozen=True)
class Earlier:
    """A slice of a pack under another version, some of whose columns still stand."""

    root: Path
    table: str
    table_version: int
    slice: tuple[tuple[str, str], ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class PackPlan:
    """What a run does for one pack of one batch.

    Attributes:
        pack: name of the pack.
        version: version of the slice that is written; an executor must have the same.
        names: scorers to run.
        skipped: why others cannot run, by name.
        earlier: where the columns of the remaining scorers come from.
    """

    pack: str
    version: str
    names: tuple[str, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    earlier: Earlier | None = None

    @property
    def table(self) -> str:
        """Table that is written."""
        return f"scores/{self.pack}"

    def notes(self) -> list[str]:
        """Return what a person should know: which columns are not measured anew."""
        if self.earlier is None:
            return []
        measured, kept = ", ".join(self.names) or "nothing", ", ".join(self.earlier.names)
        return [f"{self.table}: {measured} measured, {kept} kept"]


def plan_pack(root: Root, pack: Pack, target: Target, sample_rows_N: NDArray[np.int64]) -> PackPlan:
    """Return what has to run so that the target's slice can be written."""
    earlier = _best_earlier(root, pack, target, sample_rows_N)
    kept = set(earlier.names if earlier is not None else ())
    names = tuple(n for n in pack.scorer_versions if n not in kept)
    return PackPlan(pack.name, pack.version, names, dict(pack.skipped), earlier)


def _best_earlier(
    root: Root, pack: Pack, target: Target, sample_rows_N: NDArray[np.int64]
) -> Earlier | None:
    """Return the slice of the same images that shares most scorers' versions with the pack."""
    table = target.table
    if VERSIONS_COLUMN not in contract(table).names or not root.tables.exists(table):
        return None
    snapshot = root.tables.open(table)
    batch = {"ingest_batch": target.slice["ingest_batch"]}
    found = snapshot.read(["sample_row", "scorer_version", VERSIONS_COLUMN], batch)
    best: Earlier | None = None
    for version in found["scorer_version"].unique().to_pylist():
        slice_ = {**batch, "scorer_version": version}
        rows = found.filter(pa.compute.equal(found["scorer_version"], version))
        whole = np.isin(sample_rows_N, rows["sample_row"].to_numpy()).all()
        # Other images under the same names, or not all of them: nothing can be kept.
        if not root.tables.is_current(table, slice_, target.inputs) or not whole:
            continue
        had: dict[str, str] = json.loads(rows[VERSIONS_COLUMN][0].as_py())
        names = tuple(n for n, v in pack.scorer_versions.items() if had.get(n) == v)
        if len(names) > len(best.names if best is not None else ()):
            best = Earlier(root.path, table, snapshot.version, tuple(slice_.items()), names)
    return best


def kept_scores(earlier: Earlier, sample_rows_N: NDArray[np.int64]) -> Scores:
    """Return the columns of an earlier slice that still stand, in the order of the samples."""
    table = _earlier_rows(earlier)
    places = np.searchsorted(table["sample_row"].to_numpy(), sample_rows_N)
    rows = table.take(pa.array(places))
    columns = {
        name: rows[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in earlier.names
    }
    reasons = [parsed_reasons(text, earlier.names) for text in rows["unscored_reason"].to_pylist()]
    return Scores(columns, reasons)


@lru_cache(maxsize=2)
def _earlier_rows(earlier: Earlier) -> pa.Table:
    # One read a worker: the tasks of a batch follow one another in it.
    snapshot = Root(earlier.root).tables.open(earlier.table, earlier.table_version)
    return snapshot.read(["sample_row", *earlier.names, "unscored_reason"], dict(earlier.slice))


def parsed_reasons(text: str | None, names: Sequence[str]) -> dict[str, str]:
    """Return the reasons of some columns out of `column: reason` joined by `; `."""
    parts = [part.partition(": ") for part in (text or "").split("; ")]
    return {name: why for name, _, why in parts if name in names}


def score_table(
    plan: PackPlan, pack: Pack, sample_rows_N: NDArray[np.int64], measured: Scores
) -> pa.Table:
    """Return rows of `scores/<pack>`: what was measured, kept, or skipped."""
    parts = [measured]
    if plan.earlier is not None:
        parts.append(kept_scores(plan.earlier, sample_rows_N))
    nothing = np.full(len(sample_rows_N), np.nan)
    columns: dict[str, Any] = {}
    for name in (scorer.name for scorer in pack.scorers):
        values = next((p.columns[name] for p in parts if name in p.columns), nothing)
        columns[name] = pa.array(values, pa.float64(), mask=np.isnan(values))
    reasons = [
        _reason_text(plan, pack, {n: why for p in parts for n, why in p.reasons[i].items()})
        for i in range(len(sample_rows_N))
    ]
    table = {"sample_row": sample_rows_N, **columns, "unscored_reason": pa.array(reasons, _TEXT)}
    if VERSIONS_COLUMN in _contract(plan).names:
        versions = pa.scalar(canonical_json(pack.scorer_versions))
        table[VERSIONS_COLUMN] = pa.repeat(versions, len(sample_rows_N))
    return pa.table(table)


_TEXT = pa.string()


def _contract(plan: PackPlan) -> Contract:
    return contract(plan.table)


def _reason_text(plan: PackPlan, pack: Pack, reasons: Mapping[str, str]) -> str | None:
    skipped = {name: f"skipped, {why}" for name, why in plan.skipped.items()}
    said = {**skipped, **reasons}
    # A reason's own semicolon would end it for `parsed_reasons`.
    parts = [f"{s.name}: {said[s.name].replace(';', ',')}" for s in pack.scorers if s.name in said]
    return "; ".join(parts) or None
