import numpy as np
import pytest
import torch

from ambient_omni import rng
from ambient_omni.classifier.calibration import Calibration, calibrate
from ambient_omni.classifier.config import ClassifierConfig
from ambient_omni.classifier.training import grade

LEVEL_ONE = ClassifierConfig(
    sigma_low=1.0, sigma_high=1.0 + 1e-9, num_levels=3, num_noises=2, seed=3
)


class Moved(torch.nn.Module):
    """Answers with the first pixel, and with how large the noise of the second one is."""

    def __init__(self):
        super().__init__()
        self.anything = torch.nn.Parameter(torch.zeros(1))

    def forward(self, noised, sigma):
        return noised[:, 0, 0, 0] + 3 * noised[:, 0, 0, 1].abs()


def images(first_pixel):
    x0 = np.zeros((len(first_pixel), 3, 2, 2), np.float32)
    x0[:, 0, 0, 0] = first_pixel
    return x0


def two_gaussians(distance: float, count: int = 4000):
    """Draws x of N(+d/2, 1) and N(-d/2, 1), whose true logit is d x, as (N, L=1, K=1)."""
    draw = rng.generator(0, "calibration", int(distance * 10))
    sides = draw.standard_normal((2, count, 1, 1))
    return sides[0] + distance / 2, sides[1] - distance / 2


@pytest.mark.parametrize("overconfidence", [1.5, 4.0])
def test_overconfident_logits_are_toned_down_to_the_truth(overconfidence):
    trusted, pool = two_gaussians(1.2)
    found = calibrate(1.2 * overconfidence * trusted, 1.2 * overconfidence * pool)
    assert found.scale[0] == pytest.approx(1 / overconfidence, rel=0.1)
    assert found.offset[0] == pytest.approx(0, abs=0.1)


def test_the_bias_of_a_network_that_calls_everything_foreign_is_taken_off():
    trusted, pool = two_gaussians(1.2)
    found = calibrate(1.2 * trusted - 3, 1.2 * pool - 3)
    assert found.offset[0] == pytest.approx(3 * found.scale[0], abs=0.1)


def test_logits_that_know_nothing_become_one_half():
    trusted, pool = two_gaussians(0.0)
    found = calibrate(5 * trusted - 2, 5 * pool - 2)
    calibrated = found.apply(5 * pool - 2)
    assert np.abs(calibrated).max() < 0.5


def test_logits_that_point_the_wrong_way_become_one_half():
    trusted, pool = two_gaussians(2.0)
    found = calibrate(pool, trusted)
    assert found.scale[0] == 0
    assert found.offset[0] == pytest.approx(0, abs=0.01)


def test_the_scale_never_enlarges():
    trusted, pool = two_gaussians(2.0)
    assert calibrate(0.1 * trusted, 0.1 * pool).scale[0] == 1


def test_sides_that_do_not_overlap_stay_finite():
    found = calibrate(np.full((5, 3, 2), 40.0), np.full((9, 3, 2), -40.0))
    assert np.isfinite(found.scale).all()
    assert np.isfinite(found.offset).all()


def test_both_sides_weigh_the_same_whatever_their_numbers():
    trusted, pool = two_gaussians(1.0)
    few = calibrate(trusted[:400], pool)
    assert few.offset[0] == pytest.approx(0, abs=0.15)


def test_each_level_gets_its_own_map():
    calibration = Calibration(np.array([0.5, 1.0]), np.array([1.0, 0.0]))
    np.testing.assert_allclose(calibration.apply(np.array([[2.0, 2.0]])), [[2.0, 2.0]])
    np.testing.assert_allclose(calibration.apply(np.full((1, 2, 3), 4.0))[0, :, 0], [3.0, 4.0])


def test_every_place_is_graded_under_noises_of_its_own_whatever_lies_there():
    network, x0 = Moved(), images(np.zeros(40))
    said = grade(network, x0, LEVEL_ONE)
    assert said.shape == (40, 3, 2)
    assert len(np.unique(said[:, 0, 0])) == 40
    moved = grade(network, x0 + np.eye(2, dtype=np.float32)[0], LEVEL_ONE)
    np.testing.assert_allclose(moved[:, :, 0] - said[:, :, 0], 1, atol=1e-5)
    np.testing.assert_array_equal(grade(network, x0[30:], LEVEL_ONE, first=30), said[30:])
    # Opposite noises: what is odd in them cancels, and 6 |z| is left.
    assert (said.sum(axis=2) >= -1e-5).all()


def test_a_calibration_does_not_take_the_luck_of_a_noise_for_the_networks_own_bias():
    """Under one noise all answers are up by 3 |z|; on average by 3 sqrt(2 / pi), whatever z was."""
    draw = rng.generator(0, "calibration-luck")
    offsets = []
    for seed in range(3):
        config = LEVEL_ONE.model_copy(update={"seed": seed})
        sides = [images(draw.standard_normal(1500) + at) for at in (0.5, -0.5)]
        found = calibrate(*(grade(Moved(), side, config) for side in sides))
        offsets.append(found.offset[1] / found.scale[1])
    assert np.array(offsets) == pytest.approx(-3 * np.sqrt(2 / np.pi), abs=0.25)
