import hashlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ambient_omni import rng
from pipelines import policies
from pipelines.policies import (
    ClassifierThreshold,
    FixedPerSource,
    QualityRank,
    decide_by_curve,
    decide_by_rank,
    decide_by_source,
    rank_border,
)
from schemas.errors import BadInput, TableMissing

SPACE = "pixel:32x32:lanczos:center:pm1"
DIRECTIONS = ("higher_is_better", "lower_is_better")
SIGMAS = np.geomspace(0.05, 20, 16)


def ids(count):
    return [hashlib.sha256(str(n).encode()).hexdigest() for n in range(count)]


def ranked(scores, good_fraction, direction="higher_is_better", rest=1.5, sample_ids=None):
    """The policy frozen on these very scores, and what it decides of them."""
    sample_ids = ids(len(scores)) if sample_ids is None else sample_ids
    cut_score, cut_tie = rank_border(scores, sample_ids, direction, good_fraction)
    policy = QualityRank(
        noise_space=SPACE,
        pack="classical",
        column="sharpness",
        scorer_version="v",
        direction=direction,
        good_fraction=good_fraction,
        cut_score=cut_score,
        cut_tie=cut_tie,
        sigma_min_rest=rest,
    )
    return policy, decide_by_rank(policy, scores, sample_ids)


# Few distinct values, so that ties are the rule; NaN and infinities among them.
score_lists = st.lists(
    st.sampled_from([np.nan, np.inf, -np.inf, -2.0, -0.0, 0.0, 1.0, 1.5, 3.0]), max_size=40
).map(np.array)
fractions = st.floats(0, 1)
directions = st.sampled_from(DIRECTIONS)
rests = st.sampled_from([None, 0.0, 0.7, 4.0])


@given(score_lists, fractions, directions, rests)
@settings(max_examples=200, deadline=None)
def test_a_better_score_never_gets_a_higher_sigma_min(scores, fraction, direction, rest):
    _, found = ranked(scores.astype(float), fraction, direction, rest)
    level = np.where(np.isnan(found.sigma_min), np.inf, found.sigma_min)
    sign = -1 if direction == "higher_is_better" else 1
    for a in range(len(scores)):
        for b in range(len(scores)):
            if np.isfinite([scores[a], scores[b]]).all() and sign * scores[a] < sign * scores[b]:
                assert level[a] <= level[b]


@given(score_lists, fractions, directions, rests)
@settings(max_examples=200, deadline=None)
def test_exactly_the_fraction_of_the_scored_is_good_and_no_nan_ever_is(
    scores, fraction, direction, rest
):
    _, found = ranked(scores.astype(float), fraction, direction, rest)
    is_scored = np.isfinite(scores.astype(float))
    assert (found.reason == "rank_good").sum() == round(fraction * is_scored.sum())
    assert (found.reason[~is_scored] == "unscored").all()
    assert np.isnan(found.sigma_min[~is_scored]).all()
    assert (found.sigma_min[found.reason == "rank_good"] == 0).all()


@given(score_lists, fractions, directions, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_order_and_company_change_nothing(scores, fraction, direction, random):
    scores = scores.astype(float)
    names = ids(len(scores))
    policy, found = ranked(scores, fraction, direction)
    order = list(range(len(scores)))
    random.shuffle(order)
    shuffled_names = [names[i] for i in order]
    shuffled_policy, shuffled = ranked(
        scores[order], fraction, direction, sample_ids=shuffled_names
    )
    assert shuffled_policy.policy_id == policy.policy_id
    assert np.array_equal(shuffled.sigma_min, found.sigma_min[order], equal_nan=True)
    alone = [decide_by_rank(policy, scores[[i]], [names[i]]).sigma_min[0] for i in order]
    assert np.array_equal(alone, found.sigma_min[order], equal_nan=True)


def test_equal_scores_are_split_by_content_at_the_exact_fraction():
    _, found = ranked(np.full(1000, 7.0), 0.3)
    good = found.reason == "rank_good"
    assert good.sum() == 300
    # By content, not by position: no run at the front.
    assert 60 < good[:300].sum() < 120


def test_no_scored_sample_means_none_is_good():
    policy, found = ranked(np.full(5, np.nan), 1.0)
    assert policy.cut_score is None
    assert set(found.reason) == {"unscored"}


def test_rank_directions_are_opposite():
    scores = np.arange(10.0)
    _, high = ranked(scores, 0.2, "higher_is_better")
    _, low = ranked(scores, 0.2, "lower_is_better")
    assert np.flatnonzero(high.reason == "rank_good").tolist() == [8, 9]
    assert np.flatnonzero(low.reason == "rank_good").tolist() == [0, 1]


def test_a_new_batch_falls_under_the_frozen_border():
    policy, _ = ranked(np.arange(100.0), 0.1)
    later = decide_by_rank(policy, np.array([500.0, 89.5, 90.5]), ids(3))
    assert later.reason.tolist() == ["rank_good", "rank_rest", "rank_good"]


def curve_policy(**overrides):
    return ClassifierThreshold(noise_space=SPACE, classifier_id="c1", **overrides)


def decay(strengths):
    """Logits of images of growing damage: -strength / sigma."""
    return -np.asarray(strengths, float)[:, None] / SIGMAS


def test_curves_become_levels_with_their_reasons():
    logits = np.concatenate([decay([0.5, 2.0]), np.full((1, 16), 3.0), np.full((1, 16), -4.0)])
    logits = np.concatenate([logits, np.full((1, 16), np.nan)])
    policy = curve_policy(decay_exponent=1.0)
    found = decide_by_curve(policy, logits, np.full_like(logits, 0.01), SIGMAS)
    assert found.reason.tolist() == [
        "crossing",
        "crossing",
        "usable_everywhere",
        "never_crosses",
        "unscored",
    ]
    # -strength / sigma = logit(0.45) at sigma = strength / 0.2007.
    assert found.sigma_min[:2] == pytest.approx([2.49, 9.97], rel=0.1)
    assert found.sigma_min[2] == 0
    assert np.isnan(found.sigma_min[3:]).all()
    assert (found.slope[:2] > 0).all()


@given(st.lists(st.floats(0, 50), min_size=2, max_size=20), st.floats(0.3, 0.49))
@settings(max_examples=50, deadline=None)
def test_more_evidence_of_damage_never_gets_a_lower_level(strengths, tau):
    strengths = np.sort(strengths)
    logits = decay(strengths)
    found = decide_by_curve(curve_policy(tau=tau), logits, np.zeros_like(logits), SIGMAS)
    level = np.where(np.isnan(found.sigma_min), np.inf, found.sigma_min)
    assert all(a <= b + 1e-9 for a, b in pairwise(level))


def test_no_samples_are_decided_to_nothing():
    empty = np.empty((0, 16))
    assert len(decide_by_curve(curve_policy(), empty, empty, SIGMAS).reason) == 0
    assert len(ranked(np.empty(0), 0.5)[1].reason) == 0


def test_sources_get_their_level_and_a_forgotten_one_is_refused_by_name():
    policy = FixedPerSource(noise_space=SPACE, levels={"good": 0.0, "made": 2.0, "junk": None})
    found = decide_by_source(policy, ["made", "good", "junk"])
    assert found.sigma_min[:2].tolist() == [2, 0]
    assert np.isnan(found.sigma_min[2])
    with pytest.raises(BadInput, match="no level for source 'web'"):
        decide_by_source(policy, ["good", "web"])
    anything = FixedPerSource(noise_space=SPACE, levels={"good": 0.0, "*": 1.0})
    assert decide_by_source(anything, ["web"]).sigma_min.tolist() == [1.0]


@pytest.mark.parametrize("level", [float("nan"), float("inf"), -0.1])
def test_a_level_that_is_no_sigma_is_refused(level):
    with pytest.raises(ValidationError, match="no sigma"):
        FixedPerSource(noise_space=SPACE, levels={"*": level})


def test_the_id_depends_on_every_parameter_and_not_on_the_name():
    base = curve_policy()
    assert curve_policy(name="other").policy_id == base.policy_id
    assert base.policy_id.startswith("classifier-threshold-")
    others = [
        curve_policy(tau=0.4),
        curve_policy(smoothing_octaves=0.5),
        ClassifierThreshold(noise_space="pixel:64", classifier_id="c1"),
        ClassifierThreshold(noise_space=SPACE, classifier_id="c2"),
    ]
    assert len({policy.policy_id for policy in [base, *others]}) == 5


def test_a_registered_policy_reads_back_and_twice_equals_once(root):
    mine = [
        curve_policy(name="mine"),
        FixedPerSource(noise_space=SPACE, levels={"*": None}),
        ranked(rng.normal((20,), 0, "test-policies"), 0.5)[0],
    ]
    for policy in mine:
        policies.register(root, policy)
    version = root.tables.version("policies")
    for policy in mine:
        policies.register(root, policy)
        again = policies.load(root, policy.policy_id)
        assert again.parameters == policy.parameters
        assert again.policy_id == policy.policy_id
    assert root.tables.version("policies") == version
    assert policies.load(root, mine[0].policy_id).name == "mine"


def test_an_unknown_policy_is_refused_with_the_known_ones(root):
    policies.register(root, curve_policy())
    with pytest.raises(TableMissing, match=r"no policy 'nope' is registered .*class"):
        policies.load(root, "nope")
