"""Reading the levels of one policy at a pinned version. A missing row is an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.errors import AmbientOmniError, AnnotationMissing
from schemas.tables import Snapshot


class NoiseSpaceMismatch(AmbientOmniError):
    """Levels were measured in another noise space than the one they are asked for."""


@dataclass(frozen=True)
class Annotations:
    """The levels of N samples, in the order that was asked for.

    sigma_min (N,) float64, NaN = at no high level; sigma_max (N,) float64, 0 = no window.
    """

    sigma_min: NDArray[np.float64]
    sigma_max: NDArray[np.float64]


def read_annotations(
    table: Snapshot,
    policy_id: str,
    batches: Sequence[str],
    sample_rows: NDArray[np.int64],
    noise_space: str,
) -> Annotations:
    """Return the levels of `sample_rows` under one policy.

    Args:
        table: noise_annotations at a version.
        policy_id: which rule's levels.
        batches: ingest batches that hold the samples.
        sample_rows: (N,) which samples.
        noise_space: what the trainer measures σ in.

    Raises:
        AnnotationMissing: a sample has no row.
        NoiseSpaceMismatch: the levels were measured in another noise space.
    """
    found = table.read(
        ["sample_row", "sigma_min", "sigma_max", "noise_space"],
        {"policy_id": policy_id, "ingest_batch": list(batches)},
    )
    place = _places(found, sample_rows, policy_id, table.version)
    _require_space(found, policy_id, noise_space)
    return Annotations(
        # A null sigma_min comes as NaN: at no high level.
        sigma_min=found["sigma_min"].to_numpy()[place],
        sigma_max=found["sigma_max"].to_numpy()[place],
    )


def _places(
    found: pa.Table, wanted: NDArray[np.int64], policy_id: str, version: int
) -> NDArray[np.int64]:
    # Rows come in the order of sample_row.
    have = found["sample_row"].to_numpy()
    place = np.searchsorted(have, wanted)
    present = place < len(have)
    present[present] = have[place[present]] == wanted[present]
    if not present.all():
        missing = wanted[~present]
        first = ", ".join(map(str, missing[:3]))
        raise AnnotationMissing(
            f"{len(missing)} of {len(wanted)} samples have no row under policy {policy_id} at "
            f"noise_annotations version {version} (sample_row {first}): run the annotate job on "
            "their batches"
        )
    return place


def _require_space(found: pa.Table, policy_id: str, noise_space: str) -> None:
    others = [s for s in pc.unique(found["noise_space"]).to_pylist() if s != noise_space]
    if others:
        raise NoiseSpaceMismatch(
            f"policy {policy_id} has levels in {others[0]}, training measures them in "
            f"{noise_space}: use a policy of that noise space, or its transform"
        )
