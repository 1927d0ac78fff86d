import itertools
import math

import pytest
import torch
from diffusers import DDIMScheduler, EDMDPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from ambient_omni import rng
from ambient_omni.generation.solvers import SOLVERS, dpm_solver_2m, euler
from ambient_omni.noise.levels import edm_grid

SCALE, TOP = 0.7, 10.0


def exact_denoiser(x, sigma):
    """E[x0 | x] of x0 ~ N(0, SCALE^2)."""
    return (SCALE**2 / (SCALE**2 + sigma**2))[:, None, None, None] * x


def bent_denoiser(x, sigma):
    """E[x0 | x] of x0 = ±SCALE, each entry by itself: not linear, as real ones."""
    return SCALE * torch.tanh(SCALE * x / sigma[:, None, None, None] ** 2)


def error(solver, num_levels, lowest=1e-5):
    start = torch.full((1, 1, 1, 1), TOP, dtype=torch.float64)
    made = SOLVERS[solver](
        exact_denoiser, start, torch.from_numpy(edm_grid(num_levels, lowest, TOP))
    )
    # The flow scales x with the standard deviation of the noised data, sqrt(s^2 + sigma^2).
    return abs(float(made) - TOP * SCALE / math.sqrt(SCALE**2 + TOP**2))


@pytest.mark.parametrize(("solver", "order"), [("heun", 2), ("dpm++2m", 2), ("euler", 1)])
def test_the_error_of_a_solver_falls_with_its_order(solver, order):
    errors = [error(solver, n) for n in (100, 200, 400)]
    measured = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(slope - order) < 0.15 for slope in measured)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_every_solver_solves_the_ode_of_gaussian_data(solver):
    assert error(solver, 400) < {"euler": 5e-3}.get(solver, 1e-4)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_the_last_step_answers_the_estimate_at_the_lowest_level(solver):
    seen = []

    def denoise(x, sigma):
        seen.append((float(sigma[0]), bent_denoiser(x, sigma)))
        return seen[-1][1]

    made = SOLVERS[solver](denoise, TOP * torch.ones(1, 1, 1, 1), torch.tensor([TOP, 3.0, 1.5]))
    assert seen[-1][0] == 1.5
    assert torch.allclose(made, seen[-1][1])


def test_euler_makes_the_steps_of_ddim():
    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(10)
    kept = scheduler.alphas_cumprod[scheduler.timesteps]
    levels = ((1 - kept) / kept).sqrt()
    x = rng.torch_normal((2, 1, 4, 4), 0, "start")
    mine = euler(bent_denoiser, x * (1 + levels[0] ** 2).sqrt(), levels)
    for t, level in zip(scheduler.timesteps, levels, strict=True):
        sigma = level.expand(2)
        noisy = x * (1 + level**2).sqrt()
        noise = (noisy - bent_denoiser(noisy, sigma)) / level
        x = scheduler.step(noise, t, x).prev_sample
    assert torch.allclose(x, mine, atol=1e-4)


def test_euler_makes_the_steps_of_rectified_flow():
    scheduler = FlowMatchEulerDiscreteScheduler()
    times = torch.tensor([0.9, 0.6, 0.3, 0.1])
    scheduler.set_timesteps(sigmas=times.tolist())
    levels = times / (1 - times)
    noise = rng.torch_normal((2, 1, 4, 4), 0, "start")
    mine = euler(bent_denoiser, noise * levels[0], levels)
    x = noise * times[0]
    for t, time, level in zip(scheduler.timesteps, times, levels, strict=True):
        velocity = (x - bent_denoiser(x / (1 - time), level.expand(2))) / time
        x = scheduler.step(velocity, t, x).prev_sample
    assert torch.allclose(x, mine, atol=1e-5)


def test_dpm_solver_makes_the_steps_of_diffusers():
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=0.01, sigma_max=20.0, sigma_data=0.5, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(7)
    levels = scheduler.sigmas[:-1]
    x = 20 * rng.torch_normal((2, 1, 4, 4), 0, "start")
    mine = dpm_solver_2m(bent_denoiser, x, levels)
    for t, level in zip(scheduler.timesteps, levels, strict=True):
        skip = 0.25 / (level**2 + 0.25)
        out = level * 0.5 / (level**2 + 0.25).sqrt()
        raw = (bent_denoiser(x, level.expand(2)) - skip * x) / out
        x = scheduler.step(raw, t, x).prev_sample
    assert torch.allclose(x, mine, atol=1e-4)
