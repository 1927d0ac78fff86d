import pytest
import torch

from ambient_omni import rng
from ambient_omni.models.config import NetworkConfig
from ambient_omni.models.networks import build_denoiser, num_parameters
from ambient_omni.training.config import EmaConfig, OptimizerConfig
from ambient_omni.training.optimization import Ema, ema_decay, learning_rate

TINY = NetworkConfig(patch=2, widths=(8, 16), norm_groups=4)


def test_the_same_seed_builds_the_same_weights_and_another_seed_others():
    one, same, other = (build_denoiser(TINY, 8, seed=seed).state_dict() for seed in (1, 1, 2))
    name = "network.unet.conv_in.weight"
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one[name], other[name])


def test_an_untrained_denoiser_is_the_best_linear_one():
    x_t, sigma = rng.torch_normal((3, 3, 8, 8), 0, "x"), torch.tensor([0.1, 1.0, 10.0])
    out = build_denoiser(TINY, 8)(x_t, sigma)
    assert torch.allclose(out, (0.25 / (0.25 + sigma**2))[:, None, None, None] * x_t)


def test_the_pixel_branch_sees_single_pixels_and_the_level_and_can_be_left_out():
    denoiser = build_denoiser(TINY, 8)
    branch = denoiser.network.pixels
    with torch.no_grad():
        branch.leave.weight.copy_(rng.torch_normal(branch.leave.weight.shape, 0, "w"))
    x_t = torch.zeros(1, 3, 8, 8)
    poked = x_t.clone()
    poked[0, 0, 4, 4] = 1
    low, high = torch.tensor([-0.5]), torch.tensor([0.5])
    changed = (branch(poked, low) - branch(x_t, low)).abs().sum(dim=1)[0] > 1e-6
    assert changed[1:8, 1:8].any()
    assert not changed[0].any()
    assert not torch.allclose(branch(poked, low), branch(poked, high))
    assert build_denoiser(TINY.model_copy(update={"pixel_width": 0}), 8).network.pixels is None


def test_labels_and_levels_reach_the_network():
    denoiser = build_denoiser(TINY, 8, num_classes=3)
    with torch.no_grad():
        weight = denoiser.network.unet.conv_out.weight
        weight.copy_(rng.torch_normal(weight.shape, 0, "w"))
    x_t = rng.torch_normal((1, 3, 8, 8), 0, "x")
    outs = [
        denoiser.network(x_t, torch.tensor([level]), torch.tensor([label]))
        for level, label in ((0.0, 0), (0.1, 0), (0.0, 1))
    ]
    assert not torch.allclose(outs[0], outs[1])
    assert not torch.allclose(outs[0], outs[2])


def test_images_that_cannot_be_halved_as_often_as_needed_are_refused():
    with pytest.raises(ValueError, match="no multiple of 4"):
        TINY.require_fit(6)
    assert num_parameters(build_denoiser(TINY, 8)) > 0


def test_the_learning_rate_warms_up_and_follows_its_decay():
    make = {"learning_rate": 1.0, "warmup_images": 100}
    constant = OptimizerConfig(**make, decay="constant")
    assert learning_rate(constant, 0, 1000) == pytest.approx(0.01)
    assert learning_rate(constant, 500, 1000) == 1
    cosine = OptimizerConfig(**make, decay="cosine")
    assert learning_rate(cosine, 500, 1000) == pytest.approx(0.5)
    assert learning_rate(cosine, 1000, 1000) == pytest.approx(0)
    root = OptimizerConfig(**make, decay="inverse_sqrt", decay_images=200)
    assert learning_rate(root, 800, 1000) == pytest.approx(0.5)


def test_the_average_forgets_half_in_a_half_life_and_the_start_quickly():
    config = EmaConfig(half_life_images=100, warmup_ratio=0.05)
    assert ema_decay(config, 1_000_000, 100) == pytest.approx(0.5)
    assert ema_decay(config, 1000, 100) == pytest.approx(0.5**2)
    assert ema_decay(config, 8, 8) < 1e-5


def test_the_average_moves_towards_the_weights_and_is_a_copy():
    module = torch.nn.Linear(2, 2)
    ema = Ema(module)
    before = ema.module.weight.clone()
    with torch.no_grad():
        module.weight.add_(1)
    ema.update(module.parameters(), 0.75)
    assert torch.allclose(ema.module.weight, before + 0.25)
    assert not ema.module.weight.requires_grad
