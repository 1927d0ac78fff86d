"""What was really done to the pool's images, and how well the levels tell. The report alone looks.

Shapes: N pool images.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import rankdata

from ambient_omni.damage import DAMAGES
from pipelines.report.pool import Pool, rank_correlation
from schemas.errors import BadInput

Floats = NDArray[np.float64]

UNDAMAGED = "none"
_COLUMNS = ("sample_id", "kind", "severity")


@dataclass(frozen=True)
class Kind:
    """One kind of damage: how its images' levels go with true severity."""

    name: str
    num_images: int
    rank_correlation: float
    rank_correlation_with_undamaged: float  # undamaged pool images counted as severity 0
    medians: list[tuple[float, float]]  # (severity, median sigma_min; inf = at no high level)

    @property
    def medians_grow(self) -> bool:
        """Whether the median level never falls as severity grows, and rises from end to end."""
        levels = [median for _, median in self.medians]
        return all(low <= high for low, high in pairwise(levels)) and levels[0] < levels[-1]

    @property
    def unit(self) -> str:
        """What severity is measured in."""
        return DAMAGES[self.name].unit if self.name in DAMAGES else ""


@dataclass(frozen=True)
class Truth:
    """The levels against the truth."""

    kinds: list[Kind]
    undamaged: Floats  # sigma_min of pool images that nothing was done to; NaN = null
    blur_like_rank_correlation: float
    words: list[str]  # (N,) what was done to each pool image; empty where the file does not say


def read_truth(path: Path, pool: Pool) -> Truth:
    """Compare the levels with what was done to each image; null counts as infinite.

    Raises:
        BadInput: the file is absent, is no Parquet, or lacks a column.
    """
    truth = _read(path)
    ids = truth["sample_id"].cast(pa.string()).combine_chunks()
    place = pc.index_in(pool.table["sample_id"], ids)
    known = pc.is_valid(place).to_numpy(zero_copy_only=False)
    chosen = truth.take(pc.drop_null(place))
    kinds = np.array(chosen["kind"].to_pylist(), str)
    severity = chosen["severity"].to_numpy(zero_copy_only=False).astype(np.float64)
    level = pool.never_is_infinite[known]
    names = [str(k) for k in np.unique(kinds) if len(np.unique(severity[kinds == k])) > 1]
    clean = level[kinds == UNDAMAGED]
    words = np.full(len(pool), "", object)
    words[known] = [_words(k, s) for k, s in zip(kinds, severity, strict=True)]
    return Truth(
        [_kind(k, severity[kinds == k], level[kinds == k], clean) for k in names],
        np.where(np.isinf(clean), np.nan, clean),
        _blur_like(kinds, severity, level),
        words.tolist(),
    )


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise BadInput(f"{path}: there is no such truth file; name another, or leave it out")
    try:
        truth = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInput(f"{path} is no Parquet file ({error}); name another truth file") from error
    missing = [name for name in _COLUMNS if name not in truth.schema.names]
    if missing:
        raise BadInput(f"{path} has no column {missing[0]!r}; it needs {', '.join(_COLUMNS)}")
    return truth


def _kind(name: str, severity: Floats, level: Floats, clean: Floats) -> Kind:
    medians = [(float(s), float(np.median(level[severity == s]))) for s in np.unique(severity)]
    with_clean = rank_correlation(
        np.concatenate([severity, np.zeros(len(clean))]), np.concatenate([level, clean])
    )
    return Kind(name, len(level), rank_correlation(severity, level), with_clean, medians)


def _blur_like(kinds: NDArray[np.str_], severity: Floats, level: Floats) -> float:
    """Pool the blur-like kinds: severities have a unit each, so each is ranked inside its kind."""
    ranks, levels = [np.empty(0)], [np.empty(0)]
    for kind in (d.kind for d in DAMAGES.values() if d.blur_like):
        here = kinds == kind
        if here.any():
            ranks.append(rankdata(severity[here], method="dense") / len(np.unique(severity[here])))
            levels.append(level[here])
    return rank_correlation(np.concatenate(ranks), np.concatenate(levels))


def _words(kind: str, severity: float) -> str:
    if kind == UNDAMAGED:
        return "undamaged"
    return kind.replace("_", " ") + (f" {severity:g}" if severity else "")
