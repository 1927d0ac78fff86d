import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ambient_omni import rng
from ambient_omni.noise.eligibility import EligibilityIndex, NoEligibleSample
from ambient_omni.noise.strata import Strata
from ambient_omni.noise.usable import Usable

level = st.sampled_from([0.0, math.nan, 0.1, 0.5, 0.5, 1.0, 2.0])
window = st.sampled_from([0.0, 0.0, 0.05, 0.25, 0.5])
samples = st.lists(
    st.tuples(level, window, st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=25
)
weights = st.lists(st.sampled_from([0.25, 1.0, 3.0]), min_size=7, max_size=7)
sigmas = st.sampled_from([0.03125, 0.25, 0.5, 0.75, 1.5, 4.0])


def chances_by_hand(usable, strata, sigma):
    """The probability of each sample, sample by sample."""
    eligible = usable.at(sigma)
    groups = {int(g) for g, ok in zip(strata.group, eligible, strict=True) if ok}
    total = sum(strata.group_weights[g] for g in groups)
    chances = []
    for i, ok in enumerate(eligible):
        same = [
            strata.source_weights[strata.source[j]]
            for j in np.flatnonzero(eligible)
            if strata.group[j] == strata.group[i]
        ]
        inside = strata.source_weights[strata.source[i]] / sum(same) if ok else 0.0
        chances.append(strata.group_weights[strata.group[i]] / total * inside if ok else 0.0)
    return np.array(chances)


def made(rows, group_weights, source_weights):
    sigma_min, sigma_max, group, source = zip(*rows, strict=True)
    strata = Strata(
        np.array(group, np.uint8),
        np.array(source, np.uint8),
        np.array(group_weights),
        np.array(source_weights),
    )
    return Usable.of(sigma_min, sigma_max), strata


@given(samples, weights, sigmas)
def test_every_sample_gets_the_share_that_its_class_and_source_give_it(rows, weight, sigma):
    usable, strata = made(rows, weight[:4], weight[4:])
    if not usable.at(sigma).any():
        return
    expected = chances_by_hand(usable, strata, sigma)
    index = EligibilityIndex(usable, strata)
    assert index.shares(sigma) == pytest.approx(expected)
    # The draw is a step function of the uniform number: fine even steps measure its lengths.
    uniform = (np.arange(20_000) + 0.5) / 20_000
    drawn = index.draw(np.full(20_000, sigma), uniform)
    assert np.bincount(drawn, minlength=len(rows)) / 20_000 == pytest.approx(
        expected, abs=len(rows) * 2 / 20_000
    )


@given(samples, weights)
def test_the_ends_of_the_uniform_numbers_draw_an_eligible_sample(rows, weight):
    usable, strata = made(rows, weight[:4], weight[4:])
    index = EligibilityIndex(usable, strata)
    for sigma in (0.03125, 0.5, 4.0):
        if usable.at(sigma).any():
            ends = np.array([0.0, np.nextafter(1, 0)])
            assert usable.at(sigma)[index.draw(np.full(2, sigma), ends)].all()


def test_draws_follow_the_weights():
    draw = rng.generator(0, "pool")
    usable = Usable.of(np.exp(draw.normal(-0.5, 1, 300)) * (draw.random(300) < 0.8), np.zeros(300))
    group, source = draw.integers(0, 20, 300).astype(np.uint8), draw.integers(0, 3, 300)
    strata = Strata(
        group, source.astype(np.uint8), np.bincount(group).astype(float), np.array([1.0, 2.0, 0.5])
    )
    index = EligibilityIndex(usable, strata)
    drawn = index.draw(np.full(200_000, 0.5), rng.uniform(200_000, 0, "pick"))
    expected = index.shares(0.5)
    counts = np.bincount(drawn, minlength=300)
    assert counts[expected == 0].sum() == 0
    some = expected > 0
    assert stats.chisquare(counts[some], expected[some] * 200_000).pvalue > 0.01


def test_a_pool_of_nothing_usable_is_an_error_with_strata_too():
    usable, strata = made([(math.nan, 0.0, 0, 0)], [1.0, 1, 1, 1], [1.0, 1, 1])
    with pytest.raises(NoEligibleSample, match="none of 1 samples"):
        EligibilityIndex(usable, strata).draw(np.array([1.0]), np.array([0.5]))
