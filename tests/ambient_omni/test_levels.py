import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ambient_omni import rng
from ambient_omni.noise.levels import (
    LogNormalPrior,
    alpha_bar_of_sigma,
    edm_grid,
    flow_time_of_sigma,
    log_grid,
    sigma_of_alpha_bar,
    sigma_of_flow_time,
)

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


def test_the_prior_is_log_normal():
    sigma = LogNormalPrior().sigma_of(rng.uniform(200_000, 0, "prior"))
    assert np.log(sigma).mean() == pytest.approx(-1.2, abs=0.01)
    assert np.log(sigma).std() == pytest.approx(1.2, abs=0.01)


@given(st.floats(0, 0.999999))
def test_the_cdf_inverts_the_quantile_also_for_a_cut_prior(uniform):
    for prior in (LogNormalPrior(), LogNormalPrior(lowest=0.1, highest=5.0)):
        assert prior.cdf(prior.sigma_of(np.array([uniform])))[0] == pytest.approx(uniform, abs=1e-6)


def test_a_cut_prior_stays_between_its_ends():
    sigma = LogNormalPrior(lowest=0.1, highest=5.0).sigma_of(rng.uniform(10_000, 0, "prior"))
    assert sigma.min() >= 0.1 * (1 - 1e-6)
    assert sigma.max() <= 5.0


def test_an_empty_prior_is_refused():
    with pytest.raises(ValidationError, match="not below"):
        LogNormalPrior(lowest=2, highest=1)


def test_the_share_of_levels_above_1_9_is_6_percent():
    assert 1 - LogNormalPrior().cdf(1.9) == pytest.approx(0.06, abs=0.005)


def test_the_edm_grid_descends_and_is_even_in_the_seventh_root():
    grid = edm_grid(18)
    assert (grid[0], grid[-1]) == (80.0, 0.002)
    assert np.allclose(np.diff(grid ** (1 / 7), 2), 0, atol=1e-9)
    with pytest.raises(ValueError, match="at least 2"):
        edm_grid(1)


def test_the_log_grid_is_even_in_the_logarithm():
    assert np.allclose(log_grid(4, 0.1, 100), [0.1, 1, 10, 100])


def test_levels_are_float64_and_do_not_need_torch_defaults():
    with torch.device("cpu"):
        assert LogNormalPrior().sigma_of(np.array([0.5])).dtype == np.float64
