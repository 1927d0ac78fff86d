import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.policies import (
    ClassifierThreshold,
    CropWindow,
    FixedPerSource,
    PilotCalibrated,
    decide_by_curve,
    decide_by_pilot,
    decide_windows,
)
from pipelines.policies.by_curve import MAX_EXPONENT, MIN_EXPONENT, decay_slope, decide_above

SPACE = "pixel:32x32:lanczos:center:pm1"
SIGMAS = np.geomspace(0.05, 40, 40)
TAU = 0.45
T = -np.log(TAU / (1 - TAU))


def power_law(sigma_min, exponent):
    return -T * (np.asarray(sigma_min)[:, None] / SIGMAS) ** exponent


@pytest.mark.parametrize("exponent", [1.0, 2.0, 4.0])
def test_the_slope_is_that_of_the_decay_which_a_soft_floor_follows(exponent):
    levels = np.array([1.0, 2.0, 6.0])
    slope = decay_slope(power_law(levels, exponent), SIGMAS, levels, np.full(3, TAU))
    assert slope == pytest.approx([exponent * T] * 3, rel=0.06)


def test_a_floor_without_a_level_is_hard():
    levels = np.array([0.0, np.nan, 1.0])
    slope = decay_slope(power_law([1.0] * 3, 2.0), SIGMAS, levels, np.array([TAU, TAU, 0.5]))
    assert np.isnan(slope).all()


def test_a_flat_curve_has_a_bounded_slope():
    flat = np.tile(np.where(SIGMAS < 1, -T * 1.01, 0.0), (1, 1))
    slope = decay_slope(flat, SIGMAS, np.array([1.0]), np.array([TAU]))
    assert MIN_EXPONENT * T <= slope[0] <= MAX_EXPONENT * T


def test_annotations_of_a_curve_carry_an_interval_that_grows_with_its_error():
    policy = ClassifierThreshold(noise_space=SPACE, classifier_id="c1")
    logits = power_law([2.0, 2.0], 2.0)
    found = decide_by_curve(policy, logits, np.array([[0.02], [0.08]]) * np.ones(40), SIGMAS)
    assert (found.low <= found.sigma_min).all()
    assert (found.high >= found.sigma_min).all()
    width = np.log2(found.high / found.low)
    assert width[1] > 2 * width[0] > 0


def test_soft_is_part_of_the_hash_and_hard_keeps_its_old_name():
    hard = ClassifierThreshold(noise_space=SPACE, classifier_id="c1")
    assert "soft" not in hard.parameters
    assert ClassifierThreshold(noise_space=SPACE, classifier_id="c1", soft=False) == hard
    soft = ClassifierThreshold(noise_space=SPACE, classifier_id="c1", soft=True)
    assert soft.policy_id != hard.policy_id
    assert soft.parameters["soft"] is True


@given(
    st.lists(st.floats(0, 20), min_size=1, max_size=10),
    st.lists(st.floats(-3, 0), min_size=40, max_size=40),
    st.lists(st.floats(0, 2), min_size=40, max_size=40),
)
@settings(max_examples=100, deadline=None)
def test_a_stricter_threshold_at_any_level_never_lowers_a_level(strengths, threshold, stricter):
    logits = -np.array(strengths)[:, None] / SIGMAS
    errors, threshold = np.zeros_like(logits), np.array(threshold)
    lax = decide_above(logits, errors, SIGMAS, threshold, 0.25).sigma_min
    strict = decide_above(logits, errors, SIGMAS, threshold + stricter, 0.25).sigma_min
    lax, strict = (np.where(np.isnan(level), np.inf, level) for level in (lax, strict))
    assert (strict >= lax - 1e-9).all()


def pilot(edges, tau):
    return PilotCalibrated(
        noise_space=SPACE, classifier_id="c1", pilot_id="p", edges=edges, tau=tau
    )


def test_bands_that_let_everything_or_nothing_in_give_zero_the_edge_and_null():
    logits = power_law([3.0, 0.2], 2.0)
    errors = np.zeros_like(logits)

    def levels(policy):
        return decide_by_pilot(policy, logits, errors, SIGMAS).sigma_min

    assert levels(pilot((), (0.0,))).tolist() == [0, 0]
    assert np.isnan(levels(pilot((), (None,)))).all()
    from_edge = levels(pilot((1.0,), (None, 0.0)))
    assert np.abs(np.log2(from_edge)).max() < 0.6
    assert levels(pilot((1.0,), (0.45, 0.0)))[0] == pytest.approx(1.0, rel=0.4)


def test_thresholds_that_rise_with_the_level_are_refused():
    with pytest.raises(ValidationError, match="must not rise"):
        pilot((1.0,), (0.2, 0.4))
    with pytest.raises(ValidationError, match="must not rise"):
        pilot((1.0,), (0.2, None))
    with pytest.raises(ValidationError, match="need 1 edges"):
        pilot((), (0.2, 0.1))


def window(**changes):
    settings_ = {
        "noise_space": SPACE,
        "floor": FixedPerSource(noise_space=SPACE, levels={"*": None}),
        "crop_classifier_id": "k",
        "receptive_field_id": "r",
        "sizes": (4, 8, 16),
        "sigma_max": (0.05, 0.1, 0.3),
    }
    return CropWindow(**{**settings_, **changes})


def test_the_window_is_that_of_the_largest_size_whose_smaller_ones_pass_too():
    said = np.array([[0.5, 0.5, 0.5], [0.5, 0.2, 0.5], [0.46, 0.46, 0.1], [0.4, 0.9, 0.9]])
    assert decide_windows(window(), said).tolist() == [0.3, 0.05, 0.1, 0.0]
    assert decide_windows(window(epsilon=0.2), said)[3] == 0.3


def test_a_floor_of_another_noise_space_is_refused():
    floor = FixedPerSource(noise_space="latent:x", levels={"*": 0.0})
    with pytest.raises(ValidationError, match="the floor measures in latent:x"):
        window(floor=floor)


def test_the_name_of_a_floor_is_no_part_of_the_hash():
    named = FixedPerSource(noise_space=SPACE, levels={"*": None}, name="keep out")
    assert window(floor=named).policy_id == window().policy_id
