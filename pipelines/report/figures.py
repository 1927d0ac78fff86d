"""The report's figures as plain JSON values, for tests and for machines that compare runs."""

import math
from typing import Any

from pipelines.report.comparison import Comparison, Difference
from pipelines.report.pool import Pool, Score, shares
from pipelines.report.truth import Truth


def figures(
    comparison: Comparison | None,
    main_arm: str | None,
    pool: Pool,
    scores: list[Score],
    truth: Truth | None,
    references_at_zero: float | None,
) -> dict[str, Any]:
    """Return everything that the page states as a number."""
    by_source = pool.by_source(pool.sigma_min)
    found: dict[str, Any] = {
        "num_pool_images": len(pool),
        "pool_shares": pool.shares,
        "pool_shares_by_source": {source: shares(v) for source, v in by_source.items()},
        "references_usable_everywhere": references_at_zero,
        "score_rank_correlation": {s.name: number(s.rank_correlation) for s in scores},
    }
    if comparison is not None:
        found |= _compared(comparison, main_arm)
    if truth is not None:
        found["truth"] = _truth(truth)
    return found


def _compared(comparison: Comparison, main_arm: str | None) -> dict[str, Any]:
    best, *others = comparison.ranking
    return {
        "headline": comparison.headline(),
        "best": best,
        "main_arm": main_arm,
        "main_arm_is_best": best == main_arm,
        "ranking": comparison.ranking,
        "not_evaluated": list(comparison.not_evaluated),
        "evaluation_set": comparison.best.reference_set,
        "num_held_out_images": comparison.best.num_images,
        "sigmas": comparison.sigmas.tolist(),
        "held_out_total": {arm: loss.total for arm, loss in comparison.losses.items()},
        "held_out_total_standard_error": {
            arm: loss.total_standard_error for arm, loss in comparison.losses.items()
        },
        "held_out_per_level": {
            arm: comparison.per_image(arm).mean(axis=0).tolist() for arm in comparison.losses
        },
        "checkpoint": {arm: loss.checkpoint for arm, loss in comparison.losses.items()},
        "paired_difference_to_best": {
            arm: _difference(comparison.total_difference(arm, best)) for arm in others
        },
    }


def _difference(difference: Difference) -> dict[str, Any]:
    return {
        "mean": difference.mean,
        "standard_error": number(difference.standard_error),
        "is_clear": difference.is_clear,
    }


def _truth(truth: Truth) -> dict[str, Any]:
    return {
        "blur_like_rank_correlation": number(truth.blur_like_rank_correlation),
        "kinds": {
            kind.name: {
                "num_images": kind.num_images,
                "rank_correlation": number(kind.rank_correlation),
                "rank_correlation_with_undamaged": number(kind.rank_correlation_with_undamaged),
                "medians_grow": kind.medians_grow,
                "median_sigma_min": [[severity, number(m)] for severity, m in kind.medians],
            }
            for kind in truth.kinds
        },
        "num_undamaged": len(truth.undamaged),
        "undamaged_shares": shares(truth.undamaged) if len(truth.undamaged) else None,
    }


def number(value: float) -> float | str | None:
    """JSON has neither infinity ("never" of a level) nor NaN."""
    if math.isnan(value):
        return None
    return "never" if math.isinf(value) else value
