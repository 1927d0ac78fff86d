"""Distillation from a teacher whose mean answer is known."""

from dataclasses import dataclass

import numpy as np
import pytest

from ambient_omni import rng
from ambient_omni.classifier.annotators import Reading, annotate
from ambient_omni.classifier.config import ExhaustiveConfig, HeadConfig
from ambient_omni.classifier.head import HeadAnnotator, Lessons, octaves_apart, train_head
from ambient_omni.classifier.severity import shown_as_pixels
from ambient_omni.data.packs import to_x0
from schemas.errors import ClassifierRefused

QUICK = HeadConfig(
    widths=(8,),
    hidden=32,
    num_steps=200,
    batch_size=32,
    num_looks=0,
    check=ExhaustiveConfig(num_levels=64, num_noises=2, num_bins=32),
)
READING = Reading()


class Texture:
    """logit = -contrast^2 / sigma^2, and noise: contrast is damage here."""

    sigmas = np.geomspace(0.04, 10, 12)

    def folds_of(self, sample_ids):
        return np.array([int(name) % 2 for name in sample_ids], np.int32)

    def ask(self, x0_BCHW, sample_ids, sigmas_BQ, noises_QCHW):
        contrast = x0_BCHW.std(axis=(1, 2, 3), dtype=np.float64)[:, None]
        return -(contrast**2) / sigmas_BQ**2 + 0.1 * noises_QCHW[:, 0, 0, 0]


def textures(count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    draw = rng.generator(seed, "test-textures")
    contrast = np.exp(draw.uniform(np.log(0.05), np.log(0.6), count))
    noise = draw.standard_normal((count, 3, 16, 16))
    x0 = (contrast[:, None, None, None] * noise).astype(np.float32)
    return x0, [str(i) for i in range(count)]


@pytest.fixture(scope="module")
def heads():
    x0, names = textures(240, seed=1)
    is_check = np.arange(240) % 4 == 0
    return [
        train_head(Texture(), Lessons(x0, names, is_check), QUICK, READING, seed=0, fold=fold)
        for fold in (0, 1)
    ]


def test_a_head_finds_the_levels_of_new_images_in_one_evaluation(heads):
    x0, names = textures(64, seed=2)
    teacher = Texture()
    answer = annotate(HeadAnnotator(teacher, heads, seed=0), x0, names, READING)
    np.testing.assert_array_equal(answer.evaluations, 1)
    # c^2 / s^2 = t at the level.
    truth = x0.std(axis=(1, 2, 3), dtype=np.float64) / np.sqrt(np.log(0.55 / 0.45))
    error = np.abs(np.log2(answer.crossings.sigma_min / truth))
    spread = np.abs(np.log2(np.median(truth) / truth))
    assert np.median(error) < np.median(spread) / 3


def test_the_check_says_how_far_off_it_is_on_images_that_it_did_not_learn_from(heads):
    for head in heads:
        assert head.check.num_images == 60
        assert 0 < head.check.median_octaves < QUICK.max_median_octaves
        assert head.check.p95_octaves >= head.check.median_octaves
        assert head.check.logit_error.shape == (12,)


def test_looks_bring_a_poor_head_closer_to_the_levels(heads):
    x0, names = textures(64, seed=2)
    teacher = Texture()
    lessons = Lessons(*textures(240, seed=1), np.arange(240) % 4 == 0)
    poor = QUICK.model_copy(update={"num_steps": 20, "max_median_octaves": 9.0})
    truth = x0.std(axis=(1, 2, 3), dtype=np.float64) / np.sqrt(np.log(0.55 / 0.45))
    errors = []
    for num_looks in (0, 3):
        config = poor.model_copy(update={"num_looks": num_looks})
        found = [train_head(teacher, lessons, config, READING, seed=0, fold=f) for f in (0, 1)]
        answer = annotate(HeadAnnotator(teacher, found, seed=0), x0, names, READING)
        np.testing.assert_array_equal(answer.evaluations, 1 + 2 * num_looks)
        errors.append(np.median(np.abs(np.log2(answer.crossings.sigma_min / truth))))
    assert errors[1] < errors[0] / 2


def test_every_image_is_answered_by_the_head_of_its_fold(heads):
    x0, names = textures(6, seed=3)
    both = HeadAnnotator(Texture(), heads, seed=0).curves(x0, names)
    swapped = HeadAnnotator(Texture(), heads[::-1], seed=0).curves(x0, names)
    alone = HeadAnnotator(Texture(), heads, seed=0).curves(x0[1:2], names[1:2])
    np.testing.assert_allclose(both.logits[1:2], alone.logits, rtol=1e-4, atol=1e-5)
    assert np.abs(both.logits - swapped.logits).max() > 0
    ends = both.logit_standard_error[1][[0, -1]]
    np.testing.assert_allclose(ends, heads[1].check.logit_error[[0, -1]], rtol=1e-6)


def test_a_head_that_disagrees_with_the_search_is_refused():
    x0, names = textures(80, seed=1)
    untrained = QUICK.model_copy(update={"num_steps": 1, "max_median_octaves": 0.05})
    lessons = Lessons(x0, names, np.arange(80) % 2 == 0)
    with pytest.raises(ClassifierRefused, match=r"octaves off .* annotate with a grid"):
        train_head(Texture(), lessons, untrained, READING, seed=0, fold=0)


@dataclass(frozen=True)
class Pictures:
    pixels: np.ndarray

    def __len__(self):
        return len(self.pixels)

    def take(self, indices):
        return self.pixels[indices]


def test_a_head_learns_from_damaged_copies_and_is_checked_on_images_only():
    draw = rng.generator(0, "test-lessons")
    learn, check = (draw.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8) for n in (4, 3))
    lessons = Lessons.of(
        (learn, list("abcd")),
        (check, list("xyz")),
        shown_as_pixels(Pictures(learn)),
        {"gaussian_blur": (0.3, 0.5)},
        num_copies=5,
        seed=0,
        fold=0,
    )
    assert lessons.sample_ids[:4] == list("abcd")
    assert set(lessons.sample_ids[4:9]) <= set("abcd")
    np.testing.assert_array_equal(lessons.is_check, [False] * 9 + [True] * 3)
    np.testing.assert_array_equal(lessons.x0[9:], to_x0(check))
    for copy, name in zip(lessons.x0[4:9], lessons.sample_ids[4:9], strict=True):
        away = np.abs(copy - to_x0(learn)).mean(axis=(1, 2, 3))
        assert away.argmin() == "abcd".index(name)


def test_octaves_count_zero_as_the_lowest_level_and_null_as_the_highest():
    sigmas = np.array([0.25, 4.0])
    apart = octaves_apart(np.array([0.0, np.nan, 1.0]), np.array([0.5, 2.0, 1.0]), sigmas)
    np.testing.assert_allclose(apart, [-1, 1, 0])
