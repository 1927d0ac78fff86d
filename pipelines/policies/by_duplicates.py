"""Of equal images the best by a score is used, under another rule; the others are not.

Shapes: N samples, M members of clusters.
"""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipelines.policies.base import Decisions, PolicyBase
from pipelines.policies.by_curve import ClassifierThreshold
from pipelines.policies.by_rank import QualityRank
from pipelines.policies.by_source import FixedPerSource
from pipelines.policies.external import External

DUPLICATE = "duplicate"

Kept = Annotated[
    ClassifierThreshold | FixedPerSource | QualityRank | External, Field(discriminator="kind")
]


class BestOfDuplicates(PolicyBase):
    """Of each duplicate cluster the best image falls under `floor`, the others are never used.

    The one rule that looks at an image's company: a better copy in a later batch takes the place
    of what was the best, once dedup and this policy have run again on both batches.
    """

    kind: Literal["best_of_duplicates"] = "best_of_duplicates"
    floor: Kept = Field(description="the rule for what is kept, in the same noise space")
    clusters: tuple[Literal["exact", "perceptual", "semantic"], ...] = Field(
        default=("exact", "perceptual"), min_length=1, description="what counts as equal"
    )
    pack: str
    column: str
    scorer_version: str
    direction: Literal["higher_is_better", "lower_is_better"]

    @property
    def parameters(self) -> dict[str, object]:
        """All that decides."""
        return self.model_dump(mode="json", exclude={"name": True, "floor": {"name"}})

    @model_validator(mode="after")
    def _same_space(self) -> "BestOfDuplicates":
        if self.floor.noise_space != self.noise_space:
            raise ValueError(
                f"the floor measures in {self.floor.noise_space}, the policy in {self.noise_space}"
            )
        return self


def worse_members(
    policy: BestOfDuplicates,
    sample_rows_M: NDArray[np.int64],
    clusters_M: NDArray[np.int64],
    scores_M: NDArray[np.floating],
    is_reference_M: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Return the sample rows that give way to a better member of their cluster, ascending.

    References are never in the way: they stay, and pool images equal to one give way to it. Of the
    others the better score stays, null being worst, and of equal scores the image that came first.
    """
    scores = np.asarray(scores_M, np.float64)
    badness = -scores if policy.direction == "higher_is_better" else scores
    badness = np.where(np.isfinite(scores), badness, np.inf)
    order = np.lexsort((sample_rows_M, badness, ~is_reference_M, clusters_M))
    clusters = clusters_M[order]
    is_best = np.concatenate([[True], clusters[1:] != clusters[:-1]])[: len(order)]
    stays = is_best | is_reference_M[order]
    return np.sort(sample_rows_M[order][~stays])


def without_duplicates(floor: Decisions, is_worse_N: NDArray[np.bool_]) -> Decisions:
    """Take the levels of the worse copies away."""

    def null(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(is_worse_N, np.nan, values)

    window = None if floor.sigma_max is None else np.where(is_worse_N, 0.0, floor.sigma_max)
    return Decisions(
        null(floor.sigma_min),
        null(floor.slope),
        null(floor.standard_error_octaves),
        null(floor.low),
        null(floor.high),
        np.where(is_worse_N, DUPLICATE, floor.reason).astype(object),
        sigma_max=window,
    )
