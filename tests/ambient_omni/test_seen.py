import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ambient_omni.training.seen import SeenSamples
from schemas.ids import sample_row_of

rows = st.lists(
    st.builds(sample_row_of, st.integers(0, 3), st.integers(0, 200)), min_size=1, max_size=50
)


@given(rows, rows, rows)
def test_exactly_what_was_added_is_there_also_after_a_checkpoint(first, second, asked):
    seen, resumed = SeenSamples(), SeenSamples()
    seen.add(np.array(first))
    resumed.restore(seen.tensors())
    resumed.add(np.array(second))
    assert resumed.has(np.array(asked)).tolist() == [row in {*first, *second} for row in asked]
    assert len(resumed) == len({*first, *second})
    assert len(seen) == len(set(first))


@given(rows, rows)
def test_the_union_of_two_is_what_either_has(first, second):
    one, other = SeenSamples(), SeenSamples()
    one.add(np.array(first))
    other.add(np.array(second))
    one.unite(other)
    assert one.has(np.array([*first, *second])).all()
    assert len(one) == len({*first, *second})


def test_a_bit_a_sample_is_all_it_takes():
    seen = SeenSamples()
    seen.add(np.arange(800_000))
    assert sum(bits.numel() for bits in seen.tensors().values()) == 100_000


def test_a_sample_beyond_what_was_seen_was_not_seen():
    seen = SeenSamples()
    seen.add(np.array([3]))
    assert seen.has(np.array([1 << 31, sample_row_of(7, 3)])).tolist() == [False, False]
