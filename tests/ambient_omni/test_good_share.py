import numpy as np
import pytest

from ambient_omni import rng
from ambient_omni.classifier.good_share import estimate_good_share, resample_groups


def scores(count: int, mean: float, address: str) -> np.ndarray:
    return rng.generator(0, "test-good-share", address).normal(mean, 1.0, count)


def estimate(trusted, pool):
    return estimate_good_share(
        trusted,
        pool,
        trusted_groups=[f"t{i}" for i in range(len(trusted))],
        pool_groups=[f"p{i}" for i in range(len(pool))],
        seed=0,
    )


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_the_share_of_a_known_mixture_is_found_and_lies_in_its_band(share):
    trusted, good = scores(2_000, 3.0, "trusted"), scores(2_000, 3.0, f"good-{share}")
    num_good = round(2_000 * share)
    pool = np.concatenate([good[:num_good], scores(2_000 - num_good, -1.0, f"bad-{share}")])
    found = estimate(trusted, pool)
    assert found.share == pytest.approx(share, abs=0.05)
    assert found.low - 0.03 <= share <= found.high + 0.03


def test_a_classifier_that_tells_nothing_calls_the_whole_pool_good():
    found = estimate(scores(500, 0.0, "one"), scores(500, 0.0, "two"))
    assert found.share > 0.85


def test_few_images_make_a_wide_band():
    wide, narrow = (
        estimate(scores(n, 2.0, f"t{n}"), np.r_[scores(n, 2.0, f"g{n}"), scores(n, -2.0, f"b{n}")])
        for n in (20, 2_000)
    )
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_twins_are_drawn_together():
    groups = ["a", "a", "a", "b", "c", "c"]
    chosen = resample_groups(groups, rng.generator(0, "twins"))
    counts = np.bincount(chosen, minlength=6)
    assert counts[0] == counts[1] == counts[2]
    assert counts[4] == counts[5]
    assert counts[0] + counts[3] + counts[4] == 3
