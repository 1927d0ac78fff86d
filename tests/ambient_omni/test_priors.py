import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ambient_omni import rng
from ambient_omni.noise.levels import BetaSchedule, flow_time_of_sigma
from ambient_omni.noise.priors import DdpmPrior, FlowPrior, LogNormalPrior, Prior, read_prior

CUT = {"lowest": 0.1, "highest": 5.0}
SMOOTH = (LogNormalPrior(), FlowPrior(shift=3), FlowPrior(distribution="uniform", shift=2))
UNIFORM = rng.uniform(200_000, 0, "prior")


def test_the_prior_is_log_normal():
    sigma = LogNormalPrior().sigma_of(UNIFORM)
    assert np.log(sigma).mean() == pytest.approx(-1.2, abs=0.01)
    assert np.log(sigma).std() == pytest.approx(1.2, abs=0.01)


@given(st.floats(0, 0.999999))
def test_the_cdf_inverts_the_quantile_also_for_a_cut_prior(uniform):
    for whole in SMOOTH:
        for prior in (whole, whole.model_copy(update=CUT)):
            sigma = prior.sigma_of(np.array([uniform]))
            assert prior.cdf(sigma)[0] == pytest.approx(uniform, abs=1e-6)


def test_a_cut_prior_stays_between_its_ends():
    for whole in (*SMOOTH, DdpmPrior()):
        sigma = whole.model_copy(update=CUT).sigma_of(UNIFORM)
        assert sigma.min() >= 0.1 * (1 - 1e-6)
        assert sigma.max() <= 5.0 * (1 + 1e-6)


def test_a_ddpm_prior_draws_each_timestep_equally_often():
    prior = DdpmPrior(schedule=BetaSchedule(num_timesteps=10, beta_end=0.3))
    sigma, count = np.unique(prior.sigma_of(UNIFORM), return_counts=True)
    assert np.array_equal(sigma, prior.schedule.sigmas)
    assert np.allclose(count / len(UNIFORM), 0.1, atol=0.003)


def test_a_cut_ddpm_prior_keeps_exactly_the_timesteps_between_its_ends():
    sigmas = BetaSchedule().sigmas
    prior = DdpmPrior(lowest=sigmas[200], highest=sigmas[700])
    assert np.array_equal(np.unique(prior.sigma_of(UNIFORM)), sigmas[200:701])


def test_the_cdf_of_a_ddpm_prior_counts_timesteps():
    prior = DdpmPrior()
    assert prior.cdf(prior.schedule.sigmas[[0, 499, 999]]) == pytest.approx([0.001, 0.5, 1])
    assert prior.cdf([0.0, 1e9]) == pytest.approx([0, 1])


def test_the_flow_prior_draws_time_as_it_says():
    uniform = flow_time_of_sigma(FlowPrior(distribution="uniform").sigma_of(UNIFORM))
    assert np.allclose(uniform, UNIFORM)
    logit = FlowPrior(mean=0.5, std=0.8).sigma_of(UNIFORM)
    time = flow_time_of_sigma(logit)
    assert np.log(time / (1 - time)).mean() == pytest.approx(0.5, abs=0.01)
    assert np.log(time / (1 - time)).std() == pytest.approx(0.8, abs=0.01)


@given(st.floats(0.001, 0.999), st.floats(0.1, 10))
def test_the_shift_moves_time_as_in_stable_diffusion_3(time, shift):
    plain = FlowPrior(distribution="uniform").sigma_of(np.array(time))
    shifted = FlowPrior(distribution="uniform", shift=shift).sigma_of(np.array(time))
    expected = shift * time / (1 + (shift - 1) * time)
    assert flow_time_of_sigma(shifted) == pytest.approx(expected)
    assert shifted == pytest.approx(shift * plain)


def test_every_level_of_a_uniform_time_is_finite_in_single_precision():
    highest = FlowPrior(distribution="uniform").sigma_of(np.array([1 - 2**-53]))
    assert np.isfinite(np.float32(highest) ** 2).all()


def test_an_empty_prior_is_refused():
    with pytest.raises(ValidationError, match="not below"):
        LogNormalPrior(lowest=2, highest=1)
    sigmas = BetaSchedule().sigmas
    with pytest.raises(ValidationError, match="no level lies between"):
        DdpmPrior(lowest=sigmas[10] * 1.0001, highest=sigmas[10] * 1.0002)


def test_the_share_of_levels_above_1_9_is_6_percent():
    assert 1 - LogNormalPrior().cdf(1.9) == pytest.approx(0.06, abs=0.005)


def test_settings_without_a_kind_are_log_normal_and_the_others_are_known_by_it():
    assert read_prior({"mean": -0.6}) == LogNormalPrior(mean=-0.6)
    kinds = TypeAdapter(Prior)
    for prior in (*SMOOTH, DdpmPrior()):
        assert kinds.validate_python(prior.model_dump()) == prior
        assert kinds.validate_python(prior) == prior
    with pytest.raises(ValidationError):
        read_prior({"kind": "ddpm", "mean": 0})


def test_levels_are_float64_and_do_not_need_torch_defaults():
    with torch.device("cpu"):
        assert LogNormalPrior().sigma_of(np.array([0.5])).dtype == np.float64


def test_the_support_is_what_is_drawn():
    table = BetaSchedule().sigmas
    cut = DdpmPrior(**CUT)
    for prior in (DdpmPrior(), cut):
        sigma = prior.sigma_of(UNIFORM)
        assert prior.support == (sigma.min(), sigma.max())
    assert DdpmPrior().support == (table[0], table[-1])
    assert LogNormalPrior().support == (0, np.inf)
    assert FlowPrior(**CUT).support == (0.1, 5.0)
