"""The pool's images with what was decided and measured of them, read from the tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import rankdata

from schemas.contract import Contract
from schemas.errors import AnnotationMissing
from schemas.reference_sets import TRUSTED
from schemas.registry import contract
from schemas.root import Root

Floats = NDArray[np.float64]

SCORE_TABLES = ("scores/classical", "ood_scores")


@dataclass(frozen=True)
class Pool:
    """N images under one policy. `sigma_min` (N,) is NaN where it is null: at no high level."""

    table: pa.Table
    sigma_min: Floats
    sources: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.sigma_min)

    @property
    def sample_rows(self) -> NDArray[np.int64]:
        """Join keys (N,), ascending."""
        rows: NDArray[np.int64] = self.table["sample_row"].to_numpy()
        return rows

    @cached_property
    def by_level(self) -> NDArray[np.int64]:
        """Places of the images from usable everywhere to never (N,)."""
        return np.argsort(self.never_is_infinite, kind="stable")

    @property
    def never_is_infinite(self) -> Floats:
        """sigma_min (N,) with infinity for null, for ranks."""
        return np.where(np.isnan(self.sigma_min), np.inf, self.sigma_min)

    def by_source(self, values: Floats) -> dict[str, Floats]:
        """Split (N,) values by the images' source."""
        return {str(s): values[self.sources == s] for s in np.unique(self.sources)}

    @property
    def shares(self) -> dict[str, float]:
        """Share of images usable everywhere, from a level on, and at no high level."""
        return shares(self.sigma_min)


def shares(sigma_min: Floats) -> dict[str, float]:
    """Return the share of images usable everywhere, from a level on, and at no high level."""
    never, everywhere = np.isnan(sigma_min), sigma_min == 0
    return {
        "everywhere": float(everywhere.mean()),
        "from a level on": float((~never & ~everywhere).mean()),
        "at no high level": float(never.mean()),
    }


def read_pool(root: Root, policy_id: str, batches: Sequence[str]) -> Pool:
    """Read samples with their levels under one policy, in the order of sample_row.

    Raises:
        AnnotationMissing: a sample has no row under the policy, or there is no sample.
    """
    samples = root.tables.read(
        "samples",
        ["sample_row", "sample_id", "source", "caption"],
        {"ingest_batch": list(batches)},
    )
    levels = root.tables.read(
        "noise_annotations",
        ["sample_row", "sigma_min", "reason", "sigma_min_standard_error_octaves"],
        {"policy_id": policy_id, "ingest_batch": list(batches)},
    )
    joined = samples.join(levels, "sample_row", join_type="left outer").sort_by("sample_row")
    missing = joined["reason"].null_count
    if missing or not joined.num_rows:
        raise AnnotationMissing(
            f"{missing} of {samples.num_rows} samples of {', '.join(batches)} have no row under "
            f"policy {policy_id}: run the annotate job on them"
        )
    sigma_min = joined["sigma_min"].to_numpy(zero_copy_only=False)
    return Pool(joined, sigma_min, np.array(joined["source"].to_pylist()))


@dataclass(frozen=True)
class Score:
    """One measure of the pool's N images, NaN where it was not had.

    `reference` are the trusted images' values, empty where they were not measured.
    """

    name: str
    unit: str
    meaning: str
    values: Floats
    reference: Floats
    rank_correlation: float  # Spearman's, with sigma_min; NaN where either is constant


def read_scores(
    root: Root, pool: Pool, pool_batches: Sequence[str], reference_batch: str | None
) -> list[Score]:
    """Read every measure that tells images apart, the ones that go with the level first."""
    scores = [
        score
        for table in SCORE_TABLES
        for score in _scores_of(root, table, pool, pool_batches, reference_batch)
    ]
    return sorted(scores, key=lambda s: -abs(np.nan_to_num(s.rank_correlation)))


def _scores_of(
    root: Root, table: str, pool: Pool, pool_batches: Sequence[str], reference_batch: str | None
) -> list[Score]:
    wanted = contract(table)
    found = _read_columns(root, wanted, pool_batches, pool.sample_rows)
    trusted = _read_columns(root, wanted, [reference_batch] if reference_batch else [], None)
    scores = []
    for name, values in found.items():
        known = np.isfinite(values)
        if len(np.unique(values[known])) < 2:
            continue
        column = wanted.column(name)
        correlation = rank_correlation(values[known], pool.never_is_infinite[known])
        reference = trusted.get(name, np.empty(0))
        scores.append(Score(name, column.unit, column.meaning, values, reference, correlation))
    return scores


def _read_columns(
    root: Root, wanted: Contract, batches: Sequence[str], sample_rows: NDArray[np.int64] | None
) -> Mapping[str, Floats]:
    """Read the score columns of batches; given `sample_rows`, in their order, else as they come."""
    columns = [c.name for c in wanted.columns if pa.types.is_float64(c.type)]
    where: dict[str, Any] = {"ingest_batch": list(batches)}
    if "reference_set" in wanted.names:
        where["reference_set"] = TRUSTED
    found = root.tables.read(wanted.name, ["sample_row", *columns], where)
    rows = found["sample_row"].to_numpy()
    if not len(rows):
        return {}
    values = {name: found[name].to_numpy(zero_copy_only=False) for name in columns}
    wanted_rows = np.unique(rows) if sample_rows is None else sample_rows
    # Of several versions of a measure the last one listed stands: any one serves a picture.
    place = np.searchsorted(rows, wanted_rows, side="right") - 1
    here = (place >= 0) & (rows[place] == wanted_rows)
    return {name: np.where(here, column[place], np.nan) for name, column in values.items()}


def rank_correlation(first: Floats, second: Floats) -> float:
    """Return Spearman's rank correlation; infinities rank last, ties share their rank.

    NaN where there are fewer than three images or one side is constant.
    """
    if len(first) < 3:
        return float("nan")
    a, b = rankdata(first), rankdata(second)
    if a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
