import io

import numpy as np
import pytest
from PIL import Image

from ambient_omni import rng
from pipelines.scorers import PACKS
from pipelines.scorers.base import Pack, Scorer, code_hash, score_packs
from pipelines.scorers.classical import CLASSICAL
from schemas.scores import contract_for


def score(*images):
    return CLASSICAL.score([np.asarray(image, np.uint8) for image in images])


def one(image, column):
    return float(score(image).columns[column][0])


def grey(luma):
    return np.repeat(np.asarray(luma)[:, :, None], 3, axis=2).astype(np.uint8)


def photo(side=64, seed=0):
    noise = rng.generator(seed, "test-photo").integers(40, 216, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC))


def jpeg(image, quality):
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=quality)
    return np.asarray(Image.open(io.BytesIO(out.getvalue())))


def test_every_column_of_the_contract_has_one_scorer_with_the_same_range():
    for name, pack in PACKS.items():
        contract = contract_for(name)
        fixed = {"sample_row", "ingest_batch", "scorer_version", "scorer_versions"}
        fixed |= {"unscored_reason"}
        assert {s.name for s in pack.scorers} == set(contract.names) - fixed
        for scorer in pack.scorers:
            column = contract.column(scorer.name)
            assert (scorer.minimum, scorer.maximum) == (column.minimum, column.maximum)
            assert scorer.unit == column.unit
            assert scorer.source


def test_sharpness_of_a_checkerboard_is_the_variance_of_plus_and_minus_four_steps():
    board = (np.indices((16, 16)).sum(axis=0) % 2) * 10
    # The Laplacian is -40 on the bright and +40 on the dark squares, equally many.
    assert one(grey(board), "sharpness") == pytest.approx(1600, rel=1e-5)


def test_sharpness_of_a_linear_ramp_is_zero():
    assert one(grey(np.tile(np.arange(32), (32, 1))), "sharpness") == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("std", [3.0, 10.0])
def test_noise_std_finds_gaussian_noise_on_a_ramp(std):
    ramp = np.tile(np.linspace(80, 160, 256), (256, 1))
    noisy = ramp + std * rng.normal(ramp.shape, 0, "test-noise")
    assert one(grey(np.rint(noisy)), "noise_std") == pytest.approx(std, rel=0.03)


def test_blockiness_of_eight_pixel_tiles_is_their_step_and_of_anything_unaligned_less():
    tiles = np.kron((np.indices((4, 4)).sum(axis=0) % 2) * 50, np.ones((8, 8)))
    assert one(grey(tiles), "blockiness") == pytest.approx(51, rel=1e-4)
    assert one(grey(np.roll(tiles, 3, axis=(0, 1))), "blockiness") < 1


def test_blockiness_grows_as_jpeg_quality_falls():
    found = [one(jpeg(photo(128), quality), "blockiness") for quality in (95, 30, 10, 5)]
    assert found == sorted(found)
    assert found[-1] > 1.5 * found[0]


def test_colour_and_brightness_follow_their_definitions():
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    assert one(red, "saturation") == 1
    assert one(red, "brightness") == pytest.approx(0.299 * 200, rel=1e-5)
    assert one(np.full((8, 8, 3), 255), "brightness") <= 255
    half = np.zeros((8, 8))
    half[:4] = 100
    assert one(grey(half), "contrast") == pytest.approx(50, rel=1e-5)
    assert one(grey(half), "saturation") == 0


def test_entropy_counts_equally_likely_levels():
    assert one(grey(np.arange(256).reshape(16, 16)), "entropy") == pytest.approx(8)
    assert one(grey(np.full((16, 16), 7)), "entropy") == 0


def test_resolution_is_counted_in_pixels():
    found = score(np.zeros((5, 9, 3)))
    assert (found.columns["num_pixels"][0], found.columns["min_side"][0]) == (45, 5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (2, 2), (8, 8), (9, 9), (3, 1000)])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_tiny_and_constant_images_give_finite_numbers_or_a_reason(shape, value):
    found = score(np.full((*shape, 3), value))
    nulls = [name for name, values in found.columns.items() if np.isnan(values[0])]
    assert not any(np.isinf(values[0]) for values in found.columns.values())
    assert [name for name in found.columns if name in found.reasons[0]] == nulls


def test_a_measure_that_is_not_finite_becomes_null_with_a_reason():
    broken = Scorer(
        "broken", lambda p: np.full(p.shape[0], np.inf), "higher_is_better", None, None, "", "test"
    )
    found = Pack("test", (broken,)).score([np.zeros((4, 4, 3), np.uint8)])
    assert np.isnan(found.columns["broken"][0])
    assert found.reasons == [{"broken": "not finite"}]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.0001, -0.0001])
def test_a_value_that_is_no_score_never_reaches_a_row(value):
    broken = Scorer(
        "broken", lambda p: np.full(p.shape[0], value), "higher_is_better", 0, 1, "", "test"
    )
    pack = Pack("test", (broken, CLASSICAL.scorer("brightness")))
    found = pack.score([np.zeros((4, 4, 3), np.uint8)] * 2)
    assert np.isnan(found.columns["broken"]).all()
    why = "not finite" if not np.isfinite(value) else "outside 0..1"
    assert list(found.reasons) == [{"broken": why}] * 2
    assert found.columns["brightness"].tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 10_000), (10_000, 1), (300, 300)])
@pytest.mark.parametrize("name", ["classical", "natural_statistics", "safety"])
def test_no_pack_gives_a_number_that_is_none(name, shape):
    packs = {name: (PACKS[name], None)}
    for value in (0, 255):
        found = score_packs(packs, [np.full((*shape, 3), value, np.uint8)])[name]
        for column, values in found.columns.items():
            scorer = PACKS[name].scorer(column)
            assert np.isnan(values[0]) == (column in found.reasons[0])
            low = -np.inf if scorer.minimum is None else scorer.minimum
            assert np.isnan(values[0]) or low <= values[0] < np.inf


def test_packs_that_run_together_say_what_they_say_alone():
    images = [photo(200, 1), photo(64, 2), photo(200, 3), photo(260, 4)]
    names = ("classical", "natural_statistics")
    together = score_packs({name: (PACKS[name], None) for name in names}, images)
    for name in names:
        alone = PACKS[name].score(images)
        assert alone.reasons == together[name].reasons
        for column, values in alone.columns.items():
            assert np.array_equal(values, together[name].columns[column], equal_nan=True)


def test_scorers_of_one_chunk_share_one_resize_a_size(monkeypatch):
    from pipelines.scorers import images as images_module
    from pipelines.scorers.images import Images

    resized = []
    plain = images_module._resized
    monkeypatch.setattr(
        images_module, "_resized", lambda *args: resized.append(args[1]) or plain(*args)
    )
    chunk = Images([photo(50), photo(60)])
    assert chunk.squares(32) is chunk.squares(32)
    chunk.squares(40)
    assert resized == [32, 32, 40, 40]


def test_equal_images_get_equal_scores_wherever_they_stand():
    image = photo(96, 7)
    found = score(*[image] * 9, photo(96, 8), *[image] * 30)
    for values in found.columns.values():
        assert len(set(np.delete(values, 9))) == 1


def test_scores_do_not_depend_on_order_or_on_neighbours():
    images = [photo(32, 1), photo(48, 2), photo(32, 3), photo(32, 4)]
    together = score(*images)
    for place, image in enumerate(images):
        alone = score(image)
        for name, values in together.columns.items():
            assert values[place] == pytest.approx(alone.columns[name][0], rel=1e-6), name


def test_reported_ranges_hold_on_random_images():
    draws = rng.generator(0, "test-range")
    images = [draws.integers(0, 256, (24, 24, 3), dtype=np.uint8) for _ in range(20)]
    found = score(*images)
    for scorer in CLASSICAL.scorers:
        values = found.columns[scorer.name]
        assert np.all(values >= (-np.inf if scorer.minimum is None else scorer.minimum))
        assert np.all(values <= (np.inf if scorer.maximum is None else scorer.maximum))


def test_code_hash_ignores_comments_and_layout_and_sees_code():
    one = 'def f(x):\n    """Old words."""\n    return x + 1  # why\n'
    reworded = 'def f(x):\n  """New words."""\n\n  # other\n  return x + 1\n'
    assert code_hash(one) == code_hash(reworded)
    assert code_hash(one) != code_hash(one.replace("+ 1", "+ 2"))


def test_version_changes_with_a_parameter():
    first = CLASSICAL.scorers[0]
    other = Scorer(
        first.name, first.measure, first.direction, 0, None, first.unit, first.source, min_side=5
    )
    changed = Pack(CLASSICAL.name, (other, *CLASSICAL.scorers[1:]), CLASSICAL.code)
    assert changed.version != CLASSICAL.version
    assert CLASSICAL.version.startswith("classical-")
