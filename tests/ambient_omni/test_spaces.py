import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambient_omni.noise.levels import BetaSchedule
from ambient_omni.noise.spaces import LevelSpace, convert

SIGMA = LevelSpace()
LEVELS = np.array([0.02, 0.3, 1.0, 5.0])
languages = st.sampled_from(["sigma", "timestep", "alpha_bar", "flow_time"])


def test_one_is_the_level_where_signal_and_noise_are_equal():
    assert convert(1.0, SIGMA, LevelSpace(language="flow_time")) == 0.5
    assert convert(1.0, SIGMA, LevelSpace(language="alpha_bar")) == 0.5


def test_timesteps_are_those_of_the_schedule():
    schedule = BetaSchedule(shape="scaled_linear", beta_start=0.00085, beta_end=0.012)
    space = LevelSpace(language="timestep", schedule=schedule)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.cumprod(1 - betas)
    steps = np.array([0, 10, 499, 999])
    expected = np.sqrt((1 - kept[steps]) / kept[steps])
    # diffusers multiplies its betas in float32.
    assert convert(steps, space, SIGMA) == pytest.approx(expected, rel=1e-4)


@given(st.floats(0.01, 100), languages)
def test_data_that_are_scaled_have_their_level_scaled(scale, language):
    space = LevelSpace(language=language, data_scale=scale)
    unscaled = LevelSpace(language=language)
    assert convert(LEVELS, SIGMA, space) == pytest.approx(
        convert(scale * LEVELS, SIGMA, unscaled), rel=1e-9
    )


def test_images_from_zero_to_one_have_half_the_sigma_of_images_from_minus_one():
    assert convert(0.4, SIGMA, LevelSpace(data_scale=0.5)) == pytest.approx(0.2)


@given(languages, languages, st.floats(0.2, 5), st.floats(0.2, 5))
def test_there_and_back_is_the_same_level(one, other, scale, other_scale):
    source = LevelSpace(language=one, data_scale=scale)
    target = LevelSpace(language=other, data_scale=other_scale)
    levels = source.of_sigma(LEVELS)
    assert convert(convert(levels, source, target), target, source) == pytest.approx(
        levels, rel=1e-6
    )


@given(languages, languages)
def test_the_order_of_levels_is_kept_or_turned_around_as_a_whole(one, other):
    levels = LevelSpace(language=one).of_sigma(LEVELS)
    steps = np.diff(convert(levels, LevelSpace(language=one), LevelSpace(language=other)))
    assert (steps > 0).all() or (other == "alpha_bar" and (steps < 0).all())


def test_null_stays_null_and_zero_is_no_noise():
    assert np.isnan(convert(np.nan, SIGMA, LevelSpace(language="flow_time")))
    assert convert(0.0, SIGMA, LevelSpace(language="flow_time")) == 0
    assert convert(0.0, SIGMA, LevelSpace(language="alpha_bar")) == 1
    assert convert(0.0, SIGMA, LevelSpace(language="timestep")) == -np.inf


@pytest.mark.filterwarnings("error")
def test_null_zero_and_infinite_levels_cross_every_language_without_a_warning():
    for language in ("sigma", "timestep", "alpha_bar", "flow_time"):
        space = LevelSpace(language=language)
        back = space.to_sigma(space.of_sigma([np.nan, 0.0, 1.0]))
        assert np.isnan(back[0])
        assert back[1:].tolist() == pytest.approx([0.0, 1.0])
    assert LevelSpace(language="flow_time").of_sigma(np.inf) == 1.0
