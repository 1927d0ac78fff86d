"""One level per source, given or read off a classifier's levels there."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from pipelines.policies.base import Decisions, Floats, PolicyBase
from pipelines.policies.by_curve import ClassifierThreshold
from schemas.errors import BadInput

ANY_SOURCE = "*"


class FixedPerSource(PolicyBase):
    """One level for every sample of a source; null keeps a source out of every high level."""

    kind: Literal["fixed_per_source"] = "fixed_per_source"
    levels: dict[str, float | None] = Field(
        min_length=1, description=f"sigma_min by source name; {ANY_SOURCE!r} for all others"
    )

    @field_validator("levels")
    @classmethod
    def _levels_are_levels(cls, levels: dict[str, float | None]) -> dict[str, float | None]:
        return _levels(levels)


class ClassifierPerSource(PolicyBase):
    """One level for every sample of a source: that by which a classifier lets most of them in.

    A classifier knows damage only against the spread of contents. Among images that are blurred
    alike it lets in first, at low noise, those that had most contrast and lost most: blurred, they
    pass for ordinary sharp ones (`benchmarks.evidence.first_in`). One level for the whole source
    is not misled so. It is for sources that are damaged alike; in a mixed one it holds the good
    images back with the bad.

    Make one with `freezing.freeze_source_levels`, which reads the levels off given batches.
    """

    kind: Literal["classifier_per_source"] = "classifier_per_source"
    threshold: ClassifierThreshold = Field(description="the rule of each image's own level")
    quantile: float = Field(
        default=0.9, gt=0, le=1, description="share of a source's images whose own level is passed"
    )
    levels: dict[str, float | None] = Field(
        min_length=1, description="sigma_min by source name, as frozen; null: never"
    )

    @property
    def parameters(self) -> dict[str, object]:
        """All that decides."""
        return self.model_dump(mode="json", exclude={"name": True, "threshold": {"name"}})

    @field_validator("levels")
    @classmethod
    def _levels_are_levels(cls, levels: dict[str, float | None]) -> dict[str, float | None]:
        return _levels(levels)

    @model_validator(mode="after")
    def _parts_fit(self) -> "ClassifierPerSource":
        if self.threshold.noise_space != self.noise_space:
            raise ValueError(f"the threshold measures in {self.threshold.noise_space}")
        if self.threshold.soft:
            raise ValueError("a source's level is a hard floor: leave soft out of the threshold")
        return self


def _levels(levels: dict[str, float | None]) -> dict[str, float | None]:
    for source, level in levels.items():
        if level is not None and not (math.isfinite(level) and level >= 0):
            raise ValueError(f"level {level} of source {source!r} is no sigma: finite and >= 0")
    return levels


def levels_of_sources(
    own_N: Floats, sources: Sequence[str], quantile: float
) -> dict[str, float | None]:
    """Return, per source, the least level that a share of its images' own levels is at or below.

    Args:
        own_N: each image's own level, inf: never; NaN: not measured, which does not count.
        sources: their N sources.
        quantile: the share, in (0, 1]. Where fewer images have any level, the source has none.
    """
    is_measured = ~np.isnan(own_N)
    names, number_N = np.unique(np.asarray(sources, object)[is_measured], return_inverse=True)
    # By source in one sort, however many there are.
    order = np.argsort(number_N, kind="stable")
    starts = np.searchsorted(number_N[order], np.arange(1, len(names)))
    parts = np.split(own_N[is_measured][order], starts)
    out: dict[str, float | None] = {}
    for source, own in zip(names.tolist(), parts, strict=False):
        level = float(np.quantile(own, quantile, method="inverted_cdf"))
        out[source] = level if math.isfinite(level) else None
    return out


def decide_by_source(
    policy: FixedPerSource | ClassifierPerSource, sources: Sequence[str]
) -> Decisions:
    """Decide from source names.

    Raises:
        BadInput: a source has no level and there is no level for all others.
    """
    unknown = sorted(set(sources) - set(policy.levels))
    if unknown and isinstance(policy, ClassifierPerSource):
        raise BadInput(
            f"policy {policy.policy_id} has no level for source {unknown[0]!r}: it was frozen "
            "before that source came, or on other batches; freeze it again on batches with it"
        )
    if unknown and ANY_SOURCE not in policy.levels:
        raise BadInput(
            f"policy {policy.policy_id} has no level for source {unknown[0]!r}; "
            f"name it or {ANY_SOURCE!r} in levels"
        )
    rest = policy.levels.get(ANY_SOURCE)
    levels = [policy.levels.get(source, rest) for source in sources]
    sigma_min = np.array([np.nan if level is None else level for level in levels], np.float64)
    frozen = isinstance(policy, ClassifierPerSource)
    reason = "level_of_source" if frozen else "fixed_per_source"
    return Decisions.without_curve(sigma_min, np.full(len(sigma_min), reason, object))
