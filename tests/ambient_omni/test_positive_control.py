import numpy as np
import pytest

from ambient_omni import rng
from ambient_omni.classifier.config import ControlConfig
from ambient_omni.classifier.positive_control import (
    judge_control,
    plant,
    require_found,
    require_told_apart,
    separation,
    separation_at_best,
    separation_band,
)
from schemas.errors import ClassifierRefused


def logits(mean: float, count: int = 400, seed: int = 0) -> np.ndarray:
    """(N, L=5, K=2) logits around a mean."""
    return rng.generator(seed, "control").standard_normal((count, 5, 2)) + mean


def test_balanced_accuracy_and_its_bound_are_those_of_the_definition():
    trusted = np.array([1.0, 1.0, -1.0, 1.0]).reshape(4, 1, 1)
    other = np.array([-1.0, 1.0]).reshape(2, 1, 1)
    found = separation(trusted, other)
    assert found.balanced_accuracy[0] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found.tv_lower_bound[0] == pytest.approx(2 * found.balanced_accuracy[0] - 1)


def test_sets_that_cannot_be_told_apart_have_no_variation_within_the_error():
    found = separation(logits(0, seed=1), logits(0, seed=2))
    assert np.all(np.abs(found.tv_lower_bound) < 3 * found.tv_standard_error)


def test_the_standard_error_is_that_of_repetitions():
    bounds = [
        separation(logits(0.3, 50, seed=s)[:, :1, :1], logits(-0.3, 50, seed=s + 999)[:, :1, :1])
        for s in range(200)
    ]
    spread = np.std([b.tv_lower_bound[0] for b in bounds])
    assert np.mean([b.tv_standard_error[0] for b in bounds]) == pytest.approx(spread, rel=0.25)


def test_damage_that_is_found_passes_and_one_kind_is_enough():
    config = ControlConfig(severities={"gaussian_blur": 1.5, "jpeg": 85.0})
    findings = judge_control(
        logits(2), {"gaussian_blur": logits(-2, seed=1), "jpeg": logits(2, seed=2)}, config
    )
    assert findings["gaussian_blur"]["found"]
    assert not findings["jpeg"]["found"]
    require_found(findings, config)


def test_a_constant_answer_is_refused():
    config = ControlConfig(severities={"jpeg": 85.0})
    findings = judge_control(np.zeros((50, 5, 2)), {"jpeg": np.zeros((50, 5, 2))}, config)
    with pytest.raises(ClassifierRefused, match=r"jpeg 0\.00") as refused:
        require_found(findings, config)
    assert "\n" not in str(refused.value)


def test_few_images_prove_nothing():
    config = ControlConfig(severities={"jpeg": 85.0})
    findings = judge_control(logits(3, 2), {"jpeg": logits(-3, 2)}, config)
    assert not findings["jpeg"]["found"]


def test_planted_damage_is_addressed_by_the_sample():
    images = rng.generator(0, "plant").integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    both = plant(images, ["a", "b"], "sensor_noise", 20.0, seed=0)
    swapped = plant(images[::-1], ["b", "a"], "sensor_noise", 20.0, seed=0)
    np.testing.assert_array_equal(both, swapped[::-1])


def test_the_control_does_not_ask_how_logits_are_calibrated():
    """A network that sees damage passes, whatever the scale and place of its logits."""
    config = ControlConfig(severities={"jpeg": 85.0})
    for scale, offset in ((1.0, 0.0), (0.01, 0.0), (1.0, 40.0)):
        findings = judge_control(
            scale * logits(2) + offset, {"jpeg": scale * logits(-2, seed=1) + offset}, config
        )
        assert findings["jpeg"]["found"]


def test_the_threshold_is_not_chosen_on_what_it_is_measured_on():
    """Twenty images that differ by nothing: a threshold of their own would tell them apart."""
    bounds = [
        separation_at_best(logits(0, 20, seed=s), logits(0, 20, seed=s + 999)).tv_lower_bound
        for s in range(40)
    ]
    assert abs(np.mean(bounds)) < 0.03


def test_the_band_of_a_bound_holds_it_and_counts_groups_not_images():
    sides = logits(0.5, 200), logits(-0.5, 200, seed=1)
    names = [str(i) for i in range(200)]
    alone = {"trusted_groups": names, "other_groups": names}
    tenth = {name: [f"{name}{i // 10}" for i in range(200)] for name in alone}
    told = separation(*sides)
    copies = [np.repeat(side[::10], 10, axis=0) for side in sides]
    wide, narrow = (
        separation_band(*images, **groups, seed=0)
        for images, groups in ((copies, tenth), (copies, alone))
    )
    band = separation_band(*sides, **alone, seed=0)
    assert ((band.tv_low < told.tv_lower_bound) & (told.tv_lower_bound < band.tv_high)).all()
    # Ten copies of one picture are one picture.
    assert (wide.tv_high - wide.tv_low > 2 * (narrow.tv_high - narrow.tv_low)).all()


def test_domains_that_are_not_told_apart_are_refused():
    config = ControlConfig()
    require_told_apart(separation(logits(3), logits(-3, seed=1)), config)
    with pytest.raises(ClassifierRefused, match="does not tell the domains apart"):
        require_told_apart(separation(logits(0), logits(0, seed=1)), config)
