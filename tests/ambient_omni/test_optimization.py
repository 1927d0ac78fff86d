import pytest

from ambient_omni.training.config import EmaConfig, OptimizerConfig
from ambient_omni.training.optimization import ema_decay, learning_rate


def rates(at, num_images=1000, **settings):
    config = OptimizerConfig(learning_rate=1.0, **settings)
    return [learning_rate(config, images, num_images) for images in at]


def test_a_cosine_falls_from_the_peak_to_nothing_at_the_end_of_the_budget():
    found = rates([0, 250, 500, 1000, 2000], warmup_images=0, decay="cosine")
    assert found == pytest.approx([1, 0.8536, 0.5, 0, 0], abs=1e-4)


def test_the_inverse_square_root_begins_after_decay_images():
    found = rates([0, 100, 400], warmup_images=0, decay="inverse_sqrt", decay_images=100)
    assert found == pytest.approx([1, 1, 0.5])


def test_warm_up_is_linear_in_the_images_and_reaches_the_peak():
    found = rates([0, 49, 99, 500], warmup_images=100, decay="constant")
    assert found == pytest.approx([0.01, 0.5, 1, 1])


def test_half_of_an_average_is_forgotten_in_a_half_life():
    config = EmaConfig(half_life_images=640, warmup_ratio=1.0)
    assert ema_decay(config, 10_000, 64) ** 10 == pytest.approx(0.5)


def test_the_half_life_grows_with_the_images_seen():
    config = EmaConfig(half_life_images=10**6, warmup_ratio=0.5)
    assert ema_decay(config, 128, 64) == pytest.approx(0.5)
