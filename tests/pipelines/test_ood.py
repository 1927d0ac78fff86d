import numpy as np
import pytest

from ambient_omni import rng
from pipelines.encoders import EncoderConfig
from pipelines.jobs import ood as ood_module
from pipelines.jobs.ood import OodConfig, ood
from pipelines.jobs.ood import measure as ood_module_measure
from pipelines.jobs.score import ScoreConfig, score
from pipelines.ood import OodModel, fit, shrunk_variances
from pipelines.spark import TasksFailed
from schemas.errors import NotEnoughReferences, TableMissing
from schemas.registry import contract

ENCODER = EncoderConfig(resolution=32)
CONFIG = OodConfig(encoder=ENCODER, num_neighbours=3)


def normal(*shape, seed=0):
    return rng.normal(shape, seed, "test-ood").astype(np.float64)


def fitted(x_RD, **overrides):
    options = {"max_components": 64, "num_neighbours": 3} | overrides
    return fit(x_RD, np.arange(len(x_RD)), **options)


def test_mahalanobis_of_a_gaussian_set_is_the_scaled_distance():
    scales = np.array([4.0, 2.0, 1.0])
    model = fitted(5.0 + normal(20_000, 3) * scales)
    query = 5.0 + np.array([[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0], [0, 0, 0]])
    assert model.mahalanobis(query) == pytest.approx([1, 2, 4, 0], rel=0.03, abs=0.03)


def test_mahalanobis_of_the_references_has_mean_square_of_the_kept_components():
    model = fitted(normal(5000, 6))
    found = model.mahalanobis(normal(5000, 6, seed=1)) ** 2
    # A chi-square variable of K degrees of freedom has mean K.
    assert found.mean() == pytest.approx(6, rel=0.05)


def test_what_the_references_never_do_counts_with_the_variance_left_over():
    x = normal(4000, 6) * np.array([9, 9, 9, 0.5, 0.5, 0.5])
    model = fitted(x, max_components=3)
    assert model.residual_variance == pytest.approx(0.25, rel=0.1)
    assert model.mahalanobis(np.array([[0, 0, 0, 0, 0, 2.0]])) == pytest.approx([4], rel=0.1)


def test_few_references_in_many_dimensions_give_finite_distances_that_rank_the_far_one_last():
    model = fitted(normal(40, 1280), num_neighbours=5)
    assert len(model.variances_K) == 10
    near, far = normal(1, 1280, seed=2), 10 * normal(1, 1280, seed=3)
    distances = model.mahalanobis(np.concatenate([near, far]))
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


def test_knn_is_the_mean_distance_to_the_k_nearest_directions():
    angles = np.deg2rad([0, 10, 20, 90, 180, 200, 270, 300])
    references = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 7.0
    model = fitted(references, num_neighbours=2)
    query = np.array([[2.0, 0.0]])
    chord = 2 * np.sin(np.deg2rad([0, 10]) / 2)
    found = model.knn_distance(query, np.array([99]))
    assert found == pytest.approx(chord.mean(), abs=1e-3)


def test_a_reference_is_not_its_own_neighbour():
    x = normal(12, 5)
    rows = np.arange(12) * 3
    model = fit(x, rows, max_components=3, num_neighbours=1)
    as_stranger = model.knn_distance(x, rows + 1)
    as_member = model.knn_distance(x, rows)
    # The root of a float32 rounding error.
    assert as_stranger == pytest.approx(np.zeros(12), abs=1e-3)
    assert (as_member > 0.05).all()


def test_queries_in_any_number_and_order_get_the_same_distances():
    model, queries = fitted(normal(30, 16)), normal(3000, 16, seed=4)
    rows = np.arange(3000) + 100
    whole = model.knn_distance(queries, rows)
    order = rng.generator(0, "test-order").permutation(3000)
    assert model.knn_distance(queries[order], rows[order]) == pytest.approx(whole[order], rel=1e-5)


def test_identical_references_and_a_zero_vector_stay_finite():
    model = fitted(np.ones((10, 4)))
    queries = np.array([[0.0, 0, 0, 0], [1, 1, 1, 1], [5, -5, 1, 2]])
    assert np.isfinite(model.mahalanobis(queries)).all()
    assert np.isfinite(model.knn_distance(queries, np.array([50, 51, 52]))).all()


def test_the_model_survives_its_way_through_a_file(tmp_path):
    model, queries = fitted(normal(30, 8)), normal(5, 8, seed=6)
    np.savez(tmp_path / "m.npz", **model.arrays())
    with np.load(tmp_path / "m.npz") as arrays:
        again = OodModel.from_arrays(arrays)
    assert np.array_equal(again.mahalanobis(queries), model.mahalanobis(queries))


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


def test_what_is_missing_is_named(root, make_batch, images):
    rows = make_batch(root, "ref", images(9))["sample_row"].to_pylist()
    with pytest.raises(TableMissing, match="no reference set 'trusted'"):
        ood(root, "ref", "trusted", CONFIG)
    define(root, rows)
    with pytest.raises(TableMissing, match="'ref' has no embeddings"):
        ood(root, "ref", "trusted", CONFIG)
