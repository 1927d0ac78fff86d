"""The arms: which levels each gives the pool, by the product's own policies.

References have level 0 in every arm. N pool images, L levels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ambient_omni.noise.usable import Levels
from benchmarks.evidence.cells import PILOTS, Arm, Form
from benchmarks.evidence.curves import NOISE_SPACE
from benchmarks.evidence.images import MIX
from benchmarks.evidence.levels import ArmLevels, SoftLevels, ambient, hard
from benchmarks.evidence.scenes import Scene
from pipelines.pilot.choose import choose
from pipelines.pilot.config import PilotConfig
from pipelines.pilot.measure import Measured
from pipelines.pilot.run import compare
from pipelines.policies import (
    ClassifierPerSource,
    ClassifierThreshold,
    FixedPerSource,
    PilotCalibrated,
    QualityRank,
    SampleSizeAware,
    levels_of_sources,
    own_levels,
    rank_border,
)
from pipelines.policies.base import Decisions
from pipelines.policies.by_curve import decide_by_curve
from pipelines.policies.by_pilot import decide_by_pilot
from pipelines.policies.by_rank import decide_by_rank
from pipelines.policies.by_sample_size import (
    best_evidence,
    calibrate_constant,
    decide_by_sample_size,
    evidence,
    pool_moments,
    shrink,
)
from pipelines.policies.by_source import decide_by_source
from pipelines.scorers.classical import sharpness
from pipelines.scorers.pixels import Pixels as ScoredPixels
from schemas.errors import BadInput

_COMMON: dict[str, Any] = {"noise_space": NOISE_SPACE, "classifier_id": "evidence"}
_TAU = float(ClassifierThreshold.model_fields["tau"].default)


@dataclass(frozen=True)
class Known:
    """What an arm may look at; nothing of it comes from test images.

    Attributes:
        scene: the images.
        form: of the study.
        curves: levels, logits and errors of the pool, where the arm reads them.
        windows: sigma_max of the pool, where the arm reads it.
        pilots: what trainings measured on validation images, by arm.
    """

    scene: Scene
    form: Form
    curves: Mapping[str, NDArray[Any]]
    windows: NDArray[np.float64] | None
    pilots: Mapping[Arm, Measured]


@dataclass(frozen=True)
class Chosen:
    """Levels of references and pool, and what to tell of them."""

    levels: ArmLevels
    sigma_min: Levels
    facts: dict[str, Any]


def levels_of(arm: Arm, known: Known) -> Chosen:
    """Return what an arm may train at which level."""
    decided, facts = _DECIDE[arm](known)
    sigma_min = np.concatenate([np.zeros(len(known.scene.reference)), decided.sigma_min])
    if arm == "classifier_soft":
        slope = np.concatenate([np.full(len(known.scene.reference), np.nan), decided.slope])
        prior = known.form.training.prior
        return Chosen(SoftLevels(sigma_min, slope, _TAU, prior), sigma_min, facts)
    if arm == "ambient":
        return Chosen(ambient(sigma_min), sigma_min, facts)
    if decided.sigma_max is not None:
        sigma_max = np.concatenate([np.zeros(len(known.scene.reference)), decided.sigma_max])
        return Chosen(hard(sigma_min, sigma_max), sigma_min, facts)
    return Chosen(hard(sigma_min), sigma_min, facts)


Decided = tuple[Decisions, dict[str, Any]]


def _everywhere(level: float | None) -> Callable[[Known], Decided]:
    def decide(known: Known) -> Decided:
        policy = FixedPerSource(noise_space=NOISE_SPACE, levels={"*": level})
        return decide_by_source(policy, ["pool"] * len(known.scene.pool)), {}

    return decide


def _fixed(known: Known) -> Decided:
    return _everywhere(known.form.fixed_level)(known)


def _ranked(known: Known, rest: float | None) -> Decided:
    scores, names = sharpness(ScoredPixels(known.scene.pool.pixels)), known.scene.pool.names
    cut_score, cut_tie = rank_border(scores, names, "higher_is_better", 0.5)
    policy = QualityRank(
        noise_space=NOISE_SPACE, pack="classical", column="sharpness", scorer_version="",
        direction="higher_is_better", good_fraction=0.5, cut_score=cut_score, cut_tie=cut_tie,
        sigma_min_rest=rest,
    )  # fmt: skip
    return decide_by_rank(policy, scores, names), {}


def _by_curve(**settings: Any) -> Callable[[Known], Decided]:
    def decide(known: Known) -> Decided:
        policy = ClassifierThreshold(**_COMMON, **settings)
        return decide_by_curve(policy, *_curves(known)), {}

    return decide


def _one_level(known: Known) -> Decided:
    """Take the whole pool for one source."""
    own = own_levels(ClassifierThreshold(**_COMMON), *_curves(known))
    quantile = float(ClassifierPerSource.model_fields["quantile"].default)
    (level,) = levels_of_sources(own, ["pool"] * len(own), quantile).values()
    return _everywhere(level)(known)


def _kept(is_kept: NDArray[np.bool_]) -> Decided:
    """Filter: level 0 for some images, never for the others."""
    policy = FixedPerSource(noise_space=NOISE_SPACE, levels={"kept": 0.0, "out": None})
    return decide_by_source(policy, np.where(is_kept, "kept", "out").tolist()), {}


def _lowest_levels(known: Known) -> Decided:
    """Filter by the classifier, which is told how many images of a mixed pool are undamaged."""
    own = own_levels(ClassifierThreshold(**_COMMON), *_curves(known))
    count = round(len(own) * MIX.count(None) / len(MIX))
    # Among equal levels, by the curve as a whole: the more trusted first.
    order = np.lexsort((-known.curves["logits"].mean(axis=1), own))
    return _kept(np.isin(np.arange(len(own)), order[:count]))


def _by_pilot(known: Known) -> Decided:
    config = PilotConfig(classifier_id="evidence", batches=("pool",))
    measured = [known.pilots[arm] for arm in PILOTS]
    sigmas = measured[0].sigmas
    edges = tuple(float(np.sqrt(a * b)) for a, b in itertools.pairwise(sigmas))
    chosen = choose(compare(measured, edges), config.detail_tolerance)
    taus: list[float | None] = [*config.thresholds, None]
    policy = PilotCalibrated(
        **_COMMON, pilot_id="evidence", edges=edges, tau=tuple(taus[number] for number in chosen)
    )
    return decide_by_pilot(policy, *_curves(known)), {"chosen": [PILOTS[i] for i in chosen]}


def _by_sample_size(known: Known) -> Decided:
    logits, errors, sigmas = _curves(known)
    mean, spread = pool_moments(logits, errors)
    against = evidence(shrink(logits, errors, mean, spread))
    tv, count = against.mean(axis=0), len(known.scene.reference)
    constant = _constant(known, tv, sigmas)
    bounds = [
        best_evidence(column, count, float(sigma), constant)
        for column, sigma in zip(against.T, sigmas, strict=True)
    ]
    policy = SampleSizeAware(
        **_COMMON, constant=constant, n_trusted=count, n_pool=len(logits),
        sigmas=tuple(sigmas.tolist()), tv=tuple(tv.tolist()), mean_logit=tuple(mean.tolist()),
        spread=tuple(spread.tolist()), max_evidence=tuple(bounds),
    )  # fmt: skip
    return decide_by_sample_size(policy, logits, errors, sigmas), {"constant": constant}


def _constant(known: Known, tv_L: Levels, sigmas_L: Levels) -> float:
    """Calibrate the constant by where the whole pool lowered validation loss."""
    everything, alone = (known.pilots[arm] for arm in (PILOTS[0], PILOTS[-1]))
    helps = everything.loss.mean(axis=0) < alone.loss.mean(axis=0)
    at = np.interp(np.log(everything.sigmas), np.log(sigmas_L), tv_L)
    counts = (len(known.scene.reference), len(known.scene.pool))
    try:
        return calibrate_constant(everything.sigmas, at.tolist(), helps.tolist(), *counts)
    except BadInput:
        # The pool helps everywhere or nowhere: a constant far beyond the bound says just that.
        return 1e6 if helps.all() else 1e-6


def _windowed(known: Known) -> Decided:
    if known.windows is None:
        raise ValueError("the windows arm needs windows")
    found, _ = _everywhere(None)(known)
    return _with_windows(found, known.windows), {
        "share_with_window": float((known.windows > 0).mean()),
        "mean_window": float(known.windows.mean()),
    }


def _with_windows(found: Decisions, sigma_max: NDArray[np.float64]) -> Decisions:
    from pipelines.policies.by_window import with_windows

    return with_windows(found, sigma_max)


def _curves(known: Known) -> Sequence[NDArray[Any]]:
    return [known.curves[name] for name in ("logits", "errors", "sigmas")]


_DECIDE: Mapping[Arm, Callable[[Known], Decided]] = {
    "only_reference": _everywhere(None),
    "keep_everything": _everywhere(0.0),
    "all_clean": _everywhere(0.0),
    "best_half": lambda known: _ranked(known, None),
    "fixed_level": _fixed,
    "quality_rank": lambda known: _ranked(known, known.form.fixed_level),
    "classifier_hard": _by_curve(),
    "classifier_soft": _by_curve(soft=True),
    # Its floors are 1.6 times as high as those of the default, 0.45.
    "classifier_strict": _by_curve(tau=0.48),
    "one_level": _one_level,
    "ambient": _by_curve(),
    "above_0.3": _by_curve(tau=0.3, decay_exponent=None),
    "above_0.45": _by_curve(tau=0.45, decay_exponent=None),
    "pilot": _by_pilot,
    "sample_size": _by_sample_size,
    "windows": _windowed,
    "filter_by_level": _lowest_levels,
    # What a perfect filter would keep.
    "filter_oracle": lambda known: _kept(known.scene.is_undamaged),
}
