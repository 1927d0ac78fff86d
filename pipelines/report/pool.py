"""The pool's images with what was decided and measured of them, read from the tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import rankdata

from schemas.errors import AnnotationMissing, BadInput
from schemas.root import Root

Floats = NDArray[np.float64]

# Damage that removes detail, as against damage that adds something.
BLUR_LIKE = ("gaussian_blur", "motion_blur", "down_up")
_TRUTH_COLUMNS = ("sample_id", "kind", "severity")


@dataclass(frozen=True)
class Pool:
    """N images of the pool. `sigma_min` (N,) is NaN where it is null: at no high level."""

    table: pa.Table
    sigma_min: Floats
    sources: NDArray[np.str_]

    @property
    def sample_rows(self) -> NDArray[np.int64]:
        """Join keys (N,)."""
        rows: NDArray[np.int64] = self.table["sample_row"].to_numpy()
        return rows

    def by_source(self, values: Floats) -> dict[str, Floats]:
        """Split (N,) values by the images' source."""
        return {str(s): values[self.sources == s] for s in np.unique(self.sources)}

    @property
    def shares(self) -> dict[str, float]:
        """Share of images usable everywhere, from a level on, and at no high level."""
        never = np.isnan(self.sigma_min)
        everywhere = self.sigma_min == 0
        return {
            "everywhere": float(everywhere.mean()),
            "from a level on": float((~never & ~everywhere).mean()),
            "at no high level": float(never.mean()),
        }


def read_pool(root: Root, policy_id: str, batches: Sequence[str]) -> Pool:
    """Read the pool's samples with their levels under one policy, in the order of sample_row.

    Raises:
        AnnotationMissing: a sample has no row under the policy.
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
            f"{missing} of {samples.num_rows} pool samples have no row under policy {policy_id}: "
            "run the annotate job on their batches"
        )
    sigma_min = joined["sigma_min"].to_numpy(zero_copy_only=False)
    return Pool(joined, sigma_min, np.array(joined["source"].to_pylist()))


def read_scores(root: Root, table: str, columns: Sequence[str], pool: Pool) -> dict[str, Floats]:
    """Read score columns for the pool's images, (N,) each, NaN where there is none."""
    found = root.tables.read(table, ["sample_row", *columns])
    rows = found["sample_row"].to_numpy()
    # Of several versions of a measure the last one written stands: any one serves a picture.
    place = np.searchsorted(rows, pool.sample_rows, side="right") - 1
    here = (place >= 0) & (rows[place] == pool.sample_rows) if len(rows) else None
    if here is None or not here.any():
        return {}
    return {
        name: np.where(here, found[name].to_numpy(zero_copy_only=False)[place], np.nan)
        for name in columns
    }


@dataclass(frozen=True)
class Severity:
    """One kind of damage: rank correlation of sigma_min with true severity, medians by severity."""

    kind: str
    num_images: int
    rank_correlation: float
    medians: list[tuple[float, float]]  # (severity, median sigma_min; inf = at no high level)

    @property
    def medians_grow(self) -> bool:
        """Whether the median level never falls as severity grows, and rises from end to end."""
        levels = [median for _, median in self.medians]
        return all(low <= high for low, high in pairwise(levels)) and levels[0] < levels[-1]


@dataclass(frozen=True)
class Truth:
    """What was really done to the pool's images, and how well the levels tell."""

    severities: list[Severity]
    undamaged: Floats  # sigma_min of pool images that nothing was done to; NaN = null
    blur_like_rank_correlation: float


def read_truth(path: Path, pool: Pool) -> Truth:
    """Compare the levels with what was done to each image; null counts as infinite.

    Raises:
        BadInput: the file is no such Parquet file.
    """
    if not path.exists():
        raise BadInput(f"{path}: there is no such file; leave --truth out or name another")
    truth = pq.read_table(path)
    missing = [name for name in _TRUTH_COLUMNS if name not in truth.schema.names]
    if missing:
        raise BadInput(f"{path} has no column {missing}; it needs {list(_TRUTH_COLUMNS)}")
    place = pc.index_in(pool.table["sample_id"], truth["sample_id"].combine_chunks())
    known = pc.is_valid(place).to_numpy()
    chosen = truth.take(pc.drop_null(place))
    kinds = np.array(chosen["kind"].to_pylist())
    severity = chosen["severity"].to_numpy(zero_copy_only=False).astype(np.float64)
    level = np.where(np.isnan(pool.sigma_min), np.inf, pool.sigma_min)[known]
    damaged = [str(k) for k in np.unique(kinds) if len(np.unique(severity[kinds == k])) > 1]
    severities = [_severity(k, severity[kinds == k], level[kinds == k]) for k in damaged]
    undamaged = level[kinds == "none"]
    return Truth(
        severities,
        np.where(np.isinf(undamaged), np.nan, undamaged),
        _blur_like(kinds, severity, level),
    )


def rank_correlation(first: Floats, second: Floats) -> float:
    """Return Spearman's rank correlation; infinities rank last, ties share their rank."""
    a, b = rankdata(first), rankdata(second)
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _severity(kind: str, severity: Floats, level: Floats) -> Severity:
    medians = [(float(s), float(np.median(level[severity == s]))) for s in np.unique(severity)]
    return Severity(kind, len(level), rank_correlation(severity, level), medians)


def _blur_like(kinds: NDArray[np.str_], severity: Floats, level: Floats) -> float:
    """Pool the blur-like kinds: severities have a unit each, so each is ranked inside its kind."""
    ranks, levels = [], []
    for kind in BLUR_LIKE:
        here = kinds == kind
        if here.any():
            ranks.append(rankdata(severity[here], method="dense") / len(np.unique(severity[here])))
            levels.append(level[here])
    if not ranks:
        return float("nan")
    return rank_correlation(np.concatenate(ranks), np.concatenate(levels))
