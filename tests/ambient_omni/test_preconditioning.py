import copy

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import nn

from ambient_omni import rng
from ambient_omni.models.config import ParameterisationConfig
from ambient_omni.models.objectives import denoising_pair, squared_error
from ambient_omni.models.preconditioning import Denoiser, Parameterisation, edm_weight
from ambient_omni.noise.levels import BetaSchedule

KINDS = ("edm", "epsilon", "v", "x0", "flow")
SIGMA = torch.logspace(-2, 2, 21, dtype=torch.float64)
SCHEDULES = (
    BetaSchedule(),
    BetaSchedule(shape="scaled_linear", beta_start=0.00085, beta_end=0.012),
)


def of_kind(kind, schedule=SCHEDULES[0], sigma_data=0.5):
    return Parameterisation(ParameterisationConfig(kind=kind, schedule=schedule), sigma_data)


class Answers(nn.Module):
    """Says what it is told to; remembers what it was asked."""

    def __init__(self, answer=None):
        super().__init__()
        self.answer = answer

    def forward(self, scaled, noise, condition=None):
        self.scaled, self.noise = scaled, noise
        return torch.zeros_like(scaled) if self.answer is None else self.answer


def broadcast(values):
    return values[:, None, None, None]


def best_output(c, x_t, x0):
    """F* that makes D(x_t) = x0."""
    return (x0 - broadcast(c.skip) * x_t) / broadcast(c.out)


def test_under_edm_the_network_sees_inputs_and_targets_of_unit_variance():
    c = of_kind("edm").coefficients(SIGMA)
    ones = torch.ones_like(SIGMA)
    assert torch.allclose(c.into**2 * (SIGMA**2 + 0.5**2), ones)
    # (x0 - c_skip x_t) / c_out, with var(x0) = 0.25 and x_t = x0 + sigma z.
    assert torch.allclose(((1 - c.skip) ** 2 * 0.25 + c.skip**2 * SIGMA**2) / c.out**2, ones)
    assert torch.allclose(edm_weight(SIGMA, 0.5) * c.out**2, ones)
    assert torch.allclose(of_kind("edm").natural_weight(SIGMA), edm_weight(SIGMA, 0.5))


def test_a_silent_edm_network_denoises_gaussian_data_as_well_as_can_be():
    out = Denoiser(Answers())(torch.ones(2, 3, 4, 4), torch.tensor([0.5, 2.0]))
    assert out[:, 0, 0, 0].tolist() == pytest.approx([0.5, 0.25 / 4.25])


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_answer_about_gaussian_data_gives_the_posterior_mean(kind):
    # x0 ~ N(0, s^2), of one dimension: the least-squares answer is linear in the scaled input.
    scale, count = 0.7, 200_000
    half = scale * rng.torch_normal((count // 2, 1, 1, 1), 0, "x0").double()
    other = rng.torch_normal((count // 2, 1, 1, 1), 0, "z").double()
    # In pairs, so that image and noise are exactly uncorrelated.
    x0, z = torch.cat([half, half]), torch.cat([other, -other])
    for level in (0.1, 1.0, 4.0):
        sigma = torch.full((count,), level, dtype=torch.float64)
        c, x_t = of_kind(kind).coefficients(sigma), x0 + level * z
        seen, wanted = broadcast(c.into) * x_t, best_output(c, x_t, x0)
        slope = (seen * wanted).mean() / seen.square().mean()
        denoised = broadcast(c.skip) * x_t + broadcast(c.out) * slope * seen
        posterior = scale**2 / (scale**2 + level**2) * x_t
        error = (denoised - posterior).square().mean().sqrt()
        assert error < 0.02 * posterior.square().mean().sqrt()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", [0.0, 0.005])
def test_the_naturally_weighted_error_is_that_of_the_networks_own_output(kind, hidden):
    parameterisation = of_kind(kind)
    x0, fresh, fixed, said = (
        rng.torch_normal((len(SIGMA), 3, 2, 2), 0, name).double() for name in "abcd"
    )
    pair = denoising_pair(x0, SIGMA, torch.full_like(SIGMA, hidden), fresh, fixed)
    c = parameterisation.coefficients(SIGMA)
    own = (said - best_output(c, pair.x_t, pair.target)).square().mean(dim=(1, 2, 3))
    denoised = broadcast(c.skip) * pair.x_t + broadcast(c.out) * said
    weighted = parameterisation.natural_weight(SIGMA) * squared_error(denoised, pair.target)
    assert torch.allclose(own, weighted)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("kind", "named"), [("epsilon", "epsilon"), ("v", "v_prediction"), ("x0", "sample")]
)
def test_ddpm_parameterisations_are_those_of_diffusers_schedulers(schedule, kind, named):
    scheduler = DDPMScheduler(**schedule.scheduler_config, prediction_type=named, clip_sample=False)
    timesteps = torch.tensor([0, 1, 17, 250, 499, 998, 999])
    x0, z, said = (rng.torch_normal((7, 3, 4, 4), 0, name) for name in "abc")
    sigma = torch.tensor(schedule.sigmas).float()[timesteps]
    network = Answers(said)
    denoised = Denoiser(network, of_kind(kind, schedule))(x0 + broadcast(sigma) * z, sigma)
    seen = scheduler.add_noise(x0, z, timesteps)
    assert torch.allclose(network.scaled, seen, atol=1e-5)
    assert torch.allclose(network.noise, timesteps.float(), atol=2e-3)
    c = of_kind(kind, schedule).coefficients(sigma)
    wanted = {"epsilon": z, "v": scheduler.get_velocity(x0, z, timesteps), "x0": x0}[kind]
    unscaled = best_output(
        of_kind(kind, schedule).coefficients(sigma.double()),
        (x0 + broadcast(sigma) * z).double(),
        x0.double(),
    )
    assert torch.allclose(unscaled.float(), wanted, atol=1e-4)
    assert torch.isfinite(c.out).all()
    # The scheduler's own way back to x_0.
    ddim = DDIMScheduler(**schedule.scheduler_config, prediction_type=named, clip_sample=False)
    ddim.set_timesteps(schedule.num_timesteps)
    for row, timestep in enumerate(timesteps):
        theirs = ddim.step(said[row], timestep, seen[row]).pred_original_sample
        assert torch.allclose(denoised[row], theirs, rtol=1e-5, atol=1e-5 * float(1 + sigma[row]))


def test_flow_is_that_of_diffusers_scheduler():
    scheduler = FlowMatchEulerDiscreteScheduler()
    x0, z, said = (rng.torch_normal((1, 3, 4, 4), 0, name) for name in "abc")
    for row in (0, 200, 700, 990):
        time = scheduler.sigmas[row]
        sigma = (time / (1 - time)).clamp(max=1e6)[None]
        network = Answers(said)
        denoised = Denoiser(network, of_kind("flow"))(x0 + sigma * z, sigma)
        timestep = scheduler.timesteps[row : row + 1]
        if time < 1:
            seen = scheduler.scale_noise(x0, timestep, z)
            assert torch.allclose(network.scaled, seen, atol=1e-5)
            assert torch.allclose(network.noise, timestep, rtol=1e-5)
            assert torch.allclose(denoised, seen - time * said, atol=1e-4)


def test_edm_is_that_of_diffusers_scheduler():
    scheduler = EDMEulerScheduler(sigma_data=0.7)
    x_t, said = (rng.torch_normal((2, 3, 4, 4), 0, name) for name in "ab")
    for level in (0.01, 0.5, 40.0):
        network, sigma = Answers(said), torch.full((2,), level)
        denoised = Denoiser(network, of_kind("edm", sigma_data=0.7))(x_t, sigma)
        assert torch.allclose(network.scaled, scheduler.precondition_inputs(x_t, sigma[0]))
        assert torch.allclose(network.noise[0], scheduler.precondition_noise(sigma[0]))
        theirs = scheduler.precondition_outputs(x_t, said, sigma[0])
        assert torch.allclose(denoised, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_timestep_on_the_device_is_that_of_the_schedule(schedule):
    sigma = torch.logspace(-2.5, 2, 50, dtype=torch.float64)
    found = of_kind("v", schedule).timestep(sigma)
    assert torch.allclose(found, torch.from_numpy(schedule.timestep_of_sigma(sigma)), atol=1e-2)


def test_half_precision_leaves_levels_and_preconditioning_in_single():
    halved = of_kind("epsilon").to(torch.bfloat16)
    assert torch.equal(halved.log_sigmas, of_kind("epsilon").log_sigmas)
    linear = nn.Conv2d(3, 3, 1)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear

        def forward(self, scaled, noise, condition=None):
            self.kinds = scaled.dtype, noise.dtype
            self.said = self.linear(scaled)
            return self.said

    denoiser = Denoiser(Network())
    x_t, sigma = 80 * rng.torch_normal((4, 3, 8, 8), 0, "x"), torch.full((4,), 80.0)
    with torch.autocast("cpu", torch.bfloat16):
        out = denoiser(x_t, sigma)
    assert denoiser.network.kinds == (torch.float32, torch.float32)
    assert denoiser.network.said.dtype == torch.bfloat16
    c = of_kind("edm").coefficients(sigma)
    assert torch.equal(
        out, torch.addcmul(broadcast(c.skip) * x_t, broadcast(c.out), denoiser.network.said.float())
    )


def test_a_copy_of_a_denoiser_is_of_the_same_parameterisation_and_adds_no_tensors():
    denoiser = Denoiser(Answers(), of_kind("v"))
    twin = copy.deepcopy(denoiser)
    assert twin.parameterisation.config == denoiser.parameterisation.config
    assert denoiser.state_dict() == {}


def test_levels_outside_the_schedule_have_timesteps_of_their_own():
    parameterisation = of_kind("epsilon", SCHEDULES[1])
    low, high = parameterisation.sigma_range
    found = parameterisation.timestep(torch.tensor([low / 2, low, high, 2 * high]))
    assert found[0] < 0 == found[1].round()
    assert found[3] > found[2]
    assert of_kind("flow").sigma_range == (0, float("inf"))
