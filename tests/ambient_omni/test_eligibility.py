import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ambient_omni import rng
from ambient_omni.noise.eligibility import (
    EligibilityIndex,
    NoEligibleSample,
    as_float32,
    outside_gap,
    require_every_level,
)
from ambient_omni.noise.levels import BetaSchedule
from ambient_omni.noise.priors import DdpmPrior, LogNormalPrior
from ambient_omni.noise.usable import Usable

# Few distinct values, so that ties are common.
level = st.sampled_from([0.0, math.nan, math.inf, 0.1, 0.5, 0.5, 1.0, 2.0, 7.0])
window = st.sampled_from([0.0, 0.0, 0.05, 0.1, 0.5, 3.0])
pools = st.lists(st.tuples(level, window), min_size=1, max_size=30)
sigmas = st.one_of(st.sampled_from([0.05, 0.1, 0.5, 1.0, 2.0, 7.0]), st.floats(0.01, 20)).map(
    lambda sigma: float(np.float32(sigma))
)


def usable_of(samples):
    sigma_min, sigma_max = zip(*samples, strict=True)
    return Usable.of(sigma_min, sigma_max)


@given(pools, sigmas)
def test_the_draws_at_a_level_are_exactly_the_eligible_samples_each_once(samples, sigma):
    usable = usable_of(samples)
    index = EligibilityIndex(usable)
    expected = np.flatnonzero(usable.at(sigma))
    assert index.count(np.array([sigma]))[0] == len(expected)
    if len(expected):
        # One uniform number from the middle of each of the equal shares.
        uniform = (np.arange(len(expected)) + 0.5) / len(expected)
        drawn = index.draw(np.full(len(expected), sigma), uniform)
        assert sorted(drawn) == expected.tolist()


@given(pools)
def test_the_gap_is_where_nothing_is_eligible(samples):
    usable = usable_of(samples)
    gap = EligibilityIndex(usable).gap()
    for sigma in np.geomspace(0.011, 19, 50):
        empty = not usable.at(sigma).any()
        assert empty == (gap is not None and gap[0] < sigma < gap[1])


def pool_of_every_kind():
    draw = rng.generator(0, "pool")
    sigma_min = np.exp(draw.normal(-0.5, 1, 60))
    sigma_min[:10], sigma_min[10:20] = 0, math.nan
    sigma_max = np.where(draw.random(60) < 0.4, np.exp(draw.normal(-1.5, 1, 60)), 0)
    return Usable.of(sigma_min, sigma_max)


def test_the_marginal_of_sigma_is_the_prior_and_the_conditional_is_uniform():
    usable, prior, count = pool_of_every_kind(), LogNormalPrior(), 400_000
    sigma = as_float32(prior.sigma_of(rng.uniform(count, 1, "level")))
    drawn = EligibilityIndex(usable).draw(sigma, rng.uniform(count, 1, "pick"))
    assert ((sigma >= usable.floor[drawn]) | (sigma <= usable.window[drawn])).all()
    assert stats.kstest(np.log(sigma), "norm", (-1.2, 1.2)).pvalue > 0.01
    edges = np.unique(np.concatenate([[0], usable.floor, usable.window, [np.inf]]))
    pvalues = []
    for low, high in itertools.pairwise(edges):
        # Between two neighbouring edges the eligible set is the same.
        here = (sigma > low) & (sigma < high)
        eligible = np.flatnonzero(usable.at(max((low + min(high, 1e9)) / 2, 1e-12)))
        counts = np.bincount(drawn[here], minlength=60)
        assert counts.sum() == counts[eligible].sum()
        if here.sum() > 10 * len(eligible):
            pvalues.append(stats.chisquare(counts[eligible]).pvalue)
    assert len(pvalues) > 20
    assert stats.kstest(pvalues, "uniform").pvalue > 0.001


def test_a_pool_of_bad_images_costs_no_more_than_it_has_levels():
    usable = Usable.of(np.r_[0.0, np.full(1000, 1.9)], np.zeros(1001))
    drawn = EligibilityIndex(usable).draw(np.full(1000, 0.3), rng.uniform(1000, 0, "u"))
    assert (drawn == 0).all()


def test_levels_without_an_eligible_sample_are_named_before_training_starts():
    index = EligibilityIndex(Usable.of([0.5, math.nan], [0.0, 0.1]))
    with pytest.raises(NoEligibleSample, match=r"0\.1 < sigma < 0\.5.*% of the prior's levels"):
        require_every_level(index, LogNormalPrior(), 2)
    require_every_level(index, LogNormalPrior(lowest=0.5), 2)
    joined = EligibilityIndex(Usable.of([0.5, math.nan], [0.0, 0.5]))
    require_every_level(joined, LogNormalPrior(), 2)


def test_a_prior_whose_lowest_level_is_the_lowest_floor_is_served():
    table = BetaSchedule().sigmas
    index = EligibilityIndex(Usable.of([table[500], math.nan], [0.0, table[200]]))
    require_every_level(index, DdpmPrior(lowest=table[500]), 2)
    require_every_level(index, DdpmPrior(highest=table[200]), 2)
    with pytest.raises(NoEligibleSample, match=r"0\.20% of the prior"):
        require_every_level(index, DdpmPrior(lowest=table[499] * 0.999), 2)


def test_a_pool_of_nothing_usable_is_an_error_at_the_draw_and_before():
    index = EligibilityIndex(Usable.of([math.nan], [0.0]))
    with pytest.raises(NoEligibleSample, match=r"100\.00% of the prior"):
        require_every_level(index, LogNormalPrior(), 2)
    with pytest.raises(NoEligibleSample, match="none of 1 samples may be used at sigma 1"):
        index.draw(np.array([1.0]), np.array([0.5]))


def test_the_largest_uniform_number_still_picks_a_sample():
    index = EligibilityIndex(Usable.of(np.zeros(3), np.zeros(3)))
    assert index.draw(np.array([1.0]), np.array([np.nextafter(1, 0)]))[0] == 2


def test_a_level_that_rounding_brings_into_the_gap_is_moved_to_its_usable_end():
    # 0.7 is not a float32 number; the nearest one is below it.
    index = EligibilityIndex(Usable.of([0.7, math.nan], [0.0, 0.3]))
    assert float(np.float32(0.7)) < 0.7
    moved = outside_gap(np.array([0.3, 0.7, 1.0, 0.2]), index.gap())
    assert (moved == moved.astype(np.float32)).all()
    assert moved == pytest.approx([0.3, 0.7, 1.0, 0.2])
    assert index.count(moved).tolist() == [1, 1, 1, 1]


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.sampled_from([1.0, 1.1547005383792515]))
def test_no_rounding_makes_a_sample_usable_below_its_floor(sigma_min, sigma_max, kappa):
    usable = Usable.of([sigma_min], [sigma_max], kappa)
    index = EligibilityIndex(usable)
    near = np.float32(kappa * sigma_min)
    edge, huge = np.float32(sigma_max), np.float32(9e9)
    near_floor = [np.nextafter(near, np.float32(0)), near, np.nextafter(near, huge)]
    levels = np.array([*near_floor, edge, np.nextafter(edge, huge)], np.float64)
    assert (index.count(levels) == usable.at(levels[:, None])[:, 0]).all()


def test_the_order_of_equal_floors_is_that_of_the_samples_whatever_the_sort():
    floors = np.tile([0.5, 0.25, 0.0], 1000)
    index = EligibilityIndex(Usable.of(floors, np.zeros(3000)))
    drawn = index.draw(np.full(3000, 1.0), (np.arange(3000) + 0.5) / 3000)
    assert drawn.tolist() == np.argsort(floors, kind="stable").tolist()
