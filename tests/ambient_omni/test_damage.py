import numpy as np
import pytest

from ambient_omni import rng
from ambient_omni.damage import DAMAGES, damage

SEVERITIES = {
    "gaussian_blur": (0.5, 1.0, 2.0),
    "motion_blur": (2.0, 5.0, 9.0),
    "down_up": (1.5, 2.5, 4.0),
    "jpeg": (30.0, 70.0, 95.0),
    "sensor_noise": (5.0, 20.0, 60.0),
}


def picture(side: int = 32) -> np.ndarray:
    """A smooth gradient with a hard-edged square: low and high frequencies."""
    ramp = np.linspace(40, 200, side)
    image = np.stack(
        [np.tile(ramp, (side, 1)), np.tile(ramp[:, None], side), np.full((side,) * 2, 90)], -1
    )
    image[8:20, 8:20] = (250, 10, 10)
    return image.astype(np.uint8)


def apply(kind: str, severity: float, image: np.ndarray, key: int = 0) -> np.ndarray:
    return damage(kind, severity, image, rng.generator(0, "test-damage", key))


def test_every_kind_has_severities_here():
    assert set(SEVERITIES) == set(DAMAGES)


@pytest.mark.parametrize("kind", SEVERITIES)
def test_a_greater_severity_moves_the_image_further_from_the_original(kind):
    image = picture()
    errors = [np.abs(apply(kind, s, image).astype(float) - image).mean() for s in SEVERITIES[kind]]
    assert errors == sorted(errors)
    assert errors[0] > 0


@pytest.mark.parametrize("kind", SEVERITIES)
def test_the_same_address_gives_the_same_bytes_and_leaves_the_input_alone(kind):
    image = picture()
    before = image.copy()
    first, second = (apply(kind, SEVERITIES[kind][1], image) for _ in range(2))
    assert first.dtype == np.uint8
    assert first.shape == image.shape
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("kind", ["gaussian_blur", "motion_blur", "down_up"])
def test_blur_like_kinds_keep_a_flat_image_flat(kind):
    flat = np.full((17, 23, 3), 123, np.uint8)
    np.testing.assert_array_equal(apply(kind, 3.0, flat), flat)


def test_gaussian_blur_of_a_dot_has_the_variance_of_its_width():
    dot = np.zeros((33, 33, 3), np.uint8)
    dot[16, 16] = 255
    blurred = apply("gaussian_blur", 1.5, dot).astype(float)[..., 0]
    offsets = np.arange(33) - 16
    variance = (blurred.sum(0) * offsets**2).sum() / blurred.sum()
    # Rounding to grey levels cuts the tails, which carry most of the variance.
    assert variance == pytest.approx(1.5**2, rel=0.15)


def test_motion_blur_keeps_the_mean_of_a_dot_in_the_middle():
    dot = np.zeros((33, 33, 3), np.uint8)
    dot[14:19, 14:19] = 255
    blurred = apply("motion_blur", 6.0, dot)
    assert blurred.mean() == pytest.approx(dot.mean(), rel=0.05)


def test_sensor_noise_has_the_stated_standard_deviation():
    grey = np.full((64, 64, 3), 128, np.uint8)
    assert apply("sensor_noise", 12.0, grey).std() == pytest.approx(12.0, rel=0.05)


def test_images_that_are_not_square_keep_their_shape():
    image = picture()[:20]
    for kind, severities in SEVERITIES.items():
        assert apply(kind, severities[0], image).shape == image.shape


@pytest.mark.parametrize(
    ("kind", "severity", "image"),
    [
        ("fog", 1.0, picture()),
        ("jpeg", 0.0, picture()),
        ("jpeg", float("nan"), picture()),
        ("jpeg", 10.0, picture().astype(np.float32)),
        ("jpeg", 10.0, picture()[..., 0]),
    ],
)
def test_wrong_arguments_are_refused(kind, severity, image):
    with pytest.raises(ValueError, match=r"no kind of damage|must be positive|expected uint8"):
        apply(kind, severity, image)
