"""The levels of the samples of any trainer: from a table, or from arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from ambient_omni.classifier.stored import require_current_levels
from ambient_omni.data.annotations import read_annotations
from ambient_omni.data.columns import RowOrder
from ambient_omni.data.training_data import READ_TABLES, held_out
from ambient_omni.noise.eligibility import EligibilityIndex, as_float32
from ambient_omni.noise.usable import Levels, Objective, Usable, hidden_level, kappa
from schemas.errors import AnnotationMissing
from schemas.root import Root


class UsableLevels:
    """From which noise level on each of N samples may be trained, and draws that obey it.

    Levels are σ of x_t = x_0 + σ z, in the noise space that they were annotated in.

    Args:
        sigma_min: (N,), NaN = at no high level.
        sigma_max: (N,) or 0, also usable at σ ≤ sigma_max.
        objective: gated, or ambient with a margin above sigma_min.
        max_amplification: of the ambient objective; see `noise.usable.kappa`.
    """

    def __init__(
        self,
        sigma_min: ArrayLike,
        sigma_max: ArrayLike = 0.0,
        *,
        objective: Objective = "gated",
        max_amplification: float = 4.0,
    ) -> None:
        minimum = np.asarray(sigma_min, np.float64)
        self.objective: Objective = objective
        self._kappa = kappa(objective, max_amplification)
        self.usable = Usable.of(minimum, np.broadcast_to(sigma_max, minimum.shape), self._kappa)
        self._index = EligibilityIndex(self.usable)

    @classmethod
    def from_table(
        cls,
        root: str | Path,
        policy_id: str,
        batches: Sequence[str],
        *,
        noise_space: str,
        sample_ids: Sequence[str] | None = None,
        objective: Objective = "gated",
        max_amplification: float = 4.0,
    ) -> UsableLevels:
        """Read the levels of one policy at the newest version of its table.

        Samples of validation and evaluation sets, and those taken down, are never drawn.

        Args:
            root: folder of the project.
            policy_id: whose levels.
            batches: ingest batches that hold the samples.
            noise_space: what your trainer measures σ in, e.g. ``pixel:32x32:lanczos:center:pm1``.
            sample_ids: content ids (`sample_id_of`) in the order of your dataset; by default all
                samples of the batches in the order of the table. An id that stands in several
                batches gets the stricter level.
            objective: as above.
            max_amplification: as above.

        Raises:
            AnnotationMissing: an id is in none of the batches, or has no level under the policy.
            ClassifierRefused: the levels are those of an older version of the classifiers.
            NoiseSpaceMismatch: the levels are of another noise space.
            TableMissing: the root has no such table.
        """
        opened = Root.open(root)
        require_current_levels(opened, policy_id)
        table = _read(opened, policy_id, batches, noise_space)
        if sample_ids is not None:
            table = _in_order(table, sample_ids, opened.tables.excluded_sample_ids)
        minimum, window = (table[name].to_numpy() for name in ("sigma_min", "sigma_max"))
        made = cls(minimum, window, objective=objective, max_amplification=max_amplification)
        return made

    def __len__(self) -> int:
        return len(self.usable)

    def draw(self, sigma: Levels, uniform: Levels) -> NDArray[np.int64]:
        """Return one sample per level, uniform among those that may be used at it.

        Args:
            sigma: (B,) levels; those that no float32 number is are rounded first.
            uniform: (B,) uniform numbers in [0, 1).

        Raises:
            NoEligibleSample: a level has none.
        """
        return self._index.draw(sigma, uniform)

    def gap(self) -> tuple[float, float] | None:
        """Return the one open interval of levels that no sample may be used at, or None."""
        return self._index.gap()

    def shares(self, sigma: float) -> Levels:
        """Return the probability of each sample at a level, (N,)."""
        return self._index.shares(sigma)

    def allows(self, index: NDArray[np.integer], sigma: Levels) -> NDArray[np.bool_]:
        """Say of (sample, level) pairs whether the sample may be used at the level."""
        return self.usable.allows(index, sigma)

    def hidden_level(self, index: NDArray[np.integer], sigma: Levels) -> Levels:
        """Return the level behind which the ambient target hides the samples, (B,); 0 if gated."""
        floor = self.usable.floor_of(index)
        return hidden_level(as_float32(sigma), floor, self.objective, self._kappa)


def _read(root: Root, policy_id: str, batches: Sequence[str], noise_space: str) -> pa.Table:
    """Return sample_id, sigma_min (NaN = null) and sigma_max; held-out ones are never usable."""
    samples = RowOrder(root.tables.open("samples"), {"ingest_batch": list(batches)})
    found = pa.concat_tables(samples.parts(["sample_id"]))
    annotations = root.tables.open("noise_annotations")
    rows = found["sample_row"].to_numpy()
    levels = read_annotations(annotations, policy_id, batches, rows, noise_space)
    apart = pa.array(
        sorted(held_out(root, root.tables.versions(READ_TABLES)).sample_ids), pa.string()
    )
    out = pc.is_in(found["sample_id"], value_set=apart).to_numpy()
    return pa.table(
        {
            "sample_id": found["sample_id"],
            "sigma_min": np.where(out, np.nan, levels.sigma_min),
            "sigma_max": np.where(out, 0, levels.sigma_max),
        }
    )


def _in_order(table: pa.Table, sample_ids: Sequence[str], gone: frozenset[str]) -> pa.Table:
    never = np.isnan(table["sigma_min"].to_numpy())
    strict = table.set_column(
        1, "sigma_min", pa.array(np.where(never, np.inf, table["sigma_min"].to_numpy()))
    )
    strict = strict.group_by("sample_id").aggregate([("sigma_min", "max"), ("sigma_max", "min")])
    wanted = pa.array(sample_ids, pa.string())
    place = pc.index_in(wanted, value_set=strict["sample_id"])
    lacking = [name for name, at in zip(sample_ids, place.to_pylist(), strict=True) if at is None]
    missing = [name for name in lacking if name not in gone]
    if missing:
        raise AnnotationMissing(
            f"{len(missing)} of {len(sample_ids)} samples are in none of the batches, the first is "
            f"{missing[0]}: ingest and annotate them, or leave them out"
        )
    taken = strict.take(place)
    return pa.table(
        {
            "sigma_min": pc.fill_null(taken["sigma_min_max"], np.inf),
            "sigma_max": pc.fill_null(taken["sigma_max_min"], 0),
        }
    )
