import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import spearmanr

from ambient_omni.evaluation import HeldOutLoss
from pipelines.report import plots
from pipelines.report.comparison import Comparison, with_error
from pipelines.report.drawing.style import spread
from pipelines.report.figures import number
from pipelines.report.pool import rank_correlation, shares


def loss(per_image, sigmas=(1.0, 0.5)):
    values = np.asarray(per_image, float)
    mean = values.mean(axis=0).tolist()
    return HeldOutLoss(
        reference_set="evaluation",
        checkpoint="step-00000001",
        num_images=len(values),
        num_noises=1,
        sigmas=list(sigmas),
        weighted=mean,
        weighted_standard_error=mean,
        unweighted=mean,
        unweighted_standard_error=mean,
        total=float(values.sum(axis=1).mean()),
        total_standard_error=0.5,
        sample_rows=list(range(len(values))),
        per_image=values.tolist(),
    )


def test_a_small_difference_that_every_image_shows_is_clear():
    hard = np.arange(10.0)[:, None] * np.ones((1, 2))
    wobble = 0.01 * np.cos(np.arange(10.0))[:, None]
    compared = Comparison({"a": loss(hard), "b": loss(hard + 0.1 + wobble)})
    gap = compared.total_difference("b", "a")
    assert gap.is_clear
    assert gap.mean == pytest.approx(0.2, abs=0.02)
    # Unpaired, the spread between images would hide it.
    assert gap.standard_error < hard.sum(axis=1).std() / np.sqrt(10) / 50
    assert compared.headline().startswith("“A” is best")


def test_a_difference_within_its_error_is_called_a_tie():
    swing = np.array([[1.0, 1.0], [-1.0, -1.0]] * 5)
    compared = Comparison({"a": loss(3 + 0 * swing), "b": loss(3.01 + swing)})
    assert compared.headline().startswith("Too close to call")
    assert "not told apart from “a”" in compared.verdict_on("b")


def test_one_image_has_no_error_and_wins_nothing():
    compared = Comparison({"a": loss([[1.0, 1.0]]), "b": loss([[2.0, 2.0]])})
    assert not compared.total_difference("b", "a").is_clear
    assert "no error: one image" in compared.headline()


def test_levels_are_shown_ascending_whatever_their_order():
    compared = Comparison({"a": loss([[1.0, 2.0], [1.0, 2.0]], sigmas=(5.0, 0.5))})
    assert compared.sigmas.tolist() == [0.5, 5.0]
    assert compared.per_image("a").tolist() == [[2.0, 1.0], [2.0, 1.0]]


@pytest.mark.parametrize(
    ("mean", "error", "said"),
    [(10.2834, 0.0153, "10.283 ± 0.015"), (10.2834, 1.53, "10.3 ± 1.5"), (103, 15, "103 ± 15")],
)
def test_a_figure_is_written_to_two_digits_of_its_error(mean, error, said):
    assert with_error(mean, error) == said


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=30))
def test_rank_correlation_is_spearmans(pairs):
    first, second = np.array(pairs, float).T
    if first.std() == 0 or second.std() == 0:
        assert np.isnan(rank_correlation(first, second))
    else:
        assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second)[0])


def test_never_ranks_above_every_level():
    severity = np.array([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(severity, np.array([0.0, 0.1, 5.0, np.inf])) == pytest.approx(1)


def test_shares_add_up_and_null_is_not_everywhere():
    found = shares(np.array([0.0, 0.5, np.nan, np.nan]))
    assert found == {"everywhere": 0.25, "from a level on": 0.25, "at no high level": 0.5}


def test_json_gets_neither_nan_nor_infinity():
    assert [number(v) for v in (1.5, float("nan"), float("inf"))] == [1.5, None, "never"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_labels_keep_their_order_and_their_distance(heights):
    placed = np.array(spread(heights, 0.05))
    in_order = placed[np.argsort(heights, kind="stable")]
    assert (np.diff(in_order) > 0.045).all()


LEVELS = {"web": [0.0, 0.2, np.nan], "$price$": [0.0, 0.0, 0.0], "empty": []}
GRID = np.geomspace(0.1, 10, 5)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.sigma_min_cdf(LEVELS),
        lambda: plots.sigma_min_cdf({"none": [np.nan, np.nan]}),
        lambda: plots.effective_samples({"annotated": [1, 2, 3, 4]}, GRID, [0.1, 0.4, 0.4, 0.1]),
        lambda: plots.effective_samples({}, GRID),
        lambda: plots.score_histogram(LEVELS, name="a_$core$", unit="luma^2", thresholds=[0.1]),
        lambda: plots.score_histogram({"web": [np.nan]}, name="none"),
        lambda: plots.score_histogram({"web": [2.0, 2.0]}, name="constant"),
        lambda: plots.score_against_level([1, 2, np.nan, 4], [0, 0.5, 1, np.nan], name="s"),
        lambda: plots.score_against_level([], [], name="nothing"),
        lambda: plots.tv_bound(GRID, [0.9, 0.5, 0.2, 0.0, -0.1], [0.1] * 5),
        lambda: plots.probability_curve(
            GRID, [-900, -2, -1, 0, 900], [0.1] * 5, tau=0.45, sigma_min=1.0, title="t"
        ),
        lambda: plots.probability_curve(
            GRID, [0] * 5, [0.1] * 5, tau=None, sigma_min=None, title="never"
        ),
        lambda: plots.training_curves(
            {"a": ([1, 2], [2, 1]), "b": ([], [])}, title="t", ylabel="l"
        ),
        lambda: plots.training_curves({}, title="nothing", ylabel="l"),
        lambda: plots.heldout_difference(GRID, {"b": ([0.1] * 5, [0.01] * 5)}, baseline="a"),
        lambda: plots.severity_medians(
            {"jpeg": [(1, 0.0), (2, 0.5), (3, np.inf)]}, top=1.0, title="t"
        ),
        lambda: plots.mosaic(np.zeros((5, 4, 4, 3), np.uint8), scale=2),
    ],
)
def test_every_plot_is_a_png_also_of_next_to_nothing(draw):
    image = Image.open(io.BytesIO(draw()))
    assert image.format == "PNG"
    assert min(image.size) > 1


def test_a_mosaic_holds_its_images_in_reading_order():
    tiles = np.stack([np.full((2, 2, 3), value, np.uint8) for value in (10, 20, 30)])
    picture = np.asarray(Image.open(io.BytesIO(plots.mosaic(tiles, num_columns=2, gap=1))))
    assert picture.shape == (5, 5, 3)
    assert picture[0, 0, 0] == 10
    assert picture[0, 3, 0] == 20
    assert picture[3, 0, 0] == 30
    with pytest.raises(ValueError, match="at least one image"):
        plots.mosaic(tiles[:0])
