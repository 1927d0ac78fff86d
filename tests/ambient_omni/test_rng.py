import numpy as np
import torch

from ambient_omni import rng


def test_the_same_address_gives_the_same_numbers():
    assert np.array_equal(rng.normal((3, 4), 1, "a", 2, "x"), rng.normal((3, 4), 1, "a", 2, "x"))


def test_seed_purpose_and_position_each_change_the_numbers():
    base = rng.normal(8, 1, "a", 2)
    for other in (rng.normal(8, 2, "a", 2), rng.normal(8, 1, "b", 2), rng.normal(8, 1, "a", 3)):
        assert not np.array_equal(base, other)


def test_an_integer_and_a_string_that_look_alike_are_two_addresses():
    assert not np.array_equal(rng.normal(8, 1, "a", 2), rng.normal(8, 1, "a", "2"))
    assert not np.array_equal(rng.normal(8, 1, "a", 1, 23), rng.normal(8, 1, "a", 12, 3))


def test_numpy_integers_address_like_python_integers():
    assert np.array_equal(rng.normal(4, 1, "a", np.int64(7)), rng.normal(4, 1, "a", 7))


def test_rows_drawn_by_two_ranks_are_the_rows_of_one():
    whole = rng.normal_rows(range(6), (2, 3), 5, "noise", 9)
    parts = [rng.normal_rows(range(start, 6, 2), (2, 3), 5, "noise", 9) for start in (0, 1)]
    assert np.array_equal(whole[0::2], parts[0])
    assert np.array_equal(whole[1::2], parts[1])


def test_rows_are_standard_normal_and_independent():
    rows = rng.normal_rows(range(200), (500,), 5, "noise", 0).astype(np.float64)
    assert abs(rows.mean()) < 0.02
    assert abs(rows.std() - 1) < 0.02
    correlation = np.corrcoef(rows)
    assert np.abs(correlation[np.triu_indices(200, 1)]).max() < 0.25


def test_seeding_torch_for_a_block_leaves_its_global_generator_alone():
    before = torch.get_rng_state()
    with rng.torch_seeded(3, "init"):
        first = torch.randn(4)
    assert torch.equal(before, torch.get_rng_state())
    with rng.torch_seeded(3, "init"):
        assert torch.equal(first, torch.randn(4))


def test_the_normal_quantile_inverts_the_normal_distribution():
    z = np.linspace(-5, 5, 41)
    probability = torch.special.ndtr(torch.from_numpy(z)).numpy()
    assert np.allclose(rng.standard_normal_quantile(probability), z, atol=1e-6)
    assert np.isfinite(rng.standard_normal_quantile(np.array([0.0, 1.0]))).all()


def test_the_noise_of_a_row_is_that_of_a_new_generator_at_its_counter():
    rows = [5, 0, 2**40, 5]
    together = rng.normal_rows(rows, (3, 5), 7, "noise", 11)
    key = rng._key(7, "noise", (11,))
    for block, row in zip(together, rows, strict=True):
        philox = np.random.Philox(key=key, counter=np.array([0, 0, row, 0], np.uint64))
        alone = np.random.Generator(philox).standard_normal((3, 5), dtype=np.float32)
        assert np.array_equal(block, alone)
