import pytest
import torch

from ambient_omni.training.averages import WeightAverage
from ambient_omni.training.config import EmaConfig, OptimizerConfig
from ambient_omni.training.optimization import ema_decay, learning_rate


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


def test_the_average_moves_towards_the_weights_and_takes_their_place_for_a_while():
    module = torch.nn.Linear(2, 2)
    average = WeightAverage(dict(module.named_parameters()))
    before = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.add_(1)
    average.update(0.75)
    assert torch.allclose(average.tensors["weight"], before + 0.25)
    with average.applied():
        assert torch.allclose(module.weight, before + 0.25)
    assert torch.allclose(module.weight, before + 1)
    assert torch.allclose(average.tensors["weight"], before + 0.25)
