"""Reading the levels of one policy at a pinned version. A missing row is an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ambient_omni.data.columns import RowOrder
from schemas.errors import AmbientOmniError, AnnotationMissing
from schemas.tables import Snapshot


class NoiseSpaceMismatch(AmbientOmniError):
    """Levels were measured in another noise space than the one they are asked for."""


@dataclass(frozen=True)
class Annotations:
    """The levels of N samples, in the order that was asked for.

    sigma_min (N,) float64, NaN = at no high level; sigma_max (N,), 0 = no window; slope (N,)
    float32, NaN = none, or None where it was not asked for. sigma_max is float32, rounded down,
    and takes no memory where no sample has a window.
    """

    sigma_min: NDArray[np.float64]
    sigma_max: NDArray[np.floating]
    slope: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.sigma_min)


def read_annotations(
    table: Snapshot,
    policy_id: str,
    batches: Sequence[str],
    sample_rows: NDArray[np.int64],
    noise_space: str,
    *,
    with_slope: bool = False,
) -> Annotations:
    """Return the levels of `sample_rows` under one policy.

    Args:
        table: noise_annotations at a version.
        policy_id: which rule's levels.
        batches: ingest batches that hold the samples.
        sample_rows: (N,) which samples, ascending.
        noise_space: what the trainer measures σ in.
        with_slope: also read the slope at the crossing, for soft floors.

    Raises:
        AnnotationMissing: a sample has no row.
        NoiseSpaceMismatch: the levels were measured in another noise space.
    """
    rows = RowOrder(table, {"policy_id": policy_id, "ingest_batch": list(batches)})
    columns = ["sigma_min", "sigma_max", "noise_space", *(["slope"] if with_slope else [])]
    # No level is negative, so that -1 marks what has not been read.
    sigma_min = np.full(len(sample_rows), -1.0)
    sigma_max: NDArray[np.floating] = np.broadcast_to(np.float32(0), len(sample_rows))
    slope = np.full(len(sample_rows), np.nan, np.float32) if with_slope else None
    for part in rows.parts(columns, coded=["noise_space"]):
        _require_space(part, policy_id, noise_space)
        into, taken = _places(part["sample_row"].to_numpy(), sample_rows)
        # A null comes as NaN: at no high level.
        sigma_min[into] = part["sigma_min"].to_numpy()[taken]
        windows = part["sigma_max"].to_numpy()[taken]
        if windows.any():
            if not sigma_max.flags.writeable:
                sigma_max = np.zeros(len(sample_rows), np.float32)
            sigma_max[into] = _rounded_down(windows)
        if slope is not None:
            slope[into] = part["slope"].to_numpy()[taken]
    _require_all(sigma_min, sample_rows, policy_id, table.version)
    return Annotations(sigma_min, sigma_max, slope)


def _places(
    have: NDArray[np.int64], wanted: NDArray[np.int64]
) -> tuple[slice | NDArray[np.int64], slice | NDArray[np.bool_]]:
    """Return where the rows of a part go among those wanted, and which of the part are wanted."""
    begin, end = np.searchsorted(wanted, [have[0], have[-1] + 1]) if len(have) else (0, 0)
    if end - begin == len(have) and np.array_equal(have, wanted[begin:end]):
        return slice(begin, end), slice(None)
    place = np.searchsorted(wanted, have)
    present = place < len(wanted)
    present[present] = wanted[place[present]] == have[present]
    return place[present], present


def _rounded_down(window: NDArray[np.float64]) -> NDArray[np.float32]:
    # A float32 level is in the window rounded down if and only if it is in the window.
    near = window.astype(np.float32)
    return np.where(near > window, np.nextafter(near, np.float32(0)), near)


def _require_all(
    sigma_min: NDArray[np.float64], wanted: NDArray[np.int64], policy_id: str, version: int
) -> None:
    missing = wanted[np.flatnonzero(sigma_min == -1)]
    if len(missing):
        first = ", ".join(map(str, missing[:3]))
        raise AnnotationMissing(
            f"{len(missing)} of {len(wanted)} samples have no row under policy {policy_id} at "
            f"noise_annotations version {version} (sample_row {first}): run the annotate job on "
            "their batches"
        )


def _require_space(part: pa.Table, policy_id: str, noise_space: str) -> None:
    others = [s for s in pc.unique(part["noise_space"]).to_pylist() if s != noise_space]
    if others:
        raise NoiseSpaceMismatch(
            f"policy {policy_id} has levels in {others[0]}, training measures them in "
            f"{noise_space}: {_way_to(noise_space)}"
        )


def _way_to(noise_space: str) -> str:
    if noise_space.startswith("latent:"):
        # Nothing turns a level of pixels into one of latents.
        return (
            "levels of pixels say nothing about latents; define a fixed_per_source or quality_rank "
            f"policy with noise_space: {noise_space}"
        )
    return "use a policy of that noise space, or its transform"
