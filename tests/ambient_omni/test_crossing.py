import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ambient_omni.noise.crossing import (
    MAX_CORRECTION_OCTAVES,
    corrected_tau,
    crossing_interval,
    find_crossings,
    monotone_fit,
)

SIGMAS = np.geomspace(0.02, 20, 24)
logit_curves = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 6), st.just(len(SIGMAS))), elements=st.floats(-8, 8)
)
taus = st.floats(0.3, 0.49)
exponents = st.sampled_from([None, 1.0, 2.0, 4.0])


def comparable(sigma_min: np.ndarray) -> np.ndarray:
    """Null is worse than every level."""
    return np.where(np.isnan(sigma_min), np.inf, sigma_min)


def pool_adjacent_violators(values: np.ndarray) -> np.ndarray:
    """The textbook algorithm, against which the closed form is compared."""
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, count = blocks.pop()
            total = blocks[-1][1] + count
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * count) / total, total]
    return np.concatenate([np.full(int(count), mean) for mean, count in blocks])


def gaussian_model_logits(noise: np.ndarray, sigmas: np.ndarray, dims: int) -> np.ndarray:
    """Mean logit of the best classifier on an image that is N(0, noise^2 I) beside a flat one.

    Trusted: x_t ~ N(0, sigma^2 I). Damaged: x_t ~ N(0, (sigma^2 + s^2) I) in `dims` dimensions.
    E over the damaged of ln p(x | trusted) - ln p(x | damaged) = -KL(damaged || trusted)
    = -dims / 2 (r - ln(1 + r)), r = s^2 / sigma^2.
    """
    r = (noise[:, None] / sigmas) ** 2
    return -dims / 2 * (r - np.log1p(r))


def test_the_gaussian_model_crosses_where_algebra_says():
    noise, dims, tau = np.array([0.05, 0.1, 0.2, 0.4]), 3072, 0.45
    # A chord lies above the curve: between levels a factor 1.35 apart the root is 4 % too high.
    sigmas = np.geomspace(0.02, 20, 200)
    logits = gaussian_model_logits(noise, sigmas, dims)
    found = find_crossings(logits, sigmas, tau, smoothing_octaves=0)
    # r - ln(1 + r) ~ r^2 / 2 for small r: sigma = s (dims / (4 ln((1 - tau) / tau)))^(1/4)
    expected = noise * (dims / (4 * np.log((1 - tau) / tau))) ** 0.25
    np.testing.assert_allclose(found.sigma_min, expected, rtol=0.01)
    assert not found.is_null.any()


def test_a_logit_that_is_a_line_in_log_sigma_gives_its_root_slope_and_error_exactly():
    tau, root, slope = 0.45, 0.7, 0.8
    threshold = np.log(tau / (1 - tau))
    line = threshold + slope * np.log(SIGMAS / root)
    error = np.full((1, len(SIGMAS)), 0.1)
    found = find_crossings(line[None], SIGMAS, tau, standard_error_NL=error, smoothing_octaves=0)
    assert found.sigma_min[0] == pytest.approx(root)
    assert found.slope[0] == pytest.approx(slope)
    assert found.standard_error_octaves[0] == pytest.approx(0.1 / (slope * np.log(2)))


def test_smoothing_leaves_the_root_of_a_line_where_it_is():
    tau = 0.45
    line = np.log(tau / (1 - tau)) + 0.5 * np.log(SIGMAS / 0.7)
    found = find_crossings(line[None], SIGMAS, tau, smoothing_octaves=0.3)
    assert found.sigma_min[0] == pytest.approx(0.7, rel=0.01)


def test_never_crossing_is_null_and_not_the_top_level():
    found = find_crossings(np.full((1, len(SIGMAS)), -3.0), SIGMAS, 0.45)
    assert found.is_null[0]
    assert np.isnan(found.sigma_min[0])
    assert np.isnan(found.slope[0])


def test_above_at_every_level_is_zero_and_not_the_lowest_level():
    found = find_crossings(np.full((1, len(SIGMAS)), 0.5), SIGMAS, 0.45)
    assert found.sigma_min[0] == 0.0
    assert not found.is_null[0]


def test_an_image_that_looks_trusted_only_at_low_levels_is_null():
    falling = np.where(SIGMAS < 0.5, 6.0, -6.0)
    assert find_crossings(falling[None], SIGMAS, 0.45).is_null[0]


def test_one_doubtful_level_amid_trusted_ones_is_not_damage():
    curve = np.full(len(SIGMAS), 0.8)
    curve[10] = -0.4
    assert find_crossings(curve[None], SIGMAS, 0.45).sigma_min[0] == 0.0


def test_an_untrained_classifier_says_zero_everywhere():
    """Why every classifier passes a positive control before its curves are believed."""
    found = find_crossings(np.zeros((3, len(SIGMAS))), SIGMAS, 0.45)
    np.testing.assert_array_equal(found.sigma_min, 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_curve_that_is_not_finite_is_null_and_spoils_no_other(bad):
    curves = np.full((2, len(SIGMAS)), 0.5)
    curves[0, 3] = bad
    found = find_crossings(curves, SIGMAS, 0.45)
    np.testing.assert_array_equal(found.is_null, [True, False])


def test_no_images_give_empty_arrays():
    found = find_crossings(np.empty((0, len(SIGMAS))), SIGMAS, 0.45)
    assert found.sigma_min.shape == found.slope.shape == (0,)


@pytest.mark.parametrize(
    ("sigmas", "tau"),
    [(SIGMAS[::-1], 0.45), (SIGMAS[:-1], 0.45), (SIGMAS - 1, 0.45), (SIGMAS, 0.0), (SIGMAS, 1.0)],
)
def test_wrong_arguments_are_refused(sigmas, tau):
    with pytest.raises(ValueError, match=r"levels|tau"):
        find_crossings(np.zeros((1, len(SIGMAS))), sigmas, tau)


@given(
    hnp.arrays(
        np.float64, st.tuples(st.integers(1, 4), st.integers(1, 30)), elements=st.floats(-100, 100)
    )
)
def test_the_monotone_fit_is_that_of_pool_adjacent_violators(values):
    expected = np.stack([pool_adjacent_violators(row) for row in values])
    np.testing.assert_allclose(monotone_fit(values), expected, atol=1e-9)


@given(logit_curves, taus, taus, exponents)
def test_a_higher_threshold_never_lowers_sigma_min(logits, first, second, exponent):
    low, high = sorted((first, second))
    at_low, at_high = (
        comparable(find_crossings(logits, SIGMAS, tau, decay_exponent=exponent).sigma_min)
        for tau in (low, high)
    )
    assert np.all(at_high >= at_low * (1 - 1e-9))


@given(logit_curves, taus, exponents, st.data())
def test_worse_logits_never_lower_sigma_min(logits, tau, exponent, data):
    drop = data.draw(hnp.arrays(np.float64, logits.shape, elements=st.floats(0, 5)))
    better = comparable(find_crossings(logits, SIGMAS, tau, decay_exponent=exponent).sigma_min)
    worse = comparable(
        find_crossings(logits - drop, SIGMAS, tau, decay_exponent=exponent).sigma_min
    )
    assert np.all(worse >= better * (1 - 1e-9))


@given(logit_curves, st.randoms(use_true_random=False))
def test_permuting_images_permutes_the_answers(logits, random):
    order = random.sample(range(len(logits)), len(logits))
    direct = find_crossings(logits, SIGMAS, 0.45)
    permuted = find_crossings(logits[order], SIGMAS, 0.45)
    np.testing.assert_array_equal(permuted.is_null, direct.is_null[order])
    np.testing.assert_allclose(permuted.sigma_min, direct.sigma_min[order], rtol=1e-12)


@settings(max_examples=50)
@given(logit_curves)
def test_every_answer_is_zero_null_or_within_the_levels(logits):
    found = find_crossings(logits, SIGMAS, 0.45, standard_error_NL=np.abs(logits))
    inside = found.sigma_min[~found.is_null & (found.sigma_min > 0)]
    assert np.all((inside >= SIGMAS[0] * (1 - 1e-9)) & (inside <= SIGMAS[-1] * (1 + 1e-9)))
    np.testing.assert_array_equal(found.is_null, np.isnan(found.sigma_min))
    has_crossing = ~found.is_null & (found.sigma_min > 0)
    assert np.all(found.standard_error_octaves[has_crossing] >= 0)
    assert np.all(found.slope[has_crossing] >= 0)


def decaying(sigma_min: np.ndarray, tau: float, exponent: float) -> np.ndarray:
    """Curves -logit = t (sigma_min / sigma)^p, on a fine grid."""
    return np.log(tau / (1 - tau)) * (sigma_min[:, None] / FINE) ** exponent


FINE = np.geomspace(0.02, 20, 300)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 4.0])
def test_a_power_law_of_the_stated_exponent_gives_its_sigma_min(exponent):
    truth = np.array([0.8, 1.0, 3.0])
    curves = decaying(truth, 0.45, exponent)
    found = find_crossings(curves, FINE, 0.45, smoothing_octaves=0, decay_exponent=exponent)
    np.testing.assert_allclose(found.sigma_min, truth, rtol=0.01)


def test_a_bump_on_the_flat_end_moves_the_level_less_through_the_decay():
    clean = decaying(np.array([1.0]), 0.45, 2.0)
    bumped = clean - 0.15 * np.exp(-0.5 * (np.log(FINE / 1.5) / 0.3) ** 2)
    direct = (
        find_crossings(bumped, FINE, 0.45).sigma_min / find_crossings(clean, FINE, 0.45).sigma_min
    )
    through = (
        find_crossings(bumped, FINE, 0.45, decay_exponent=2.0).sigma_min
        / find_crossings(clean, FINE, 0.45, decay_exponent=2.0).sigma_min
    )
    assert 1 < through[0] < direct[0]


def test_a_curve_of_another_shape_loses_at_most_the_stated_octaves():
    shallow = np.where(SIGMAS < 5, -0.7, 0.0)[None]
    direct = find_crossings(shallow, SIGMAS, 0.45).sigma_min[0]
    through = find_crossings(shallow, SIGMAS, 0.45, decay_exponent=2.0).sigma_min[0]
    assert direct / 2**MAX_CORRECTION_OCTAVES <= through


def test_what_decays_only_beyond_the_levels_is_null():
    found = find_crossings(decaying(np.array([60.0]), 0.45, 2.0), FINE, 0.45, decay_exponent=2.0)
    assert found.is_null[0]
    assert np.isnan(found.sigma_min[0])


def test_a_decay_to_one_half_cannot_be_held_against_a_threshold_above_it():
    with pytest.raises(ValueError, match="below 1/2"):
        find_crossings(np.zeros((1, len(SIGMAS))), SIGMAS, 0.5, decay_exponent=2.0)


def test_the_interval_of_a_line_is_its_error_over_its_slope_on_either_side():
    tau, root, slope, error = 0.45, 0.7, 0.8, 0.2
    line = np.log(tau / (1 - tau)) + slope * np.log(SIGMAS / root)
    low, high = crossing_interval(
        line[None], SIGMAS, tau, np.full((1, len(SIGMAS)), error), mass=0.9, smoothing_octaves=0
    )
    reach = 1.6448536 * error / slope
    assert np.log(high[0] / root) == pytest.approx(reach, rel=1e-6)
    assert np.log(root / low[0]) == pytest.approx(reach, rel=1e-6)


def test_an_interval_can_reach_zero_and_null():
    curves = np.stack([np.full(len(SIGMAS), -0.25), np.full(len(SIGMAS), 0.5)])
    low, high = crossing_interval(curves, SIGMAS, 0.45, np.full(curves.shape, 0.2))
    assert low[0] == 0
    assert np.isnan(high[0])
    np.testing.assert_array_equal([low[1], high[1]], 0)


@given(logit_curves, taus, exponents)
@settings(max_examples=50, deadline=None)
def test_the_level_lies_inside_its_interval(curves, tau, exponent):
    found = find_crossings(curves, SIGMAS, tau, decay_exponent=exponent)
    low, high = crossing_interval(
        curves, SIGMAS, tau, np.full(curves.shape, 0.3), decay_exponent=exponent
    )
    level = comparable(found.sigma_min)
    assert (comparable(low) <= level + 1e-9).all()
    assert (level <= comparable(high) + 1e-9).all()


def test_a_corrected_threshold_bounds_the_bad_part_as_tau_bounds_a_bad_pool():
    tau, share = 0.45, 0.5
    corrected = corrected_tau(tau, share)
    pool_to_trusted = (1 - corrected) / corrected
    bad_to_trusted = (pool_to_trusted - share) / (1 - share)
    assert bad_to_trusted == pytest.approx((1 - tau) / tau)
    assert corrected_tau(tau, 0.0) == pytest.approx(tau)
    assert corrected_tau(tau, 1.0) == pytest.approx(0.5)


def test_a_share_outside_zero_to_one_is_refused():
    with pytest.raises(ValueError, match="good share"):
        corrected_tau(0.45, 1.2)
