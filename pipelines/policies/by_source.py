"""One level per source."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from pipelines.policies.base import Decisions, PolicyBase
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
        for source, level in levels.items():
            if level is not None and not (math.isfinite(level) and level >= 0):
                raise ValueError(f"level {level} of source {source!r} is no sigma: finite and >= 0")
        return levels


def decide_by_source(policy: FixedPerSource, sources: Sequence[str]) -> Decisions:
    """Decide from source names.

    Raises:
        BadInput: a source has no level and there is no level for all others.
    """
    unknown = sorted(set(sources) - set(policy.levels))
    if unknown and ANY_SOURCE not in policy.levels:
        raise BadInput(
            f"policy {policy.policy_id} has no level for source {unknown[0]!r}; "
            f"name it or {ANY_SOURCE!r} in levels"
        )
    rest = policy.levels.get(ANY_SOURCE)
    levels = [policy.levels.get(source, rest) for source in sources]
    sigma_min = np.array([np.nan if level is None else level for level in levels], np.float64)
    return Decisions.without_curve(sigma_min, np.full(len(sigma_min), "fixed_per_source", object))
