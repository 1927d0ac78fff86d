import numpy as np
import pyarrow as pa
import pytest

from pipelines.jobs.annotate import annotate
from pipelines.measures import freeze_quality_rank
from pipelines.policies import ClassifierThreshold, FixedPerSource
from pipelines.scorers.classical import CLASSICAL
from schemas.errors import AnnotationMissing, BadInput, JobAlreadyRunning, TableMissing
from schemas.registry import contract

SPACE = "pixel:32x32:lanczos:center:pm1"
SIGMAS = np.geomspace(0.1, 10, 8)
EVERYTHING = FixedPerSource(noise_space=SPACE, levels={"*": 0.0})
BY_CURVE = ClassifierThreshold(noise_space=SPACE, classifier_id="c1")


def rows_of(root, batch="b1"):
    return root.tables.read("noise_annotations", where={"ingest_batch": batch}).to_pylist()


def put_scores(root, batch, values):
    """Scores as the score job writes them, sharpness given, None for null."""
    rows = root.tables.read("samples", ["sample_row"], {"ingest_batch": batch})["sample_row"]
    names = [scorer.name for scorer in CLASSICAL.scorers]
    table = pa.table(
        {
            "sample_row": rows.slice(0, len(values)),
            "ingest_batch": [batch] * len(values),
            "scorer_version": [CLASSICAL.version] * len(values),
            **{n: [5.0 if n == "num_pixels" else 1.0] * len(values) for n in names},
            "unscored_reason": [None if v is not None else "sharpness: x" for v in values],
        }
    )
    place = table.schema.get_field_index("sharpness")
    table = table.set_column(place, "sharpness", pa.array(values, pa.float64()))
    table = table.cast(contract("scores/classical").arrow_schema)
    slice_ = {"scorer_version": CLASSICAL.version, "ingest_batch": batch}
    inputs = {"values": values}
    root.tables.commit("scores/classical", table, slice=slice_, inputs=inputs, job="tests")


def put_curves(root, batch, logits, noise_space=SPACE):
    rows = root.tables.read("samples", ["sample_row"], {"ingest_batch": batch})["sample_row"]
    count = len(logits)
    table = contract("noise_curves").table(
        {
            "sample_row": rows.slice(0, count),
            "ingest_batch": [batch] * count,
            "classifier_id": ["c1"] * count,
            "fold": [0] * count,
            "logits": [list(row) for row in logits],
            "logit_standard_error": [[0.01] * len(SIGMAS)] * count,
        }
    )
    slice_ = {"classifier_id": "c1", "ingest_batch": batch}
    inputs = {"logits": [list(map(float, row)) for row in logits]}
    root.tables.commit("noise_curves", table, slice=slice_, inputs=inputs, job="tests")
    put_classifier(root, noise_space)


def put_classifier(root, noise_space):
    values = {
        "classifier_id": "c1",
        "question": "reference_against_pool",
        "reference_set": "trusted",
        "pool_batches": ["b1"],
        "noise_space": noise_space,
        "num_folds": 1,
        "sigmas": SIGMAS.tolist(),
        "weights_sha256": "0" * 64,
        "status": "promoted",
    }
    per_level = ("balanced_accuracy", "tv_lower_bound", "tv_standard_error")
    values |= dict.fromkeys(per_level, [0.5] * len(SIGMAS))
    row = {name: values.get(name, "{}") for name in contract("noise_classifiers").names}
    table = contract("noise_classifiers").table([row])
    root.tables.upsert("noise_classifiers", table, job="tests")


@pytest.fixture
def batch(root, make_batch, images):
    make_batch(root, "b1", images(6), source=["web", "web", "made", "web", "made", "web"])
    return root


def test_every_sample_gets_exactly_one_row_and_twice_equals_once(batch):
    policy = FixedPerSource(noise_space=SPACE, levels={"web": 0.0, "made": 2.0})
    first = annotate(batch, "b1", policy)
    assert (first.read, first.written, first.unchanged) == (6, 6, 0)
    rows = rows_of(batch)
    assert [row["sigma_min"] for row in rows] == [0, 0, 2, 0, 2, 0]
    assert {row["noise_space"] for row in rows} == {SPACE}
    samples = batch.tables.read("samples")["sample_row"].to_pylist()
    assert [row["sample_row"] for row in rows] == samples
    second = annotate(batch, "b1", policy)
    assert (second.written, second.unchanged) == (0, 6)
    assert second.versions == first.versions
    assert rows_of(batch) == rows


def test_a_second_policy_stands_beside_the_first(batch):
    annotate(batch, "b1", EVERYTHING)
    other = FixedPerSource(noise_space=SPACE, levels={"*": None})
    annotate(batch, "b1", other)
    assert len(rows_of(batch)) == 12
    assert batch.tables.read("policies").num_rows == 2


def define(root, rows, name="trusted", role="trusted"):
    table = contract("reference_sets").table(
        [{"reference_set": name, "sample_row": row, "role": role} for row in rows]
    )
    slice_ = {"reference_set": name}
    root.tables.commit("reference_sets", table, slice=slice_, inputs={"rows": rows}, job="tests")


def test_reference_images_have_level_zero_under_every_policy(batch):
    put_scores(batch, "b1", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    put_curves(batch, "b1", np.full((6, 8), -5.0))
    members = batch.tables.read("samples")["sample_row"].to_pylist()[:2]
    define(batch, members)
    rank = freeze_quality_rank(
        batch,
        ["b1"],
        column="sharpness",
        good_fraction=0.5,
        sigma_min_rest=1.0,
        noise_space=SPACE,
    )
    never = FixedPerSource(noise_space=SPACE, levels={"*": None})
    for policy in (rank, never, BY_CURVE):
        annotate(batch, "b1", policy)
        rows = batch.tables.read("noise_annotations", where={"policy_id": policy.policy_id})
        reasons = rows["reason"].to_pylist()
        assert reasons[:2] == ["reference", "reference"]
        assert "reference" not in reasons[2:]
        assert rows["sigma_min"].to_pylist()[:2] == [0, 0]


def test_a_reference_batch_needs_no_measurement(root, make_batch, images):
    make_batch(root, "ref", images(3), role="reference")
    put_classifier(root, SPACE)
    annotate(root, "ref", BY_CURVE)
    assert [row["reason"] for row in rows_of(root, "ref")] == ["reference"] * 3


def test_foreign_sets_are_not_trusted(batch):
    rows = batch.tables.read("samples")["sample_row"].to_pylist()
    define(batch, rows, name="foreign", role="foreign")
    annotate(batch, "b1", FixedPerSource(noise_space=SPACE, levels={"*": None}))
    assert {row["reason"] for row in rows_of(batch)} == {"fixed_per_source"}


def test_a_new_member_of_the_reference_makes_annotations_stale(batch):
    annotate(batch, "b1", FixedPerSource(noise_space=SPACE, levels={"*": None}))
    define(batch, batch.tables.read("samples")["sample_row"].to_pylist()[:1])
    report = annotate(batch, "b1", FixedPerSource(noise_space=SPACE, levels={"*": None}))
    assert report.written == 6
    assert len(rows_of(batch)) == 6


def test_a_null_score_is_unscored_and_never_good(batch):
    put_scores(batch, "b1", [None, 2.0, 3.0, None, 5.0, 6.0])
    policy = freeze_quality_rank(
        batch,
        ["b1"],
        column="sharpness",
        good_fraction=0.5,
        sigma_min_rest=1.0,
        noise_space=SPACE,
    )
    report = annotate(batch, "b1", policy)
    assert report.rejected == {"unscored": 2}
    levels = [(row["sigma_min"], row["reason"]) for row in rows_of(batch)]
    assert levels[0] == levels[3] == (None, "unscored")
    assert levels[4] == levels[5] == (0, "rank_good")
    assert levels[1] == levels[2] == (1, "rank_rest")


def test_a_sample_that_was_never_measured_is_refused_not_read_as_clean(batch):
    put_scores(batch, "b1", [1.0, 2.0, 3.0])
    policy = freeze_quality_rank(
        batch,
        ["b1"],
        column="sharpness",
        good_fraction=0.5,
        sigma_min_rest=1.0,
        noise_space=SPACE,
    )
    with pytest.raises(AnnotationMissing, match="3 of 6 samples have no sharpness score"):
        annotate(batch, "b1", policy)
    put_curves(batch, "b1", np.full((5, 8), -5.0))
    with pytest.raises(AnnotationMissing, match="1 of 6 samples have no noise curve"):
        annotate(batch, "b1", BY_CURVE)
    assert not batch.tables.exists("noise_annotations")


def test_missing_measurements_are_named(batch):
    with pytest.raises(TableMissing, match="no noise classifier 'c1'"):
        annotate(batch, "b1", BY_CURVE)
    put_classifier(batch, SPACE)
    with pytest.raises(TableMissing, match="no noise_curves of classifier 'c1'"):
        annotate(batch, "b1", BY_CURVE)
    with pytest.raises(TableMissing, match="'nope' has no samples"):
        annotate(batch, "nope", EVERYTHING)


def test_curves_become_levels_with_slope_and_error(batch):
    strengths = np.array([0.0, 0.02, 0.2, 0.5, 1.0, 50.0])
    put_curves(batch, "b1", -strengths[:, None] / SIGMAS)
    annotate(batch, "b1", BY_CURVE)
    rows = rows_of(batch)
    assert rows[0]["reason"] == "usable_everywhere"
    assert rows[5]["reason"] == "never_crosses"
    assert rows[5]["sigma_min"] is None
    levels = [row["sigma_min"] for row in rows[:5]]
    assert levels == sorted(levels)
    assert rows[3]["slope"] > 0
    assert rows[3]["sigma_min_standard_error_octaves"] > 0


def test_curves_that_changed_make_annotations_stale(batch):
    put_curves(batch, "b1", np.full((6, 8), -5.0))
    annotate(batch, "b1", BY_CURVE)
    put_curves(batch, "b1", np.full((6, 8), 5.0))
    assert annotate(batch, "b1", BY_CURVE).written == 6
    assert {row["reason"] for row in rows_of(batch)} == {"usable_everywhere"}


def test_a_classifier_of_another_noise_space_is_refused(batch):
    put_curves(batch, "b1", np.full((6, 8), -5.0), noise_space="latent:abc")
    with pytest.raises(BadInput, match="levels do not carry over"):
        annotate(batch, "b1", BY_CURVE)


def test_ranking_by_a_score_without_a_direction_is_refused(batch):
    put_scores(batch, "b1", [1.0] * 6)
    with pytest.raises(BadInput, match="neither better high nor better low"):
        freeze_quality_rank(
            batch,
            ["b1"],
            column="saturation",
            good_fraction=0.5,
            sigma_min_rest=None,
            noise_space=SPACE,
        )


def test_the_same_annotation_twice_at_once_is_refused(batch):
    lock = batch.lock(f"annotate-{EVERYTHING.policy_id}", "b1")
    with lock, pytest.raises(JobAlreadyRunning):
        annotate(batch, "b1", EVERYTHING)


def test_a_dry_run_writes_nothing(batch):
    annotate(batch, "b1", EVERYTHING, dry_run=True)
    assert not batch.tables.exists("noise_annotations")
    assert not batch.tables.exists("policies")
