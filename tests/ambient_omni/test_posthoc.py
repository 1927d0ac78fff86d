import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambient_omni import rng
from ambient_omni.training.posthoc import (
    Profile,
    gamma_of_sigma_rel,
    mismatch,
    power_decay,
    reconstruction,
    sigma_rel_of_gamma,
)


def test_the_widths_that_edm2_tracks_have_the_exponents_that_it_names():
    assert gamma_of_sigma_rel(0.05) == pytest.approx(16.97, abs=5e-3)
    assert gamma_of_sigma_rel(0.10) == pytest.approx(6.94, abs=5e-3)


@given(st.floats(0.01, 0.288))
def test_width_and_exponent_are_inverse(sigma_rel):
    assert sigma_rel_of_gamma(gamma_of_sigma_rel(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-6)


@given(st.floats(0.02, 0.28))
def test_sigma_rel_is_the_standard_deviation_of_the_profile(sigma_rel):
    gamma, tau = gamma_of_sigma_rel(sigma_rel), (np.arange(200_000) + 0.5) / 200_000
    weight = (gamma + 1) * tau**gamma / len(tau)
    mean = (weight * tau).sum()
    assert np.sqrt((weight * (tau - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=1e-4)


@pytest.mark.parametrize("sigma_rel", [0.0, -1.0, 0.29, 1.0])
def test_widths_of_no_profile_are_refused(sigma_rel):
    with pytest.raises(ValueError, match="sigma_rel"):
        gamma_of_sigma_rel(sigma_rel)


def trajectory(steps, batch, gamma):
    """A recorded walk of a weight, and its average after every step by the update rule."""
    weights = np.cumsum(rng.generator(0, "walk").standard_normal(steps)) + 5
    average, averages = 1e9, []
    for step, weight in enumerate(weights):
        decay = power_decay(gamma, (step + 1) * batch, batch)
        average = decay * average + (1 - decay) * weight
        averages.append(average)
    return weights, np.array(averages)


@given(st.floats(0.03, 0.28), st.integers(1, 64))
def test_the_update_gives_the_exact_average_of_the_recorded_weights(sigma_rel, batch):
    gamma = gamma_of_sigma_rel(sigma_rel)
    weights, averages = trajectory(50, batch, gamma)
    # The profile's integral over each step, during which the weight is constant.
    ends = (np.arange(51) / 50) ** (gamma + 1)
    assert averages[-1] == pytest.approx((weights * np.diff(ends)).sum(), rel=1e-9)


def snapshots(steps, every, widths):
    gammas = [gamma_of_sigma_rel(width) for width in widths]
    values = {gamma: trajectory(steps, 1, gamma)[1] for gamma in gammas}
    times = range(every, steps + 1, every)
    profiles = [Profile(gamma, time) for time in times for gamma in gammas]
    return profiles, np.array([values[p.gamma][int(p.time) - 1] for p in profiles])


@pytest.mark.parametrize("sigma_rel", [0.06, 0.08, 0.12, 0.15, 0.2])
@pytest.mark.parametrize("end", [4000, 2000])
def test_other_widths_and_times_are_reconstructed_from_two_tracked_widths(sigma_rel, end):
    profiles, values = snapshots(4000, 200, (0.05, 0.1))
    wanted = Profile(gamma_of_sigma_rel(sigma_rel), end)
    mixed = reconstruction(profiles, wanted) @ values
    exact = trajectory(4000, 1, wanted.gamma)[1][end - 1]
    spread = trajectory(4000, 1, 1.0)[0].std()
    assert abs(mixed - exact) < 0.03 * spread


def test_a_tracked_average_is_its_own_reconstruction():
    profiles, _ = snapshots(100, 25, (0.05, 0.1))
    for place, profile in enumerate(profiles):
        expected = np.eye(len(profiles))[place]
        assert reconstruction(profiles, profile) == pytest.approx(expected, abs=1e-6)


def test_the_mix_is_the_least_squares_one():
    profiles = [Profile(17.0, 4.0), Profile(7.0, 4.0), Profile(17.0, 8.0), Profile(7.0, 8.0)]
    wanted = Profile(3.0, 8.0)
    tau = (np.arange(20_000) + 0.5) / 20_000 * 8
    curves = np.stack([curve(profile, tau) for profile in profiles], axis=1)
    numeric = np.linalg.lstsq(curves, curve(wanted, tau), rcond=None)[0]
    assert reconstruction(profiles, wanted) == pytest.approx(numeric, rel=1e-3, abs=1e-3)


def curve(profile, tau):
    inside = tau <= profile.time
    scale = (profile.gamma + 1) / profile.time
    return np.where(inside, scale * (tau / profile.time) ** profile.gamma, 0)


def test_the_mismatch_is_the_distance_between_mix_and_profile():
    profiles = [Profile(17.0, 4.0), Profile(7.0, 4.0), Profile(17.0, 8.0), Profile(7.0, 8.0)]
    tau = (np.arange(20_000) + 0.5) / 20_000 * 8
    curves = np.stack([curve(profile, tau) for profile in profiles], axis=1)
    for wanted, close in ((Profile(9.0, 8.0), True), (Profile(9.0, 6.0), False)):
        mix = reconstruction(profiles, wanted)
        exact = curve(wanted, tau)
        off = np.linalg.norm(curves @ mix - exact) / np.linalg.norm(exact)
        assert mismatch(profiles, mix, wanted) == pytest.approx(off, abs=2e-3)
        assert bool(off < 0.05) is close


def test_a_time_after_the_last_snapshot_is_refused():
    with pytest.raises(ValueError, match="no snapshot reaches 9 images"):
        reconstruction([Profile(7.0, 8.0)], Profile(7.0, 9.0))
