import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambient_omni.noise.priors import LogNormalPrior
from ambient_omni.noise.usable import Usable, effective_samples_per_band, hidden_level, kappa

level = st.one_of(st.just(0.0), st.just(math.nan), st.just(math.inf), st.floats(1e-3, 50))
window = st.one_of(st.just(0.0), st.floats(1e-3, 50))


def by_definition(sigma, sigma_min, sigma_max, margin):
    above = not math.isnan(sigma_min) and sigma >= margin * sigma_min
    return above or sigma <= sigma_max


@given(level, window, st.floats(1e-3, 100), st.sampled_from([1.0, kappa("ambient", 4)]))
def test_the_normalised_set_is_the_set_of_the_definition(sigma_min, sigma_max, sigma, margin):
    usable = Usable.of([sigma_min], [sigma_max], margin)
    assert usable.at(sigma)[0] == by_definition(sigma, sigma_min, sigma_max, margin)


@given(level, window)
def test_floor_and_window_never_overlap_after_normalising(sigma_min, sigma_max):
    usable = Usable.of([sigma_min], [sigma_max])
    floor, below = usable.floor[0], usable.window[0]
    assert below < floor or floor == below == 0


def test_the_gated_objective_needs_no_margin_and_the_ambient_one_bounds_the_amplification():
    assert kappa("gated") == 1
    for bound in (1.5, 4.0, 16.0):
        margin, sigma_min = kappa("ambient", bound), 0.7
        sigma = margin * sigma_min
        assert sigma**2 / (sigma**2 - sigma_min**2) == pytest.approx(bound)
    with pytest.raises(ValueError, match="greater than 1"):
        kappa("ambient", 1.0)


def test_null_means_at_no_high_level_whether_nan_or_infinite():
    usable = Usable.of([math.nan, math.inf], [0.0, 0.5])
    assert not usable.at(1e6).any()
    assert usable.at(0.4).tolist() == [False, True]
    assert usable.num_never_usable == 1


class FromTo:
    """A prior of levels between two ends."""

    def __init__(self, lowest, highest):
        self.ends = lowest, highest

    def sigma_of(self, uniform):
        return self.ends[0] + uniform * (self.ends[1] - self.ends[0])


def test_samples_that_no_level_of_the_prior_reaches_are_counted():
    #            never   above  at the end  inside  free  windows: above, below the lowest, null
    sigma_min = [math.nan, 3.0, 2.0, 1.0, 0.0, 3.0, 3.0, math.nan]
    sigma_max = [0.0, 0.0, 0.0, 0.0, 0.0, 0.7, 0.3, 0.7]
    usable = Usable.of(sigma_min, sigma_max)
    # The highest level is a hair below 2.
    assert usable.num_unreachable(FromTo(0.5, 2.0)) == 4
    assert usable.num_unreachable(FromTo(0.5, 2.1)) == 3
    assert usable.num_unreachable(FromTo(0.1, 4.0)) == usable.num_never_usable == 1
    margin = kappa("ambient", 4)
    assert Usable.of(sigma_min, sigma_max, margin).num_unreachable(FromTo(0.5, 2.1)) == 4
    assert Usable.of([1.0] * 3, np.zeros(3)).num_unreachable(LogNormalPrior(highest=0.9)) == 3


@given(st.lists(st.tuples(level, window), min_size=1, max_size=20), st.floats(0.01, 5))
def test_what_is_unreachable_is_usable_at_no_level_between_the_ends(samples, lowest):
    sigma_min, sigma_max = map(np.array, zip(*samples, strict=True))
    usable, prior = Usable.of(sigma_min, sigma_max), FromTo(lowest, 3 * lowest)
    ends = prior.sigma_of(np.array([0.0, np.nextafter(1, 0)]))
    # The sets are unions of two half-lines, so the ends decide.
    reached = usable.at(ends[0]) | usable.at(ends[1])
    assert usable.num_unreachable(prior) == (~reached).sum()


def test_negative_levels_and_a_window_that_is_not_a_number_are_refused():
    for sigma_min, sigma_max in ((-1.0, 0.0), (0.0, -1.0), (0.0, math.nan)):
        with pytest.raises(ValueError, match="must not be negative"):
            Usable.of([sigma_min], [sigma_max])


def test_only_the_ambient_objective_above_the_floor_hides_the_image():
    margin = kappa("ambient", 4)
    usable = Usable.of([0.5, 0.5, 0.0, math.nan], [0.0, 0.2, 0.0, 0.3], margin)
    sigma = np.array([1.0, 0.1, 1.0, 0.2])
    assert hidden_level(sigma, usable.floor, "ambient", margin) == pytest.approx([0.5, 0, 0, 0])
    assert hidden_level(sigma, usable.floor, "gated", 1.0).tolist() == [0, 0, 0, 0]


@given(st.lists(st.tuples(level, window), min_size=1, max_size=20))
def test_effective_samples_per_band_agree_with_counting_on_a_fine_grid(samples):
    sigma_min, sigma_max = map(np.array, zip(*samples, strict=True))
    bands = np.array([0.01, 0.1, 1.0, 10.0])
    grid = np.exp(np.linspace(np.log(0.01), np.log(10.0), 30_001))
    usable = Usable.of(sigma_min, sigma_max)
    count = sum(
        (grid >= floor) | (grid <= below)
        for floor, below in zip(usable.floor, usable.window, strict=True)
    )
    counted = [count[10_000 * b : 10_000 * (b + 1)].mean() for b in range(3)]
    exact = effective_samples_per_band(sigma_min, sigma_max, bands)
    assert exact == pytest.approx(counted, abs=len(samples) * 2e-4)
