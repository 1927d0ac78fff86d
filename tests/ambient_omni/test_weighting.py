import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from ambient_omni import rng
from ambient_omni.models.config import LossWeightConfig, ParameterisationConfig
from ambient_omni.models.preconditioning import Parameterisation
from ambient_omni.models.weighting import build_weighting

EDM = Parameterisation()
SIGMA = torch.tensor([0.02, 0.3, 1.0, 5.0])


def weight(kind, parameterisation=EDM, sigma=SIGMA, **settings):
    config = LossWeightConfig(kind=kind, **settings)
    return build_weighting(config, parameterisation)(sigma, torch.ones_like(sigma))


def test_the_natural_weight_undoes_the_output_scale_of_each_parameterisation():
    expected = {
        "edm": (SIGMA**2 + 0.25) / (0.5 * SIGMA) ** 2,
        "epsilon": SIGMA**-2,
        "v": (1 + SIGMA**2) / SIGMA**2,
        "x0": torch.ones_like(SIGMA),
        "flow": ((1 + SIGMA) / SIGMA) ** 2,
    }
    for kind, values in expected.items():
        found = weight("natural", Parameterisation(ParameterisationConfig(kind=kind)))
        assert torch.allclose(found, values)


@pytest.mark.parametrize("kind", ["epsilon", "v", "x0"])
def test_min_snr_is_that_of_diffusers_training_scripts_for_each_prediction(kind):
    scheduler, timesteps = DDPMScheduler(), torch.tensor([3, 100, 500, 900])
    snr = compute_snr(scheduler, timesteps)
    capped = snr.clamp(max=5.0)
    of_own_output = {"epsilon": capped / snr, "v": capped / (snr + 1), "x0": capped}[kind]
    parameterisation = Parameterisation(ParameterisationConfig(kind=kind))
    sigma = snr**-0.5
    found = weight("min_snr", parameterisation, sigma, gamma=5.0)
    # Ours weighs the error of x_0; 1/out^2 of it is the error of the network's own output.
    assert torch.allclose(found / parameterisation.natural_weight(sigma), of_own_output, rtol=1e-4)


def test_the_learned_weight_begins_as_the_natural_one():
    error = torch.tensor([0.1, 0.2, 0.3, 0.4])
    learned = build_weighting(LossWeightConfig(kind="learned"), EDM)
    natural = build_weighting(LossWeightConfig(), EDM)
    assert torch.allclose(learned(SIGMA, error), natural(SIGMA, error))


def test_the_learned_uncertainty_is_the_logarithm_of_the_mean_weighted_error():
    weighting = build_weighting(LossWeightConfig(kind="learned"), EDM)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.02)

    def mean_error(sigma):  # weighted; between 0.02 and 1
        return 0.02 + 0.98 * torch.sigmoid(2 * sigma.log())

    for step in range(300):
        sigma = torch.exp(-1.2 + 1.2 * rng.torch_normal(256, 0, "sigma", step))
        scatter = rng.torch_normal((256, 4), 0, "error", step).square().mean(dim=1)
        weighting(sigma, mean_error(sigma) * scatter / EDM.natural_weight(sigma)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    levels = torch.exp(torch.linspace(-2.4, 0.6, 9))
    assert torch.allclose(weighting.log_error(levels), mean_error(levels).log(), atol=0.15)
    # At the minimum every level's error counts the same: the derivative is that of a logarithm.
    error = (mean_error(levels) / EDM.natural_weight(levels)).requires_grad_()
    (slope,) = torch.autograd.grad(weighting(levels, error).sum(), error)
    assert torch.allclose(slope * error, torch.ones(9), atol=0.2)


def test_the_learned_uncertainty_stays_in_single_precision_under_autocast():
    weighting = build_weighting(LossWeightConfig(kind="learned"), EDM)
    with torch.no_grad():
        weighting.gains.copy_(rng.torch_normal(weighting.gains.shape, 0, "gains"))
    expected = weighting(SIGMA, torch.ones_like(SIGMA))
    with torch.autocast("cpu", torch.bfloat16):
        found = weighting(SIGMA, torch.ones_like(SIGMA))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_only_the_learned_weight_learns_and_its_features_are_saved_and_seeded():
    for kind in ("natural", "min_snr"):
        assert not list(build_weighting(LossWeightConfig(kind=kind), EDM).parameters())
    config = LossWeightConfig(kind="learned")
    one, same, other = (build_weighting(config, EDM, seed).state_dict() for seed in (1, 1, 2))
    assert sorted(one) == ["frequencies", "gains", "offset", "phases"]
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["frequencies"], other["frequencies"])
