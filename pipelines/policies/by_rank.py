"""The best by one score get one level, the rest another.

Shapes: N samples.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.policies.base import UNSCORED, Decisions, PolicyBase
from pipelines.scorers.base import Direction
from schemas.ids import hash_fraction

_TIE_PURPOSE = "quality-rank-tie"


class QualityRank(PolicyBase):
    """The best by one score get level 0, the rest another; the border is frozen in the policy.

    Make one with `measures.freeze_quality_rank`, which finds the border on given batches.
    """

    kind: Literal["quality_rank"] = "quality_rank"
    pack: str
    column: str
    scorer_version: str
    direction: Literal["higher_is_better", "lower_is_better"]
    good_fraction: float = Field(ge=0, le=1, description="share that the border was made for")
    cut_score: float | None = Field(description="score of the last good sample; null: none is good")
    cut_tie: float = Field(default=1.0, description="tie-break of the last good sample")
    sigma_min_rest: float | None = Field(ge=0, description="level of the rest; null: never")


def decide_by_rank(
    policy: QualityRank, scores_N: NDArray[np.floating], sample_ids: Sequence[str]
) -> Decisions:
    """Decide from scores, NaN for null. A null score is not annotated, and never good.

    A sample is good if its score is better than the border's, or equal with a tie-break that is
    not above the border's: the same split whatever the order or the company.
    """
    scores = np.asarray(scores_N, np.float64)
    is_scored = np.isfinite(scores)
    good = np.zeros(len(scores), bool)
    if policy.cut_score is not None:
        badness = _badness(scores, policy.direction)
        cut = _badness(np.array(policy.cut_score), policy.direction)
        good = (badness < cut) | ((badness == cut) & (tie_breaks(sample_ids) <= policy.cut_tie))
    rest = np.nan if policy.sigma_min_rest is None else policy.sigma_min_rest
    sigma_min = np.where(good, 0.0, rest)
    sigma_min[~is_scored] = np.nan
    reason = np.where(good, "rank_good", "rank_rest")
    reason = np.where(is_scored, reason, UNSCORED)
    return Decisions.without_curve(sigma_min, reason.astype(object))


def rank_border(
    scores_N: NDArray[np.floating],
    sample_ids: Sequence[str],
    direction: Direction,
    good_fraction: float,
) -> tuple[float | None, float]:
    """Return (score, tie-break) of the last good sample, so that exactly the fraction is good.

    `round(good_fraction * number scored)` samples are good; ties are split by content hash.
    (None, 0) where that is no sample.
    """
    scores = np.asarray(scores_N, np.float64)
    scored = np.flatnonzero(np.isfinite(scores))
    num_good = round(good_fraction * len(scored))
    if num_good == 0:
        return None, 0.0
    ties = tie_breaks(sample_ids)[scored]
    order = np.lexsort((ties, _badness(scores[scored], direction)))
    last = order[num_good - 1]
    return float(scores[scored][last]), float(ties[last])


def tie_breaks(sample_ids: Sequence[str]) -> NDArray[np.float64]:
    """Return numbers in [0, 1) that order samples of one score, from their bytes alone."""
    return np.array([hash_fraction(i, _TIE_PURPOSE) for i in sample_ids], np.float64)


def _badness(scores: NDArray[np.float64], direction: Direction) -> NDArray[np.float64]:
    return scores if direction == "lower_is_better" else -scores
