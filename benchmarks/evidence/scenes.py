"""The images that a problem is made of: references, pool, and the pool as it was before damage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.evidence.cells import FOREIGN, NO_DAMAGE, Cell, Form
from benchmarks.evidence.images import DataSet, Tiles, damaged, draw, split_of

_OTHER: dict[DataSet, DataSet] = {"landscapes": "openmoji", "openmoji": "landscapes"}


@dataclass(frozen=True)
class Scene:
    """Images of one problem.

    Attributes:
        reference: clean, trusted.
        pool: as the run has them, damaged.
        validation: clean; they choose checkpoints and policies, and calibrate classifiers.
        is_undamaged: bool (pool,), which images the damage left as they were: for the oracle.
    """

    reference: Tiles
    pool: Tiles
    validation: Tiles
    is_undamaged: NDArray[np.bool_]

    @property
    def images(self) -> Tiles:
        """References, then the pool."""
        return Tiles(
            np.concatenate([self.reference.pixels, self.pool.pixels]),
            self.reference.names + self.pool.names,
            self.reference.origins + self.pool.origins,
        )


def scene_of(cell: Cell, form: Form) -> Scene:
    """Return the images of a cell; an all-clean cell has its pool before the damage."""
    problem = cell.problem
    count = problem.num_images - problem.num_reference
    foreign = problem.damage == FOREIGN
    source = _OTHER[problem.data] if foreign else problem.data
    clean = draw(source, "pool", count, problem.seed)
    pool = clean
    if not foreign and problem.damage != NO_DAMAGE:
        pool = damaged(clean, problem.damage, problem.severity, problem.seed)
    return Scene(
        reference=draw(problem.data, "reference", problem.num_reference, problem.seed),
        pool=pool,
        validation=validation_of(problem.data, form),
        is_undamaged=(pool.pixels == clean.pixels).all(axis=(1, 2, 3)) & (not foreign),
    )


def validation_of(data: DataSet, form: Form) -> Tiles:
    """Return the images that choose checkpoints."""
    tiles = split_of(data, "validation")
    return tiles.at(np.arange(min(form.num_validation, len(tiles))))
