"""The images that a problem is made of: references, pool, and the pool as it was before damage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.evidence.cells import FOREIGN, NO_DAMAGE, Cell, Form, Problem
from benchmarks.evidence.images import DataSet, Tiles, damaged, draw, split_of

_OTHER: dict[DataSet, DataSet] = {"landscapes": "openmoji", "openmoji": "landscapes"}


@dataclass(frozen=True)
class Scene:
    """Images of one problem.

    Attributes:
        reference: clean, trusted.
        pool: as the run has them, damaged.
        validation: clean; they choose checkpoints and policies, and calibrate classifiers.
    """

    reference: Tiles
    pool: Tiles
    validation: Tiles

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
    return Scene(
        reference=draw(problem.data, "reference", problem.num_reference, problem.seed),
        pool=_pool(problem, problem.num_images - problem.num_reference),
        validation=validation_of(problem.data, form),
    )


def validation_of(data: DataSet, form: Form) -> Tiles:
    """Return the images that choose checkpoints."""
    tiles = split_of(data, "validation")
    return tiles.at(np.arange(min(form.num_validation, len(tiles))))


def _pool(problem: Problem, count: int) -> Tiles:
    if problem.damage == FOREIGN:
        return draw(_OTHER[problem.data], "pool", count, problem.seed)
    clean = draw(problem.data, "pool", count, problem.seed)
    if problem.damage == NO_DAMAGE:
        return clean
    return damaged(clean, problem.damage, problem.severity, problem.seed)
