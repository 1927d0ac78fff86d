import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ids


def test_a_sample_id_is_the_sha256_of_the_bytes():
    assert ids.sample_id_of(b"abc") == hashlib.sha256(b"abc").hexdigest()


@given(st.integers(0, ids.MAX_BATCH_ORDINAL), st.integers(0, ids.MAX_POSITION))
def test_a_sample_row_fits_an_int64_and_can_be_taken_apart(ordinal, position):
    row = ids.sample_row_of(ordinal, position)
    assert 0 <= row < 2**63
    assert ids.split_sample_row(row) == (ordinal, position)


@given(
    st.tuples(st.integers(0, 9), st.integers(0, 9)), st.tuples(st.integers(0, 9), st.integers(0, 9))
)
def test_sample_rows_sort_by_batch_then_position(a, b):
    assert (a < b) == (ids.sample_row_of(*a) < ids.sample_row_of(*b))


@pytest.mark.parametrize(("ordinal", "position"), [(-1, 0), (0, -1), (0, 2**32), (2**31, 0)])
def test_a_sample_row_outside_its_range_is_refused(ordinal, position):
    with pytest.raises(ValueError, match="outside"):
        ids.sample_row_of(ordinal, position)


def test_a_canonical_hash_does_not_depend_on_the_order_of_keys_but_on_every_value():
    assert ids.canonical_hash({"a": 1, "b": [2]}) == ids.canonical_hash({"b": [2], "a": 1})
    assert ids.canonical_hash({"a": 1}) != ids.canonical_hash({"a": 2})


def test_a_canonical_hash_refuses_nan():
    with pytest.raises(ValueError, match="JSON"):
        ids.canonical_hash({"a": float("nan")})


def test_hash_fractions_are_uniform_and_differ_by_purpose():
    names = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(4000)]
    values = [ids.hash_fraction(name, "validation") for name in names]
    assert all(0 <= v < 1 for v in values)
    # 4000 Bernoulli(0.25) draws: five standard deviations are 0.034.
    assert abs(sum(v < 0.25 for v in values) / 4000 - 0.25) < 0.034
    assert ids.hash_fraction(names[0], "fold") != ids.hash_fraction(names[0], "validation")
