"""The level from which on using a sample lowers the expected error, given how many there are.

At a level σ the run has N trusted images and k accepted pool images. Its error is taken as

    E(k) = bias + variance = (1 / (N + k)) Σ T_i(σ)  +  sqrt(L / (N + k)) / σ

where T_i = (1 - e^logit_i)+ is the evidence against sample i. *Bias*: images of density q among
images of density p pull the learned distribution away by their share times the total variation,
and TV(p, q) = ∫ (q - p)+ = E_q[(1 - p/q)+] is the mean of T over the pool, p/q being the odds that
the classifier gives. *Variance*: it falls as the square root of the images, and small levels need
more of them; L holds the rest. With the whole pool against none of it, E(all) <= E(none) is

    TV(σ) σ <= sqrt(L / N) / (1 + sqrt(N / (N + n)))

and sample by sample the best set is a prefix of the pool in the order of T: the k that minimises E.
Its largest evidence is the level's threshold θ(σ), frozen in the policy.

Fewer trusted images never raise it: if k' > k beats k at N, it does so at every smaller N
(multiply E(k') <= E(k) by N + k': the left side rises with N, the right side falls).

Limits. The bias is a worst case, the variance a guess of its shape: L has no default and is to be
calibrated by held-out loss (`calibrate_constant`). T of a mean logit stands for the mean of T. A TV
that falls as 1/σ gives no crossing. That choosing by evidence distorts the accepted images'
distribution is neglected. `docs/decisions/0016-policies-that-weigh.md` has measurements.

Shapes: N samples, L levels.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipelines.policies.base import Decisions, Floats
from pipelines.policies.by_curve import CurvePolicy, decide_above
from schemas.errors import BadInput


class SampleSizeAware(CurvePolicy):
    """Usable where it lowers the expected error; every number that decides is frozen.

    Make one with `measures.freeze_sample_size`, which reads them off given batches.
    """

    kind: Literal["sample_size"] = "sample_size"
    constant: float = Field(gt=0, description="L, from `calibrate_constant` or experience")
    n_trusted: int = Field(ge=1, description="trusted images, never held out")
    n_pool: int = Field(ge=1, description="pool images that the thresholds were frozen on")
    sigmas: tuple[float, ...] = Field(min_length=2, description="the classifier's levels")
    tv: tuple[float, ...] = Field(description="per level, mean evidence against the pool")
    mean_logit: tuple[float, ...] = Field(description="per level, of the pool")
    spread: tuple[float, ...] = Field(
        description="per level, standard deviation of the pool's logits beyond their own error"
    )
    max_evidence: tuple[float, ...] = Field(
        description="θ per level: largest evidence that is accepted; 1 accepts everything"
    )

    @model_validator(mode="after")
    def _one_number_a_level(self) -> "SampleSizeAware":
        for name in ("tv", "mean_logit", "spread", "max_evidence"):
            if len(getattr(self, name)) != len(self.sigmas):
                raise ValueError(f"{name} must have one number for each of the sigmas")
        return self


def evidence(logits: NDArray[np.floating]) -> Floats:
    """Return T = (1 - e^logit)+, elementwise, in [0, 1)."""
    return -np.expm1(np.minimum(np.asarray(logits, np.float64), 0.0))


def shrink(
    logits_NL: NDArray[np.floating],
    standard_error_NL: NDArray[np.floating],
    mean_L: Floats,
    spread_L: Floats,
) -> Floats:
    """Return the logits, drawn towards the pool's mean where their error is as large as its spread.

    At high levels an image's own curve is noise around the pool's; there the pool decides.
    Weight of the own logit: spread² / (spread² + error²) (empirical Bayes, normal errors).
    """
    variance = np.asarray(spread_L) ** 2
    error = np.asarray(standard_error_NL, np.float64) ** 2
    total = variance + error
    weight = np.where(total > 0, variance / np.where(total > 0, total, 1.0), 1.0)
    shrunk: Floats = mean_L + weight * (np.asarray(logits_NL, np.float64) - mean_L)
    return shrunk


def pool_moments(
    logits_NL: NDArray[np.floating], standard_error_NL: NDArray[np.floating]
) -> tuple[Floats, Floats]:
    """Return (mean, spread) of a pool's logits per level, each (L,)."""
    logits = np.asarray(logits_NL, np.float64)
    own = (np.asarray(standard_error_NL, np.float64) ** 2).mean(axis=0)
    return logits.mean(axis=0), np.sqrt(np.maximum(logits.var(axis=0) - own, 0.0))


def best_evidence(evidence_N: Floats, n_trusted: int, sigma: float, constant: float) -> float:
    """Return θ of one level: the largest evidence in the set that minimises E; 1 if all are in it.

    Among sets of equal error the largest is taken. 0 where the best set is empty: a sample without
    any evidence against it costs nothing.
    """
    ordered = np.sort(evidence_N)
    total = n_trusted + np.arange(len(ordered) + 1)
    bias = np.concatenate([[0.0], np.cumsum(ordered)]) / total
    error = bias + np.sqrt(constant / total) / sigma
    best = len(ordered) - int(np.argmin(error[::-1]))
    if best == len(ordered):
        return 1.0
    return float(ordered[best - 1]) if best else 0.0


def calibrate_constant(
    sigmas_L: Sequence[float],
    tv_L: Sequence[float],
    pool_helps_L: Sequence[bool],
    n_trusted: int,
    n_pool: int,
) -> float:
    """Return the L under which the whole-pool rule is right at most levels.

    A level where the whole pool lowered held-out loss needs L >= N (TV σ (1 + sqrt(N/(N+n))))²,
    one where it raised it the reverse. Between equally good values the middle, in ln L, is taken.

    Raises:
        BadInput: the pool helps at every level or at none, so that nothing bounds L from one side.
    """
    helps = np.asarray(pool_helps_L, bool)
    if helps.all() or not helps.any():
        said = "every level" if helps.all() else "no level"
        raise BadInput(
            f"the pool lowers held-out loss at {said}: that fits every constant beyond a bound; "
            "measure with more levels, or with another number of trusted images"
        )
    ratio = 1 + np.sqrt(n_trusted / (n_trusted + n_pool))
    needed = n_trusted * (np.asarray(tv_L) * np.asarray(sigmas_L) * ratio) ** 2
    borders = np.sort(np.maximum(needed, 1e-12))
    middles = np.sqrt(borders[1:] * borders[:-1])
    tried = np.concatenate([[borders[0] / 2], middles, [borders[-1] * 2]])
    wrong = np.array([((needed <= value) != helps).sum() for value in tried])
    best = tried[wrong == wrong.min()]
    return float(np.exp(np.log(best).mean()))


def decide_by_sample_size(
    policy: SampleSizeAware,
    logits_NL: NDArray[np.floating],
    standard_error_NL: NDArray[np.floating],
    sigmas_L: NDArray[np.floating],
) -> Decisions:
    """Decide from curves at the policy's levels.

    Raises:
        BadInput: the curves have other levels.
    """
    require_levels(policy.policy_id, policy.sigmas, sigmas_L)
    shrunk = shrink(
        logits_NL, standard_error_NL, np.array(policy.mean_logit), np.array(policy.spread)
    )
    with np.errstate(divide="ignore"):
        threshold = np.log1p(-np.array(policy.max_evidence))
    return decide_above(shrunk, standard_error_NL, sigmas_L, threshold, policy.smoothing_octaves)


def require_levels(policy_id: str, wanted: Sequence[float], sigmas_L: NDArray[np.floating]) -> None:
    """Check that curves have the levels that thresholds were frozen for.

    Raises:
        BadInput: they have others.
    """
    if len(wanted) != len(sigmas_L) or not np.allclose(wanted, sigmas_L, rtol=1e-6):
        raise BadInput(
            f"policy {policy_id} has thresholds at {len(wanted)} levels of another grid than the "
            "classifier's curves: freeze it again on this classifier"
        )
