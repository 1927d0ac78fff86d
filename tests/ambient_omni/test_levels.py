import numpy as np
import pytest
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from ambient_omni.noise.levels import (
    BetaSchedule,
    alpha_bar_of_sigma,
    edm_grid,
    flow_time_of_sigma,
    log_grid,
    sigma_of_alpha_bar,
    sigma_of_flow_time,
)
from schemas.errors import BadInput

levels = st.floats(1e-3, 1e3)


@given(levels)
def test_a_level_survives_the_way_through_each_parameterisation(sigma):
    assert sigma_of_alpha_bar(alpha_bar_of_sigma(sigma)) == pytest.approx(sigma, rel=1e-6)
    assert sigma_of_flow_time(flow_time_of_sigma(sigma)) == pytest.approx(sigma, rel=1e-6)


@given(levels)
def test_the_same_level_has_the_same_signal_to_noise_ratio_in_each_parameterisation(sigma):
    alpha_bar, time = alpha_bar_of_sigma(sigma), flow_time_of_sigma(sigma)
    ratio = 1 / sigma**2
    assert alpha_bar / (1 - alpha_bar) == pytest.approx(ratio, rel=1e-6)
    assert (1 - time) ** 2 / time**2 == pytest.approx(ratio, rel=1e-6)


def test_the_levels_of_a_diffusers_ddpm_schedule_ascend_with_its_steps():
    sigma = sigma_of_alpha_bar(DDPMScheduler().alphas_cumprod.numpy())
    assert (np.diff(sigma) > 0).all()
    assert sigma[0] == pytest.approx(0.01, rel=0.01)


STABLE_DIFFUSION = BetaSchedule(shape="scaled_linear", beta_start=0.00085, beta_end=0.012)


@given(st.floats(0.001, 200))
def test_a_level_survives_the_way_through_the_timesteps_also_beyond_the_schedule(sigma):
    for schedule in (BetaSchedule(), STABLE_DIFFUSION):
        timestep = schedule.timestep_of_sigma(sigma)
        assert schedule.sigma_of_timestep(timestep) == pytest.approx(sigma, rel=1e-9)


@given(st.floats(0.001, 200), st.floats(1.0001, 2))
def test_a_higher_level_has_a_later_timestep(sigma, factor):
    later = STABLE_DIFFUSION.timestep_of_sigma(sigma * factor)
    assert later > STABLE_DIFFUSION.timestep_of_sigma(sigma)


def test_the_levels_of_the_table_are_its_whole_timesteps():
    for schedule in (BetaSchedule(), BetaSchedule(shape="squaredcos_cap_v2")):
        timesteps = schedule.timestep_of_sigma(schedule.sigmas)
        assert np.allclose(timesteps, np.arange(1000), atol=1e-9)


def test_stable_diffusion_spans_its_known_levels():
    assert STABLE_DIFFUSION.sigmas[[0, -1]] == pytest.approx([0.02917, 14.6146], rel=1e-3)


def test_a_schedule_is_read_from_any_scheduler_and_makes_one():
    scheduler = DDIMScheduler(**STABLE_DIFFUSION.scheduler_config)
    assert BetaSchedule.of_scheduler(scheduler.config) == STABLE_DIFFUSION
    ours = alpha_bar_of_sigma(STABLE_DIFFUSION.sigmas)
    assert np.allclose(ours, scheduler.alphas_cumprod.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rescale_betas_zero_snr": True}, "sigma = infinity"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"beta_schedule": "of my own"}, "not known"),
    ],
)
def test_schedules_without_a_level_for_each_timestep_are_refused(values, message):
    with pytest.raises(BadInput, match=message):
        BetaSchedule.of_scheduler(values)


def test_a_schedule_that_reaches_pure_noise_is_refused():
    with pytest.raises(BadInput, match="finite sigma"):
        _ = BetaSchedule(num_timesteps=100_000, beta_end=0.999).sigmas


def test_the_edm_grid_descends_and_is_even_in_the_seventh_root():
    grid = edm_grid(18)
    assert (grid[0], grid[-1]) == (80.0, 0.002)
    assert np.allclose(np.diff(grid ** (1 / 7), 2), 0, atol=1e-9)
    with pytest.raises(ValueError, match="at least 2"):
        edm_grid(1)


def test_the_log_grid_is_even_in_the_logarithm():
    assert np.allclose(log_grid(4, 0.1, 100), [0.1, 1, 10, 100])
