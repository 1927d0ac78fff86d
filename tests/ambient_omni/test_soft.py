import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ambient_omni import rng
from ambient_omni.noise.eligibility import EligibilityIndex, NoEligibleSample, require_every_level
from ambient_omni.noise.priors import LogNormalPrior
from ambient_omni.noise.soft import SoftDrawer, acceptance, lowest_accepted, rate_of_slope
from ambient_omni.noise.strata import Strata
from ambient_omni.noise.usable import Usable

TAU = 0.45


def logit(share):
    return math.log(share / (1 - share))


def test_acceptance_is_the_odds_of_the_curve_that_has_the_threshold_and_the_slope():
    slope, sigma_min = 0.6, 0.7
    rate = rate_of_slope([slope], TAU)
    ln = np.log(acceptance([sigma_min * 0.999, sigma_min, sigma_min * 1.001], sigma_min, rate, TAU))
    assert ln[1] == pytest.approx(logit(TAU))
    assert (ln[2] - ln[0]) / (math.log(1.001) - math.log(0.999)) == pytest.approx(slope, rel=1e-4)
    far = acceptance([1e-3, 1e6], sigma_min, rate, TAU)
    assert far[0] == 0
    assert far[1] == pytest.approx(1)


def test_zero_is_accepted_everywhere_null_nowhere_and_no_slope_is_a_hard_floor():
    sigma_min, rate = np.array([0.0, math.nan, 0.5]), rate_of_slope([1.0, 1.0, math.nan], TAU)
    assert acceptance(0.4, sigma_min, rate, TAU).tolist() == [1, 0, 0]
    assert acceptance(0.5, sigma_min, rate, TAU).tolist() == [1, 0, 1]
    assert np.isnan(rate_of_slope([0.0, -1.0], TAU)).all()


@given(st.floats(0.05, 5), st.floats(0.2, 6))
def test_nothing_is_accepted_below_the_level_that_is_said(sigma_min, rate):
    end = lowest_accepted([sigma_min], [rate], TAU)
    assert acceptance(end * 0.999, sigma_min, rate, TAU) == 0
    assert acceptance(end * 1.001, sigma_min, rate, TAU) > 0


def pool(count=4000):
    draw = rng.generator(0, "soft pool")
    sigma_min = np.exp(draw.normal(-0.5, 0.8, count))
    sigma_min[:300], sigma_min[300:500] = 0, math.nan
    slope = np.exp(draw.normal(-0.5, 0.5, count))
    slope[500:900] = math.nan
    sigma_max = np.where(np.arange(count) >= count - 200, 0.05, 0.0)
    return sigma_min, sigma_max, slope


def test_what_cells_and_bands_cost_is_below_one_percent_at_every_level():
    drawer = SoftDrawer(*pool(), TAU)
    errors = [drawer.quantisation_error(sigma) for sigma in np.geomspace(0.01, 20, 60)]
    assert max(errors) < 0.01
    assert max(errors) > 0


def test_no_sample_is_drawn_below_the_level_that_is_said():
    # Two references and a pool that comes in from far below its levels.
    count, low = 20_000, np.geomspace(1e-6, 0.05, 4000)
    draw = rng.generator(0, "few references")
    sigma_min = np.exp(draw.normal(0.0, 0.5, count))
    sigma_min[:2] = 0
    slope = np.exp(draw.normal(-0.5, 0.3, count))
    drawer = SoftDrawer(sigma_min, np.zeros(count), slope, TAU)
    end = lowest_accepted(sigma_min, rate_of_slope(slope, TAU), TAU)
    for bounds in ((0.0, 1.0), (1.0 - 1e-3, 1.0)):  # the last of the draws are the soft ones
        index = drawer.draw(low, bounds[0] + (bounds[1] - bounds[0]) * rng.uniform(4000, 0, "pick"))
        assert (low.astype(np.float32) >= end[index]).all()
        assert (index >= 2).any()


def test_counts_are_the_sums_of_the_acceptances():
    sigma_min, sigma_max, slope = pool()
    drawer = SoftDrawer(sigma_min, sigma_max, slope, TAU)
    plain = np.where(sigma_max > 0, math.nan, slope)
    levels = np.array([0.03125, 0.25, 2.0])
    for sigma, counted in zip(levels, drawer.count(levels), strict=True):
        weight = acceptance(sigma, sigma_min, rate_of_slope(plain, TAU), TAU)
        assert counted == pytest.approx(np.maximum(weight, sigma <= sigma_max).sum(), rel=0.01)


def test_shares_are_the_acceptances_of_all_samples():
    sigma_min, sigma_max, slope = pool()
    drawer = SoftDrawer(sigma_min, sigma_max, slope, TAU)
    plain = np.where(sigma_max > 0, math.nan, slope)
    for sigma in (0.03125, 0.25, 2.0):
        weight = acceptance(sigma, sigma_min, rate_of_slope(plain, TAU), TAU)
        weight = np.maximum(weight, sigma <= sigma_max)
        assert drawer.shares(sigma) == pytest.approx(weight / weight.sum())


def test_draws_are_distributed_as_the_cells_say():
    draw = rng.generator(0, "sources")
    strata = Strata(
        np.zeros(4000, np.uint8),
        draw.integers(0, 2, 4000).astype(np.uint8),
        np.ones(1),
        np.array([1.0, 3.0]),
    )
    drawer = SoftDrawer(*pool(), TAU, strata=strata)
    drawn = drawer.draw(np.full(400_000, 0.375), rng.uniform(400_000, 0, "pick"))
    expected = drawer.drawn_shares(0.375)
    counts = np.bincount(drawn, minlength=4000)
    assert counts[expected == 0].sum() == 0
    some = expected > 0
    assert stats.chisquare(counts[some], expected[some] * 400_000).pvalue > 0.01
    assert drawer.quantisation_error(0.375) < 0.01


def test_without_slopes_soft_and_hard_floors_draw_the_same_samples():
    sigma_min, sigma_max, _ = pool()
    soft = SoftDrawer(sigma_min, sigma_max, np.full(4000, math.nan), TAU)
    hard = EligibilityIndex(Usable.of(sigma_min, sigma_max))
    sigma, uniform = np.geomspace(0.02, 9, 1000), rng.uniform(1000, 0, "pick")
    assert (soft.draw(sigma, uniform) == hard.draw(sigma, uniform)).all()
    assert soft.gap() == hard.gap()


def test_levels_that_no_sample_is_accepted_at_are_named():
    drawer = SoftDrawer(np.array([1.0]), np.zeros(1), np.array([1.0]), TAU)
    low, high = drawer.gap()
    end = lowest_accepted([1.0], rate_of_slope([1.0], TAU), TAU)[0]
    assert low == 0
    # The end of the strictest sample that could be in its cell.
    assert end <= high <= end * 1.1
    with pytest.raises(NoEligibleSample, match="none of 1 samples may be used at 0 < sigma"):
        require_every_level(drawer, LogNormalPrior(), 1)
    with pytest.raises(NoEligibleSample, match="none of 1 samples is accepted"):
        drawer.draw(np.array([1e-3]), np.array([0.5]))
    assert drawer.draw(np.array([high * 1.05]), np.array([0.5])).tolist() == [0]


def test_a_threshold_of_one_half_or_classes_have_no_soft_floors():
    with pytest.raises(ValueError, match=r"between 0 and 0\.5"):
        rate_of_slope([1.0], 0.5)
    classes = Strata(np.zeros(1, np.uint8), np.zeros(1, np.uint8), np.ones(2), np.ones(1))
    with pytest.raises(ValueError, match="not of classes"):
        SoftDrawer(np.ones(1), np.zeros(1), np.ones(1), TAU, strata=classes)
