import numpy as np
import pytest

from ambient_omni import rng
from pipelines.encoders import EncoderConfig
from pipelines.jobs import ood as ood_module
from pipelines.jobs.ood import OodConfig, ood
from pipelines.jobs.ood import measure as ood_module_measure
from pipelines.jobs.score import ScoreConfig, score
from pipelines.ood import fit, shrunk_variances
from pipelines.ood_model import MEASURES, NUM_FOLDS, PERCENTILES, OodModel, deal_folds, fit_model
from pipelines.spark import TasksFailed
from schemas.errors import NotEnoughReferences, TableMissing
from schemas.registry import contract

ENCODER = EncoderConfig(resolution=32)
CONFIG = OodConfig(encoder=ENCODER, num_neighbours=3)


def normal(*shape, seed=0):
    return rng.normal(shape, seed, "test-ood").astype(np.float64)


def gaussian(x_RD, max_components=64):
    return fit(x_RD, max_components=max_components)


def fitted(x_RD, **overrides):
    options = {"max_components": 64, "num_neighbours": 3} | overrides
    return fit_model(x_RD, np.arange(len(x_RD)), **options)


def knn(model, x_ND, rows_N):
    return model.measure(x_ND, rows_N)["knn_distance"]


def test_mahalanobis_of_a_gaussian_set_is_the_scaled_distance():
    scales = np.array([4.0, 2.0, 1.0])
    model = gaussian(5.0 + normal(20_000, 3) * scales)
    query = 5.0 + np.array([[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0], [0, 0, 0]])
    assert model.distance(query) == pytest.approx([1, 2, 4, 0], rel=0.03, abs=0.03)


def test_mahalanobis_of_the_references_has_mean_square_of_the_kept_components():
    model = gaussian(normal(5000, 6))
    found = model.distance(normal(5000, 6, seed=1)) ** 2
    # A chi-square variable of K degrees of freedom has mean K.
    assert found.mean() == pytest.approx(6, rel=0.05)


def test_what_the_references_never_do_counts_with_the_variance_left_over():
    x = normal(4000, 6) * np.array([9, 9, 9, 0.5, 0.5, 0.5])
    model = gaussian(x, max_components=3)
    assert model.residual_variance == pytest.approx(0.25, rel=0.1)
    assert model.distance(np.array([[0, 0, 0, 0, 0, 2.0]])) == pytest.approx([4], rel=0.1)


def test_few_references_in_many_dimensions_give_finite_distances_that_rank_the_far_one_last():
    model = gaussian(normal(40, 1280))
    assert len(model.variances_K) == 10
    near, far = normal(1, 1280, seed=2), 10 * normal(1, 1280, seed=3)
    distances = model.distance(np.concatenate([near, far]))
    assert np.isfinite(distances).all()
    assert distances[1] > distances[0]


def test_shrinkage_goes_all_the_way_for_equal_variances_and_away_with_many_samples():
    equal = shrunk_variances(normal(30, 8))
    assert equal.std() < 0.3 * (normal(30, 8) ** 2).mean(axis=0).std()
    scales = np.array([3.0, 2.0, 1.0])
    many = normal(100_000, 3) * scales
    assert shrunk_variances(many - many.mean(axis=0)) == pytest.approx(scales**2, rel=0.03)


def test_shrinkage_keeps_the_total_variance():
    y = normal(25, 6) * np.array([5, 4, 3, 2, 1, 0.5])
    assert shrunk_variances(y).sum() == pytest.approx((y**2).mean(axis=0).sum())


def test_many_vectors_and_few_are_decomposed_to_the_same_gaussian():
    x = normal(40, 39) * np.linspace(5, 0.1, 39)
    # One row more than columns, and one less.
    of_many, of_few = gaussian(x), gaussian(np.pad(x, ((0, 0), (0, 2))))
    assert of_many.variances_K == pytest.approx(of_few.variances_K)
    queries = normal(5, 39, seed=3)
    inside = [
        ((q - g.mean_D) @ g.components_KD.T) ** 2
        for g, q in ((of_many, queries), (of_few, np.pad(queries, ((0, 0), (0, 2)))))
    ]
    assert inside[0] == pytest.approx(inside[1])


def test_knn_is_the_mean_distance_to_the_k_nearest_directions():
    angles = np.deg2rad([0, 10, 20, 90, 180, 200, 270, 300])
    references = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 7.0
    model = fitted(references, num_neighbours=2)
    query = np.array([[2.0, 0.0]])
    chord = 2 * np.sin(np.deg2rad([0, 10]) / 2)
    assert knn(model, query, np.array([99])) == pytest.approx(chord.mean(), abs=1e-3)


def test_a_reference_is_not_its_own_neighbour():
    x = normal(12, 5)
    rows = np.arange(12) * 3
    model = fit_model(x, rows, max_components=3, num_neighbours=1)
    # The root of a float32 rounding error.
    assert knn(model, x, rows + 1) == pytest.approx(np.zeros(12), abs=1e-3)
    assert (knn(model, x, rows) > 0.05).all()


def test_a_reference_is_measured_by_what_was_fitted_without_it():
    x, rows = normal(200, 4), np.arange(200)
    x[7] = 30.0
    model = fit_model(x, rows, max_components=4, num_neighbours=3)
    others = fit(x[model.folds_R != model.folds_R[7]], max_components=1)
    found = model.measure(x[7:8], rows[7:8])
    assert model.measure(x[7:8], rows[7:8] + 1000)["mahalanobis"] < found["mahalanobis"]
    assert others.distance(x[7:8]) > 0
    assert found["mahalanobis_percentile"] == pytest.approx(199.5 / 200)


def test_relative_distance_is_the_difference_of_two_gaussians_squared_distances():
    # Both vary in the second direction alike: what is unusual there cancels.
    references = normal(4000, 2) * np.array([1.0, 3.0])
    background = normal(4000, 2, seed=1) * np.array([4.0, 3.0])
    model = fitted(references, background_BD=background)
    queries = np.array([[0.0, 6.0], [2.0, 0.0], [4.0, 6.0]])
    found = model.measure(queries, np.array([-1, -2, -3]))
    assert found["mahalanobis"] ** 2 == pytest.approx([4, 4, 20], rel=0.1)
    expected = [0, 4 - 4 / 16, 16 - 1]
    assert found["relative_mahalanobis"] == pytest.approx(expected, rel=0.1, abs=0.3)


@pytest.mark.parametrize("count", [20, 60, 400])
def test_percentiles_of_fresh_queries_from_the_sets_own_distribution_are_uniform(count):
    pooled = {name: [] for name in PERCENTILES}
    for seed in range(max(6, 1200 // count)):
        draws = normal(count + 100, 12, seed=10 + seed) * np.linspace(3, 0.3, 12)
        model = fitted(draws[:count], background_BD=normal(50, 12, seed=7))
        found = model.measure(draws[count:], np.arange(100) + 10_000)
        for name in PERCENTILES:
            pooled[name] += found[name].tolist()
    for name, values in pooled.items():
        shares = np.quantile(values, [0.1, 0.25, 0.5, 0.75, 0.9])
        assert shares == pytest.approx([0.1, 0.25, 0.5, 0.75, 0.9], abs=0.09), name


def test_percentiles_of_members_are_spread_evenly_and_of_strangers_are_at_the_end():
    x, rows = normal(100, 6), np.arange(100)
    model = fitted(x, background_BD=normal(100, 6, seed=1))
    members, strangers = model.measure(x, rows), model.measure(x + 20, rows + 1000)
    for name in PERCENTILES:
        assert np.sort(members[name]) == pytest.approx((np.arange(100) + 0.5) / 100)
    assert strangers["mahalanobis_percentile"].min() > 0.99


def test_more_references_than_calibrate_leave_the_percentiles_as_they_are(monkeypatch):
    x, queries = normal(600, 6), normal(200, 6, seed=1)
    whole = fitted(x).measure(queries, np.arange(200) + 1000)
    monkeypatch.setattr("pipelines.ood_model._MAX_HELD_OUT", 300)
    capped = fitted(x)
    found = capped.measure(queries, np.arange(200) + 1000)
    members = capped.measure(x, np.arange(600))
    for name in ("mahalanobis_percentile", "knn_percentile"):
        assert found[name] == pytest.approx(whole[name], abs=0.12)
        assert np.sort(members[name]) == pytest.approx((np.arange(600) + 0.5) / 600, abs=0.1)


def test_folds_are_of_equal_size_and_belong_to_the_rows():
    rows = np.arange(103) * 7
    folds = deal_folds(rows)
    assert sorted(np.bincount(folds)) == [20, 20, 21, 21, 21]
    order = rng.generator(0, "test-folds").permutation(103)
    assert np.array_equal(deal_folds(rows[order]), folds[order])
    assert len(np.bincount(folds)) == NUM_FOLDS


def test_too_few_references_to_hold_some_out_give_distances_without_percentiles():
    found = fitted(normal(8, 4)).measure(normal(3, 4, seed=1), np.array([50, 51, 52]))
    assert all(np.isnan(found[name]).all() for name in PERCENTILES)
    assert np.isfinite(found["mahalanobis"]).all()
    assert np.isnan(found["relative_mahalanobis"]).all()


def test_queries_in_any_number_and_order_get_the_same_distances():
    model = fitted(normal(30, 16), background_BD=normal(90, 16, seed=8))
    queries, rows = normal(3000, 16, seed=4), np.arange(3000) + 100
    whole = model.measure(queries, rows)
    order = rng.generator(0, "test-order").permutation(3000)
    shuffled = model.measure(queries[order], rows[order])
    for name in MEASURES:
        assert shuffled[name] == pytest.approx(whole[name][order], rel=1e-5), name
    assert model.measure(queries[:0], rows[:0])["mahalanobis"].shape == (0,)


def test_identical_references_and_a_zero_vector_stay_finite():
    model = fitted(np.ones((12, 4)), background_BD=np.zeros((8, 4)))
    queries = np.array([[0.0, 0, 0, 0], [1, 1, 1, 1], [5, -5, 1, 2]])
    found = model.measure(queries, np.array([50, 51, 52]))
    assert all(np.isfinite(values).all() for values in found.values())
    # As far as every held-out reference: neither nearer nor further than any.
    assert found["mahalanobis_percentile"][1] == pytest.approx(0.5)


@pytest.mark.parametrize("background", [None, normal(9, 8, seed=2)])
@pytest.mark.parametrize("count", [8, 30])
def test_the_model_survives_its_way_through_a_file(tmp_path, background, count):
    model, queries = fitted(normal(count, 8), background_BD=background), normal(5, 8, seed=6)
    np.savez(tmp_path / "m.npz", **model.arrays())
    with np.load(tmp_path / "m.npz") as arrays:
        again = OodModel.from_arrays(arrays)
    rows = np.arange(5)
    for name, values in model.measure(queries, rows).items():
        assert np.array_equal(again.measure(queries, rows)[name], values, equal_nan=True)


def test_too_few_references_are_refused_with_a_number():
    with pytest.raises(NotEnoughReferences, match="5 reference vectors"):
        fitted(normal(5, 4))


@pytest.fixture
def scored(spark, root, make_batch, images):
    """A reference batch of smooth images and a pool of smooth ones and noise."""
    noise = rng.generator(1, "test-ood").integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    reference = make_batch(root, "ref", images(12), role="reference")
    make_batch(root, "pool", [*images(4, seed=5), *noise])
    for batch in ("ref", "pool"):
        score(root, batch, ScoreConfig(encoder=ENCODER))
    define(root, reference["sample_row"].to_pylist())
    return root


def define(root, rows):
    table = contract("reference_sets").table(
        [{"reference_set": "trusted", "sample_row": row, "role": "trusted"} for row in rows]
    )
    slice_ = {"reference_set": "trusted"}
    root.tables.commit("reference_sets", table, slice=slice_, inputs={"rows": rows}, job="tests")


def distances(root, batch):
    return root.tables.read("ood_scores", where={"ingest_batch": batch})


def test_foreign_images_lie_further_than_their_neighbours_and_twice_equals_once(scored):
    first = ood(scored, "pool", "trusted", CONFIG)
    assert (first.read, first.written) == (8, 8)
    before = distances(scored, "pool")
    for column in ("mahalanobis", "knn_distance"):
        found = before[column].to_numpy()
        assert found[:4].max() < found[4:].min(), column
    for column in ("mahalanobis_percentile", "knn_percentile"):
        found = before[column].to_numpy()
        assert (found[4:] > 0.9).all(), column
        assert ((found > 0) & (found < 1)).all(), column
    second = ood(scored, "pool", "trusted", CONFIG)
    assert (second.written, second.unchanged) == (0, 8)
    assert second.versions == first.versions
    assert distances(scored, "pool").equals(before)


def _fails_after_writing(task, writers, **options):
    ood_module_measure(task, writers, **options)
    raise RuntimeError("this task is lost")


def _fails_on_its_first_try(task, writers, **options):
    from pyspark import TaskContext

    ood_module_measure(task, writers, **options)
    if TaskContext.get().attemptNumber() == 0:
        raise RuntimeError("this try is lost")
    return {}


def test_lost_tries_and_lost_jobs_leave_the_rows_of_an_undisturbed_run(scored, monkeypatch):
    monkeypatch.setattr(ood_module, "measure", _fails_after_writing)
    with pytest.raises(TasksFailed, match="this task is lost"):
        ood(scored, "pool", "trusted", CONFIG)
    assert not scored.tables.exists("ood_scores")
    assert not list(scored.work.glob("*.npz"))
    monkeypatch.setattr(ood_module, "measure", _fails_on_its_first_try)
    ood(scored, "pool", "trusted", CONFIG)
    disturbed = distances(scored, "pool")
    monkeypatch.undo()
    slice_ = {
        "scorer_version": CONFIG.scorer_version,
        "reference_set": "trusted",
        "ingest_batch": "pool",
    }
    nothing = disturbed.slice(0, 0)
    scored.tables.commit("ood_scores", nothing, slice=slice_, inputs={}, job="tests")
    ood(scored, "pool", "trusted", CONFIG)
    assert distances(scored, "pool").equals(disturbed)


def test_a_changed_reference_set_makes_distances_stale(scored):
    ood(scored, "pool", "trusted", CONFIG)
    before = distances(scored, "pool")
    rows = scored.tables.read("reference_sets")["sample_row"].to_pylist()
    define(scored, rows[:9])
    assert ood(scored, "pool", "trusted", CONFIG).written == 8
    assert not distances(scored, "pool").equals(before)


def test_a_sample_without_a_vector_has_a_row_with_a_reason(spark, root, make_batch, images):
    reference = make_batch(root, "ref", images(12), role="reference")
    make_batch(root, "pool", [*images(2, seed=5), b"\xff\xd8\xff broken"])
    for batch in ("ref", "pool"):
        score(root, batch, ScoreConfig(encoder=ENCODER))
    define(root, reference["sample_row"].to_pylist())
    report = ood(root, "pool", "trusted", CONFIG)
    assert report.rejected == {"no_embedding": 1}
    rows = distances(root, "pool").to_pylist()
    assert len(rows) == 3
    assert (rows[2]["mahalanobis"], rows[2]["unscored_reason"]) == (None, "no_embedding")
    few = "the background has too few vectors"
    assert rows[0]["unscored_reason"] == (
        f"relative_mahalanobis: {few}; relative_mahalanobis_percentile: {few}"
    )


def test_a_background_of_named_batches_makes_relative_distances_of_two_batches_comparable(
    scored, make_batch, images
):
    config = OodConfig(
        encoder=ENCODER, num_neighbours=3, background=("pool", "ref"), max_background=100
    )
    make_batch(scored, "again", images(4, seed=5))
    score(scored, "again", ScoreConfig(encoder=ENCODER))
    for batch in ("pool", "again"):
        ood(scored, batch, "trusted", config)
    pool, again = (
        distances(scored, b)["relative_mahalanobis"].to_numpy() for b in ("pool", "again")
    )
    assert pool[:4] == pytest.approx(again, rel=1e-4)
    assert pool[4:].min() > pool[:4].max()
    assert CONFIG.scorer_version != config.scorer_version


def test_the_set_itself_can_be_measured(scored):
    ood(scored, "ref", "trusted", CONFIG)
    found = distances(scored, "ref")["mahalanobis_percentile"].to_numpy()
    assert np.sort(found) == pytest.approx((np.arange(12) + 0.5) / 12)


def test_what_is_missing_is_named(root, make_batch, images):
    rows = make_batch(root, "ref", images(9))["sample_row"].to_pylist()
    with pytest.raises(TableMissing, match="no reference set 'trusted'"):
        ood(root, "ref", "trusted", CONFIG)
    define(root, rows)
    with pytest.raises(TableMissing, match="'ref' has no embeddings"):
        ood(root, "ref", "trusted", CONFIG)
