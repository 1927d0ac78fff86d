import numpy as np
import pytest

from ambient_omni import rng
from ambient_omni.classifier.calibration import Calibration, calibrate


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
