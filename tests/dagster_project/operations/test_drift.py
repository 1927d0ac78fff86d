import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ambient_omni import rng
from dagster_project.operations.drift import (
    _chi_squared_quantile,
    accepted_before,
    population_stability_index,
)
from dagster_project.request import BatchRequest, Request, Verdict


def normal(count, purpose, shift=0.0):
    return rng.generator(0, purpose).standard_normal(count) + shift


def test_equal_shares_have_index_zero():
    values = np.arange(1000.0)
    assert population_stability_index(values, values, 10)[0] == pytest.approx(0, abs=1e-12)


def test_the_index_is_the_symmetric_divergence_of_the_shares():
    # Two bins: 3 of 4 against 1 of 4, half a count added to each, and an empty bin of nulls.
    accepted, new = np.repeat([0.0, 2.0], [3000, 1000]), np.repeat([0.0, 2.0], [1000, 3000])
    psi, _ = population_stability_index(accepted, new, 4)
    assert psi == pytest.approx(2 * 0.5 * np.log(3), rel=2e-3)


def test_samples_of_one_distribution_stay_below_chance():
    above = 0
    for number in range(200):
        draws = [normal(150, f"drift-{side}-{number}") for side in "ab"]
        psi, chance = population_stability_index(*draws, 10)
        above += psi > chance
    assert above <= 3


def test_a_shift_of_one_standard_deviation_stands_out():
    psi, chance = population_stability_index(normal(200, "a"), normal(200, "b", 1.0), 10)
    assert psi > max(0.25, chance)


def test_scores_that_could_not_be_had_count_as_drift():
    new = normal(200, "b")
    new[:100] = np.nan
    psi, chance = population_stability_index(normal(200, "a"), new, 10)
    assert psi > max(0.25, chance)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.one_of(st.just(float("nan")), st.floats(-5, 5)), min_size=2, max_size=40),
    st.lists(st.one_of(st.just(float("nan")), st.floats(-5, 5)), min_size=2, max_size=40),
)
def test_the_index_is_finite_and_never_negative(accepted, new):
    psi, chance = population_stability_index(accepted, new, 10)
    assert np.isfinite(psi)
    assert psi >= -1e-12
    assert chance >= 0


@pytest.mark.parametrize(("degrees", "quantile"), [(5, 20.515), (9, 27.877), (10, 29.588)])
def test_the_quantile_is_that_of_the_tables(degrees, quantile):
    assert _chi_squared_quantile(degrees) == pytest.approx(quantile, rel=0.02)


def test_a_batch_is_compared_with_the_last_of_its_stream_that_was_not_held():
    batches = [
        BatchRequest(name=name, role="pool", source="/x", stream=stream)
        for name, stream in (("a", "s"), ("b", "s"), ("other", "t"), ("c", "s"))
    ]
    request = Request(recipe={}, batches=tuple(batches))
    assert accepted_before(request, "c") == "b"
    held = request.model_copy(update={"verdicts": {"b": Verdict(status="held", why="odd")}})
    assert accepted_before(held, "c") == "a"
    assert accepted_before(held, "a") is None
    assert accepted_before(held, "other") is None
