"""From training data and sampling settings to what draws a sample for a level."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ambient_omni.data.config import SamplingConfig
from ambient_omni.data.training_data import TrainingData
from ambient_omni.noise.eligibility import Drawer, EligibilityIndex
from ambient_omni.noise.soft import SoftDrawer, lowest_accepted, rate_of_slope
from ambient_omni.noise.strata import Strata
from ambient_omni.noise.usable import (
    Levels,
    Objective,
    SigmaOf,
    Usable,
    effective_samples_per_group,
)
from schemas.errors import BadInput


@dataclass(frozen=True)
class Pool:
    """What draws depend on, of all training samples or of a part of them.

    strata, the classes and sources whose weights the settings name; soft, whether floors are.
    """

    usable: Usable
    strata: Strata
    soft: bool
    slope: NDArray[np.float32] | None
    threshold: float | None

    @classmethod
    def of(
        cls, data: TrainingData, sampling: SamplingConfig, objective: Objective, kappa: float
    ) -> Pool:
        """Return the pool of all training samples.

        Raises:
            BadInput: the settings do not fit the data or the objective.
        """
        if sampling.soft_floors and objective != "gated":
            raise BadInput(
                f"soft_floors do not go with the {objective} objective, which cannot hide an image "
                "below its sigma_min: use the gated objective, or hard floors"
            )
        levels = data.annotations
        return cls(
            usable=Usable.of(levels.sigma_min, levels.sigma_max, kappa),
            strata=strata_of(data, sampling),
            soft=sampling.soft_floors,
            slope=levels.slope,
            threshold=data.threshold,
        )

    def take(self, index: NDArray[np.integer]) -> Pool:
        """Return the pool of some samples; classes keep the weights that they have in all."""
        usable, strata = self.usable, self.strata
        return replace(
            self,
            usable=Usable(usable.sigma_min[index], usable.sigma_max[index], usable.kappa),
            strata=replace(strata, group=strata.group[index], source=strata.source[index]),
            slope=None if self.slope is None else self.slope[index],
        )

    def reach(self) -> Usable:
        """Return from which level on samples are drawn at all: soft floors end below σ_min."""
        if not self.soft:
            return self.usable
        assert self.slope is not None
        assert self.threshold is not None
        minimum, window = self.usable.sigma_min, self.usable.sigma_max
        rate = rate_of_slope(np.where(window > 0, np.nan, self.slope), self.threshold)
        return Usable(lowest_accepted(minimum, rate, self.threshold), window)

    def drawer(self, prior: SigmaOf) -> Drawer:
        """Return what draws samples of the pool at the levels of a prior."""
        if not self.soft:
            return EligibilityIndex(self.usable, self.strata)
        assert self.slope is not None
        assert self.threshold is not None
        lowest, highest = prior.sigma_of(np.array([0.0, np.nextafter(1, 0)]))
        return SoftDrawer(
            self.usable.sigma_min,
            self.usable.sigma_max,
            self.slope,
            self.threshold,
            strata=self.strata,
            bounds=(max(float(lowest), 1e-4), float(highest) * 1.001),
        )


def strata_of(data: TrainingData, sampling: SamplingConfig) -> Strata:
    """Return the classes and sources whose weights the settings name.

    Raises:
        BadInput: a source is unknown, or classes are to be balanced and there are no labels.
    """
    one = Strata.one(len(data))
    group, group_weights = one.group, one.group_weights
    source, source_weights = one.source, one.source_weights
    if sampling.class_balance != "none":
        if data.labels is None:
            raise BadInput(
                "class_balance needs labels: set condition.kind to label, or class_balance to none"
            )
        group = data.labels
        sizes = np.bincount(group, minlength=len(data.label_names)).astype(np.float64)
        group_weights = sizes if sampling.class_balance == "pool" else np.ones(len(sizes))
    if sampling.source_weights:
        unknown = sorted(set(sampling.source_weights) - set(data.source_names))
        if unknown:
            raise BadInput(
                f"source_weights names {unknown[0]!r}, the sources are "
                f"{', '.join(data.source_names)}"
            )
        source = data.sources
        named = [sampling.source_weights.get(name, 1.0) for name in data.source_names]
        source_weights = np.array(named)
    return Strata(group, source, group_weights, source_weights)


def skew_lines(data: TrainingData, usable: Usable, bands: Sequence[float]) -> list[str]:
    """Say per noise band how far annotations skew classes, and sources where there are several.

    The figure is the total variation between the shares of the groups among the samples usable in
    the band and among all samples: the part of the draws that lands on another group. What corrects
    it are `sampling.class_balance` and `sampling.source_weights`.

    Args:
        data: what is trained on.
        usable: levels of the samples.
        bands: ascending edges.
    """
    lines = []
    groups = [("source", data.source_names, data.sources)]
    if data.labels is not None:
        groups.append(("class", data.label_names, data.labels))
    for what, names, numbers in groups:
        if len(names) < 2:
            continue
        per_band = effective_samples_per_group(usable, numbers, len(names), bands)
        pool = np.bincount(numbers, minlength=len(names)) / len(data)
        lines.append(f"sigma band        skew by {what}")
        lines += [
            f"{low:7.3g} ..{high:7.3g} {_skew(names, pool, counts)}"
            for (low, high), counts in zip(itertools.pairwise(bands), per_band, strict=True)
        ]
    return lines


def _skew(names: Sequence[str], pool: Levels, counts: Levels) -> str:
    if not counts.any():
        return f"{'-':>15}   no sample"
    shares = counts / counts.sum()
    furthest = int(np.abs(shares - pool).argmax())
    return (
        f"{np.abs(shares - pool).sum() / 2:15.1%}   {names[furthest]}: {shares[furthest]:.1%} of "
        f"the draws, {pool[furthest]:.1%} of the samples"
    )
