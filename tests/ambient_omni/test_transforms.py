import numpy as np
import pytest
from pydantic import ValidationError

from ambient_omni import rng
from ambient_omni.data.transforms import Transform


def picture(height, width):
    return rng.generator(0, "picture", height, width).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )


def test_the_output_is_always_a_square_of_the_resolution():
    for height, width in ((50, 80), (80, 50), (7, 9), (32, 32), (1, 100)):
        for crop in ("center", "stretch"):
            out = Transform(resolution=32, crop=crop).apply(picture(height, width))
            assert out.shape == (32, 32, 3)
            assert out.dtype == np.uint8


def test_an_image_of_the_right_size_passes_unchanged():
    pixels = picture(32, 32)
    assert np.array_equal(Transform(resolution=32).apply(pixels), pixels)


def test_a_box_filter_averages_whole_blocks_of_the_central_square():
    pixels = picture(8, 12)
    out = Transform(resolution=4, filter="box").apply(pixels)
    central = pixels[:, 2:10].astype(np.float64)
    means = central.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    # Two passes, each rounded to whole levels.
    assert np.abs(out - means).max() <= 1


def test_downscaling_erases_noise_so_the_noise_space_names_the_resolution():
    noisy = picture(256, 256)
    small = Transform(resolution=32).apply(noisy)
    assert small.std() < noisy.std() / 4
    assert Transform(resolution=32).noise_space == "pixel:32x32:lanczos:center:pm1"
    assert Transform(resolution=64).noise_space != Transform(resolution=32).noise_space


def test_every_field_changes_the_transform_id():
    base = Transform(resolution=32)
    others = [
        Transform(resolution=16),
        Transform(resolution=32, filter="box"),
        Transform(resolution=32, crop="stretch"),
    ]
    assert len({base.transform_id, *(other.transform_id for other in others)}) == 4


def test_unknown_settings_and_wrong_arrays_are_refused():
    with pytest.raises(ValidationError):
        Transform(resolution=32, rotate=True)
    with pytest.raises(ValueError, match="uint8"):
        Transform(resolution=32).apply(np.zeros((4, 4, 3), np.float32))
