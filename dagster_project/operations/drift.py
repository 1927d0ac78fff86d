"""Does a batch look like the last one that was accepted? Shapes: N and M images, B bins."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dagster_project.operations.config import DriftConfig
from dagster_project.request import Request
from schemas.errors import BadInput
from schemas.registry import contract
from schemas.root import Root

LEVEL = "sigma_min"
# Standard normal quantile of 0.999: one false alarm in a thousand columns.
_QUANTILE = 3.09


@dataclass(frozen=True)
class Drift:
    """One measure of a batch beside that of the accepted one.

    Attributes:
        column: the measure.
        psi: population stability index.
        chance: what it reaches by chance in one of a thousand equal batches.
        medians: of the accepted batch and of this one; NaN where nothing was measured.
        num_images: in the accepted batch and in this one.
    """

    column: str
    psi: float
    chance: float
    medians: tuple[float, float]
    num_images: tuple[int, int]

    def exceeds(self, max_psi: float) -> bool:
        """Say whether the batch is another one, by more than chance explains."""
        return self.psi > max(max_psi, self.chance)


def population_stability_index(
    accepted_N: ArrayLike, new_M: ArrayLike, num_bins: int
) -> tuple[float, float]:
    """Return the index and what chance makes of it for samples of these sizes.

    PSI = sum over bins of (q - p) ln(q / p), with p and q the shares of the accepted and of the
    new values in quantile bins of the accepted ones. Nulls (NaN) are a bin of their own. A half is
    added to each count, so that an empty bin is finite. Of two samples of one distribution
    PSI / (1/N + 1/M) is chi-squared with B - 1 degrees of freedom: Yurdakul & Naranjo, J. Risk
    Model Validation 2020, Statistical properties of the population stability index.
    """
    accepted, new = np.asarray(accepted_N, np.float64), np.asarray(new_M, np.float64)
    finite = accepted[np.isfinite(accepted)]
    inner = np.arange(1, num_bins) / num_bins
    # Equal quantiles (a score with ties) make one bin.
    edges = np.unique(np.quantile(finite, inner)) if len(finite) else np.empty(0)
    p, q = (_shares(values, edges) for values in (accepted, new))
    psi = float(((q - p) * np.log(q / p)).sum())
    return psi, _chi_squared_quantile(len(p) - 1) * (1 / len(accepted) + 1 / len(new))


def drift_of(
    root: Root, request: Request, batch: str, config: DriftConfig, *, levels_of: str | None = None
) -> list[Drift]:
    """Compare a pool batch with the last accepted one of its stream.

    Args:
        root: where the tables are.
        request: which batches there are.
        batch: the new one.
        config: what is compared, and how.
        levels_of: compare the levels under this policy instead of scores.

    Returns:
        One finding per measure; none where there is nothing to compare with.
    """
    before = accepted_before(request, batch)
    if before is None:
        return []
    columns = [LEVEL] if levels_of else list(config.columns)
    found = []
    for column in columns:
        old, new = (
            _levels(root, name, levels_of) if levels_of else _scores(root, request, name, column)
            for name in (before, batch)
        )
        if min(len(old), len(new)) < config.min_images:
            continue
        psi, chance = population_stability_index(old, new, config.num_bins)
        medians = (_median(old), _median(new))
        found.append(Drift(column, psi, chance, medians, (len(old), len(new))))
    return found


def accepted_before(request: Request, batch: str) -> str | None:
    """Return the newest earlier pool batch of the same stream that was not held back."""
    this = request.batch(batch)
    if this.role != "pool":
        return None
    earlier = None
    for other in request.batches:
        if other.name == batch:
            return earlier
        if (other.role, other.stream) == ("pool", this.stream) and not request.is_held(other.name):
            earlier = other.name
    return earlier


def told(findings: Sequence[Drift], before: str, max_psi: float) -> str:
    """Return in words what drifted, empty if nothing did."""
    parts = [
        f"{f.column} (index {f.psi:.2f} > {max(max_psi, f.chance):.2f}; median "
        f"{f.medians[0]:.3g} -> {f.medians[1]:.3g})"
        for f in findings
        if f.exceeds(max_psi)
    ]
    return f"differs from {before} in {', '.join(parts)}" if parts else ""


def _shares(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    known = values[np.isfinite(values)]
    counts = np.bincount(np.searchsorted(edges, known, side="right"), minlength=len(edges) + 1)
    # One bin more for what could not be measured.
    smoothed = np.append(counts, len(values) - len(known)) + 0.5
    shares: NDArray[np.float64] = smoothed / smoothed.sum()
    return shares


def _chi_squared_quantile(degrees: int) -> float:
    """Wilson & Hilferty, PNAS 17 (1931): a cube root of chi-squared is nearly normal."""
    if degrees < 1:
        return 0.0
    part = 2 / (9 * degrees)
    return degrees * (1 - part + _QUANTILE * math.sqrt(part)) ** 3


def _scores(root: Root, request: Request, batch: str, column: str) -> NDArray[np.float64]:
    scores = request.full_recipe.scores
    for pack in scores.packs:
        table = f"scores/{pack}"
        if column in contract(table).names:
            version = scores.pack_of(pack).version
            return _column(root, table, column, {"ingest_batch": batch, "scorer_version": version})
    raise BadInput(f"operations.drift.columns: no pack of the recipe has a score {column!r}")


def _levels(root: Root, batch: str, policy_id: str | None) -> NDArray[np.float64]:
    where = {"ingest_batch": batch, "policy_id": policy_id}
    return _column(root, "noise_annotations", LEVEL, where)


def _column(
    root: Root, table: str, column: str, where: Mapping[str, str | None]
) -> NDArray[np.float64]:
    values = root.tables.read(table, [column], where)[column]
    found: NDArray[np.float64] = values.to_numpy(zero_copy_only=False).astype(np.float64)
    return found


def _median(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan
