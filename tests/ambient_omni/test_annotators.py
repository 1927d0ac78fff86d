"""Annotators against a classifier whose answer is known in closed form."""

from functools import partial

import numpy as np
import pytest

from ambient_omni import rng
from ambient_omni.classifier.annotators import (
    Curves,
    ExhaustiveSearch,
    Grid,
    Reading,
    annotate,
    antithetic_noises,
    make_annotator,
    read_between,
    shift_by_shared_noises,
    under_own_noises,
)
from ambient_omni.classifier.config import (
    ExhaustiveConfig,
    GridConfig,
    HeadConfig,
    SequentialConfig,
    annotator_id,
    read_annotator,
)
from schemas.errors import BadInput

T = np.log(0.55 / 0.45)
READING = Reading(smoothing_octaves=0.1)


def at(noises_Q, place, count):
    """One number of each noise, (B, Q): of noises that images share, or of each image's own."""
    numbers = [np.broadcast_to(noise[..., 0, place, place], count) for noise in noises_Q]
    return np.stack(numbers, axis=1)


class PowerLaw:
    """logit = -t (m / sigma)^2 + a x (mean of the noise), m written into the first pixel.

    The odd part of the noise cancels between mirror images, and on average.
    """

    sigmas = np.geomspace(0.04, 10, 18)
    num_folds = 1

    def __init__(self, noise: float = 0.0) -> None:
        self.noise, self.asked = noise, 0

    def folds_of(self, sample_ids):
        return np.zeros(len(sample_ids), np.int32)

    def ask(self, x0_BCHW, sample_ids, sigmas_BQ, noises_Q):
        assert len(x0_BCHW) == len(sample_ids) == len(sigmas_BQ)
        self.asked += np.size(sigmas_BQ)
        m = x0_BCHW[:, 0, 0, 0].astype(np.float64)[:, None]
        even = (at(noises_Q, 1, len(m)) ** 2 - 1) * self.noise
        odd = at(noises_Q, 0, len(m))
        return -T * (m / sigmas_BQ) ** 2 * np.exp(even - self.noise**2) + odd


class Shifted(PowerLaw):
    """Adds |a number of the noise|, which is even: opposite noises do not cancel it."""

    def __init__(self, num_folds: int = 1) -> None:
        super().__init__()
        self.num_folds = num_folds

    def folds_of(self, sample_ids):
        return np.array([int(name) % self.num_folds for name in sample_ids], np.int32)

    def ask(self, x0_BCHW, sample_ids, sigmas_BQ, noises_Q):
        # Folds are moved by different numbers, as different networks are.
        numbers = [np.abs(at(noises_Q, place, len(x0_BCHW))) for place in (0, 1)]
        shift = np.where(self.folds_of(sample_ids)[:, None] == 0, *numbers)
        silent = [0 * noise for noise in noises_Q]
        return super().ask(x0_BCHW, sample_ids, sigmas_BQ, silent) + shift

    def expected(self, x0_BCHW, sample_ids, sigmas_L):
        silent = np.zeros((len(sigmas_L), *x0_BCHW.shape[1:]))
        sigmas_BL = np.tile(sigmas_L, (len(x0_BCHW), 1))
        return super().ask(x0_BCHW, sample_ids, sigmas_BL, silent) + np.sqrt(2 / np.pi)


def images(levels) -> tuple[np.ndarray, list[str]]:
    x0 = np.zeros((len(levels), 3, 4, 4), np.float32)
    x0[:, 0, 0, 0] = levels
    return x0, [str(i) for i in range(len(levels))]


LEVELS = np.array([0.1, 0.3, 0.9, 2.7])


def octaves(found, true=LEVELS):
    return np.abs(np.log2(found / true))


def test_the_exhaustive_search_finds_the_level_of_a_known_law():
    search = ExhaustiveSearch(PowerLaw(0.1), ExhaustiveConfig(), seed=0)
    answer = annotate(search, *images(LEVELS), READING)
    assert octaves(answer.crossings.sigma_min).max() < 0.1
    np.testing.assert_array_equal(answer.evaluations, 8192)


def test_a_second_run_of_the_search_is_another_draw_of_the_noise():
    config = ExhaustiveConfig(num_levels=64, num_noises=2, num_bins=16)
    one, two, again = (
        ExhaustiveSearch(PowerLaw(0.1), config, 0, run=run).curves(*images(LEVELS)).logits
        for run in (0, 1, 0)
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - two).max() > 0


def test_the_search_spends_what_it_says():
    law = PowerLaw()
    config = ExhaustiveConfig(num_levels=50, num_noises=3, num_bins=16)
    found = ExhaustiveSearch(law, config, 0).curves(*images(LEVELS))
    assert law.asked == found.evaluations.sum() == 4 * 150
    assert len(found.sigmas) == 16


def test_mirrored_noises_cancel_what_is_odd_in_them():
    noises = antithetic_noises(6, (3, 4, 4), seed=1)
    np.testing.assert_array_equal(noises[:3], -noises[3:])
    found = Grid(PowerLaw(), GridConfig(num_levels=8, num_noises=2), 0).curves(*images(LEVELS))
    expected = -T * (LEVELS[:, None] / found.sigmas) ** 2
    np.testing.assert_allclose(found.logits, expected, rtol=1e-4, atol=1e-6)


def test_levels_of_a_grid_do_not_share_the_luck_of_one_noise():
    found = Grid(Shifted(), GridConfig(num_levels=8, num_noises=2), 0).curves(*images([0.0]))
    assert found.logits[0].std() > 0.1


@pytest.mark.parametrize("num_folds", [1, 2])
def test_what_shared_noises_do_to_all_images_alike_is_taken_off(num_folds):
    law = Shifted(num_folds)
    config = GridConfig(num_levels=8, num_noises=4)
    pool, names = images(np.full(600, 0.3))
    shift = shift_by_shared_noises(law, config, 7, names, pool.__getitem__)
    assert shift.shape == (num_folds, 8, 4)
    assert np.abs(shift.mean(axis=2)).max() > 0.3
    x0, names = images(LEVELS)
    plain, found = (Grid(law, config, 7, s).curves(x0, names) for s in (None, shift))
    expected = law.expected(x0, names, found.sigmas)
    assert np.abs(plain.logits - expected).max() > 0.3
    # The mean of 600 images under two pairs of own noises each.
    assert np.abs(found.logits - expected).max() < 0.1
    # What is the same for all images is no doubt about one of them.
    assert found.logit_standard_error.max() < 0.05 < plain.logit_standard_error.max()


def test_the_shift_of_a_fold_that_grades_none_of_the_images_is_not_made_up():
    x0, _ = images(np.full(3, 0.3))
    found = shift_by_shared_noises(
        Shifted(num_folds=2), GridConfig(), 0, ["0", "2", "4"], x0.__getitem__
    )
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()


def test_few_images_are_asked_under_more_noises_of_their_own():
    law, config = Shifted(), GridConfig(num_levels=8, num_noises=4)
    x0, names = images(np.full(2, 0.3))
    shift = shift_by_shared_noises(law, config, 7, names, x0.__getitem__)
    found = Grid(law, config, 7, shift).curves(x0, names)
    assert np.abs(found.logits - law.expected(x0, names, found.sigmas)).max() < 0.2


def test_own_noises_are_of_one_image_and_level_whatever_else_is_asked():
    x0, names = images(np.full(400, 1.0))
    ask = partial(under_own_noises, PowerLaw(0.3), sigmas_L=np.array([1.0, 1.0]), seed=0)
    found = ask(names, x0.__getitem__, num_pairs=1)
    assert len(np.unique(found)) == found.size
    np.testing.assert_array_equal(ask(names[:3], x0.__getitem__, num_pairs=1), found[:3])


def test_a_grid_of_eight_evaluations_reads_a_power_law_between_its_levels():
    grid = Grid(PowerLaw(), GridConfig(num_levels=4, num_noises=2), 0)
    found = grid.curves(*images(LEVELS))
    np.testing.assert_array_equal(found.evaluations, 8)
    dense = found.at(np.geomspace(0.04, 10, 64))
    law = -T * (LEVELS[:, None] / dense.sigmas) ** 2
    # A straight line from level to level would be off a hundredfold.
    inside = (law < -0.2) & (law > -200)
    assert np.abs(np.log2(dense.logits / law))[inside].max() < 1.2


def test_an_image_is_answered_alike_alone_and_in_a_batch():
    grid = Grid(PowerLaw(0.3), GridConfig(num_levels=4, num_noises=2), 0)
    x0, names = images(LEVELS)
    together, alone = grid.curves(x0, names), grid.curves(x0[2:3], names[2:3])
    np.testing.assert_array_equal(together.logits[2:3], alone.logits)


def test_bisection_stops_early_and_finds_the_level():
    law = PowerLaw(0.02)
    draw = rng.generator(0, "test-levels")
    levels = np.exp(draw.uniform(np.log(0.06), np.log(5), 200)).astype(np.float32)
    annotator = make_annotator(SequentialConfig(num_pilot_images=64), law, seed=0)
    answer = annotate(annotator, *images(levels), READING)
    assert answer.evaluations.max() <= 8
    assert answer.evaluations.min() >= 2
    assert np.median(octaves(answer.crossings.sigma_min, levels)) < 0.25


def test_bisection_says_everywhere_and_never_where_that_is_so():
    # Pilots of every kind come first.
    levels = np.concatenate([np.geomspace(0.05, 5, 40), np.full(12, 1e-3), np.full(12, 500.0)])
    annotator = make_annotator(SequentialConfig(num_pilot_images=64), PowerLaw(0.02), seed=0)
    found = annotate(annotator, *images(levels), READING).crossings
    assert (found.sigma_min[40:52] == 0).all()
    assert found.is_null[52:].all()


def test_more_noise_makes_bisection_less_sure():
    levels = np.geomspace(0.06, 5, 100)
    errors = []
    for noise in (0.02, 0.5):
        annotator = make_annotator(SequentialConfig(), PowerLaw(noise), seed=0)
        errors.append(annotate(annotator, *images(levels), READING).crossings)
    small, large = (np.nanmedian(c.standard_error_octaves) for c in errors)
    assert large > small


def test_the_interval_of_an_answer_holds_its_level():
    answer = annotate(Grid(PowerLaw(0.2), GridConfig(num_noises=4), 0), *images(LEVELS), READING)
    assert (answer.low <= answer.crossings.sigma_min).all()
    assert (answer.crossings.sigma_min <= answer.high).all()


def test_reading_between_levels_never_falls_and_keeps_the_levels():
    sigmas = np.geomspace(0.1, 10, 5)
    curve = np.array([[-80.0, -20.0, -25.0, -0.1, 0.3]])
    dense = np.geomspace(0.1, 10, 50)
    read = read_between(curve, sigmas, dense)
    assert (np.diff(read[0]) >= 0).all()
    np.testing.assert_allclose(read_between(curve, sigmas, sigmas)[0, [0, 3, 4]], [-80, -0.1, 0.3])


def test_curves_at_their_own_levels_are_themselves():
    found = Curves(
        np.array([0.1, 1.0]),
        np.zeros((2, 2), np.float32),
        np.zeros((2, 2), np.float32),
        np.ones(2, np.int32),
    )
    assert found.at(found.sigmas) is found


def test_a_head_is_not_made_from_settings_alone():
    with pytest.raises(BadInput, match="distilled first"):
        make_annotator(HeadConfig(), PowerLaw(), seed=0)


def test_a_bin_of_one_noising_has_no_error_and_is_refused():
    with pytest.raises(ValueError, match="fewer bins"):
        ExhaustiveConfig(num_levels=128, num_noises=1, num_bins=128)


def test_an_annotator_is_named_by_its_kind_or_read_from_a_file(tmp_path):
    file = tmp_path / "ours.yaml"
    file.write_text("kind: head\nnum_steps: 7\n")
    assert read_annotator("head") == HeadConfig()
    assert read_annotator(str(file)) == HeadConfig(num_steps=7)
    assert annotator_id(read_annotator(str(file))).startswith("head-")
    assert annotator_id(HeadConfig()) != annotator_id(HeadConfig(num_steps=7))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: oracle\n", "there are grid, exhaustive, sequential, head"),
        ("kind: grid\nnum_noises: 3\n", "num_noises"),
        (None, "name one of grid, exhaustive, sequential, head, or a YAML file"),
    ],
)
def test_an_annotator_that_does_not_exist_is_refused_with_the_choice(tmp_path, text, said):
    file = tmp_path / "ours.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(BadInput, match=said):
        read_annotator(str(file))
