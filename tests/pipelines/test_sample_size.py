import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.policies.by_sample_size import (
    SampleSizeAware,
    best_evidence,
    calibrate_constant,
    decide_by_sample_size,
    evidence,
    pool_moments,
    shrink,
)
from schemas.errors import BadInput

SIGMAS = np.geomspace(0.05, 20, 12)


def frozen(logits, errors, n_trusted, constant):
    mean, spread = pool_moments(logits, errors)
    against = evidence(shrink(logits, errors, mean, spread))
    bounds = [
        best_evidence(column, n_trusted, sigma, constant)
        for column, sigma in zip(against.T, SIGMAS, strict=True)
    ]
    return SampleSizeAware(
        noise_space="pixel",
        classifier_id="c1",
        constant=constant,
        n_trusted=n_trusted,
        n_pool=len(logits),
        sigmas=tuple(SIGMAS),
        tv=tuple(against.mean(axis=0)),
        mean_logit=tuple(mean),
        spread=tuple(spread),
        max_evidence=tuple(bounds),
    )


def levels(policy, logits, errors):
    found = decide_by_sample_size(policy, logits, errors, SIGMAS).sigma_min
    return np.where(np.isnan(found), np.inf, found)


@st.composite
def pools(draw):
    count = draw(st.integers(3, 30))
    strengths = np.array(draw(st.lists(st.floats(0, 30), min_size=count, max_size=count)))
    power = draw(st.floats(0.7, 3))
    seed = draw(st.integers(0, 2**16))
    noise = np.random.Generator(np.random.Philox(seed)).normal(size=(count, 12))
    size = draw(st.floats(0, 0.3))
    logits = np.minimum(-strengths[:, None] / SIGMAS**power, 0) + size * noise
    return logits, np.full_like(logits, size)


@given(pools(), st.integers(1, 5000), st.integers(1, 5000), st.floats(1e-3, 1e3))
@settings(max_examples=150, deadline=None)
def test_fewer_trusted_images_never_raise_a_level(pool, one, other, constant):
    logits, errors = pool
    few, many = sorted((one, other))
    assert (
        levels(frozen(logits, errors, few, constant), logits, errors)
        <= levels(frozen(logits, errors, many, constant), logits, errors) + 1e-9
    ).all()


@given(pools(), st.integers(1, 5000), st.floats(1e-3, 1e3), st.floats(0, 3))
@settings(max_examples=100, deadline=None)
def test_a_worse_curve_never_gets_a_lower_level(pool, n_trusted, constant, worse):
    logits, errors = pool
    policy = frozen(logits, errors, n_trusted, constant)
    drop = worse / SIGMAS
    before, after = levels(policy, logits, errors), levels(policy, logits - drop, errors)
    assert (after >= before - 1e-9).all()


def test_the_whole_pool_against_none_is_the_rule_of_the_formula():
    for tv in (0.01, 0.1, 0.3, 0.6):
        for sigma in (0.1, 1.0, 5.0):
            said = best_evidence(np.full(400, tv), 100, sigma, 10.0)
            bound = np.sqrt(10.0 / 100) / (1 + np.sqrt(100 / 500))
            assert (said == 1.0) == (tv * sigma <= bound)


def test_the_best_set_is_the_one_that_brute_force_finds():
    against = np.random.Generator(np.random.Philox(3)).random(9)
    for sigma in (0.2, 1.0, 4.0):
        ordered = np.sort(against)
        errors = [ordered[:k].sum() / (20 + k) + np.sqrt(2 / (20 + k)) / sigma for k in range(10)]
        best = int(np.argmin(errors))
        said = best_evidence(against, 20, sigma, 2.0)
        assert said == (1.0 if best == 9 else ordered[best - 1] if best else 0.0)


def test_an_image_with_a_noisy_curve_is_judged_by_the_pool():
    mean, spread = np.array([-1.0]), np.array([0.5])
    sure = shrink(np.array([[3.0]]), np.array([[0.0]]), mean, spread)
    unsure = shrink(np.array([[3.0]]), np.array([[50.0]]), mean, spread)
    assert sure[0, 0] == 3.0
    assert unsure[0, 0] == pytest.approx(-1.0, abs=0.01)


def test_the_constant_is_found_that_the_measured_signs_came_from():
    tv = 1 / (1 + SIGMAS**2)
    true, n_trusted, n_pool = 5.0, 200, 800
    ratio = 1 + np.sqrt(n_trusted / (n_trusted + n_pool))
    helps = tv * SIGMAS <= np.sqrt(true / n_trusted) / ratio
    found = calibrate_constant(SIGMAS, tv, helps, n_trusted, n_pool)
    again = tv * SIGMAS <= np.sqrt(found / n_trusted) / ratio
    assert (again == helps).all()


def test_a_pool_that_always_helps_calibrates_nothing_and_says_so():
    with pytest.raises(BadInput, match="at every level"):
        calibrate_constant(SIGMAS, np.full(12, 0.1), [True] * 12, 10, 10)


def test_curves_on_another_grid_are_refused():
    logits = -1 / np.tile(SIGMAS, (4, 1))
    policy = frozen(logits, np.zeros_like(logits), 10, 1.0)
    with pytest.raises(BadInput, match="another grid"):
        decide_by_sample_size(policy, logits[:, :6], logits[:, :6], SIGMAS[:6])
