import numpy as np
import pyarrow as pa
import pytest

from pipelines import policies
from pipelines.freezing import freeze_crop_window, freeze_quality_rank, freeze_sample_size
from pipelines.jobs.annotate import annotate
from pipelines.policies import ClassifierThreshold, FixedPerSource, PilotCalibrated
from pipelines.pool_curves import dataset_level, pool_curves
from pipelines.scorers.classical import CLASSICAL
from schemas.errors import (
    AnnotationMissing,
    BadInput,
    JobAlreadyRunning,
    NotEnoughReferences,
    TableMissing,
)
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
            "annotator_id": ["a1"] * count,
            "evaluations": [16] * count,
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
    known = contract("noise_classifiers")
    text = {name: "{}" for name in known.names if not known.column(name).nullable}
    table = known.table([text | values])
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


def test_rows_carry_the_interval_of_the_level(batch):
    put_curves(batch, "b1", -np.array([0.0, 0.02, 0.2, 0.5, 1.0, 50.0])[:, None] / SIGMAS)
    annotate(batch, "b1", BY_CURVE)
    for row in rows_of(batch)[1:5]:
        assert row["sigma_min_low"] <= row["sigma_min"] <= row["sigma_min_high"]
    never = rows_of(batch)[5]
    assert (never["sigma_min_low"], never["sigma_min_high"]) == (None, None)
    annotate(batch, "b1", EVERYTHING)
    fixed = [row for row in rows_of(batch) if row["policy_id"] == EVERYTHING.policy_id]
    assert {row["sigma_min_low"] for row in fixed} == {None}


def test_the_sample_size_rule_is_frozen_on_a_batch_and_applies_to_the_next(
    batch, make_batch, images
):
    put_curves(batch, "b1", -np.array([0.0, 0.02, 0.2, 0.5, 1.0, 50.0])[:, None] / SIGMAS)
    with pytest.raises(NotEnoughReferences, match="trusted set is empty"):
        freeze_sample_size(batch, ["b1"], classifier_id="c1", constant=1.0)
    make_batch(batch, "ref", images(4, seed=5), role="reference")
    where = {"ingest_batch": "ref"}
    define(batch, batch.tables.read("samples", where=where)["sample_row"].to_pylist())
    policy = freeze_sample_size(batch, ["b1"], classifier_id="c1", constant=1.0)
    assert (policy.n_trusted, policy.n_pool) == (4, 6)
    assert list(policy.tv) == sorted(policy.tv, reverse=True)
    annotate(batch, "b1", policy)
    make_batch(batch, "b2", images(6, seed=6))
    put_curves(batch, "b2", np.full((6, 8), -9.0))
    annotate(batch, "b2", policies.load(batch, policy.policy_id))
    assert {row["policy_id"] for row in rows_of(batch, "b2")} == {policy.policy_id}


def test_a_pilot_policy_is_applied_like_any_other(batch):
    put_curves(batch, "b1", -np.array([0.0, 0.02, 0.2, 0.5, 1.0, 50.0])[:, None] / SIGMAS)
    policy = PilotCalibrated(
        noise_space=SPACE, classifier_id="c1", pilot_id="p", edges=(), tau=(0.0,)
    )
    annotate(batch, "b1", policy)
    assert {row["reason"] for row in rows_of(batch)} == {"usable_everywhere"}


def put_crops(root, batch, said, noise_space=SPACE):
    rows = root.tables.read("samples", ["sample_row"], {"ingest_batch": batch})["sample_row"]
    table = contract("crop_scores").table(
        {
            "sample_row": rows.slice(0, len(said)),
            "ingest_batch": [batch] * len(said),
            "crop_classifier_id": ["k1"] * len(said),
            "fold": [0] * len(said),
            "mean_probability": [list(row) for row in said],
            "standard_error": [[0.01] * len(row) for row in said],
        }
    )
    slice_ = {"crop_classifier_id": "k1", "ingest_batch": batch}
    root.tables.commit("crop_scores", table, slice=slice_, inputs={"said": said}, job="tests")
    crops = dict.fromkeys(contract("crop_classifiers").names, "{}") | {
        "crop_classifier_id": "k1",
        "foreign_batches": [batch],
        "noise_space": noise_space,
        "num_folds": 1,
        "sizes": [4, 8, 16],
        "tv_lower_bound": [0.1, 0.2, 0.3],
        "tv_standard_error": [0.1, 0.1, 0.1],
        "weights_sha256": "0" * 64,
    }
    field = dict.fromkeys(contract("receptive_fields").names, "{}") | {
        "receptive_field_id": "r1",
        "noise_space": SPACE,
        "sigmas": [0.05, 0.1, 0.2, 0.4],
        "needed_context": [4, 4, 8, 24],
    }
    for name, row in (("crop_classifiers", crops), ("receptive_fields", field)):
        root.tables.upsert(name, contract(name).table([row]), job="tests")


def window_of(root):
    return freeze_crop_window(
        root,
        crop_classifier_id="k1",
        receptive_field_id="r1",
        floor=FixedPerSource(noise_space=SPACE, levels={"*": None}),
    )


def test_crops_that_look_right_give_a_window_beside_the_floor(batch):
    said = [[0.5, 0.5, 0.5], [0.5, 0.48, 0.1], [0.5, 0.1, 0.1], *[[0.1, 0.1, 0.1]] * 3]
    put_crops(batch, "b1", said)
    policy = window_of(batch)
    # Size 16 is context enough up to 0.2: the next level needs 24.
    assert policy.sigma_max == (0.1, 0.2, 0.2)
    annotate(batch, "b1", policy)
    rows = rows_of(batch)
    assert [row["sigma_max"] for row in rows] == [0.2, 0.2, 0.1, 0, 0, 0]
    assert {row["sigma_min"] for row in rows} == {None}


def test_an_image_without_crop_scores_is_refused(batch):
    put_crops(batch, "b1", [[0.5, 0.5, 0.5]] * 4)
    with pytest.raises(AnnotationMissing, match="2 of 6 samples have no crop scores"):
        annotate(batch, "b1", window_of(batch))


def test_crops_of_another_noise_space_are_refused(batch):
    put_crops(batch, "b1", [[0.5, 0.5, 0.5]] * 6, noise_space="latent:abc")
    with pytest.raises(BadInput, match="levels do not carry over"):
        window_of(batch)


def test_an_annotation_made_in_pixels_is_refused_in_latents_and_says_what_to_do(batch):
    put_curves(batch, "b1", np.full((6, 8), -5.0))
    latent = ClassifierThreshold(noise_space="latent:4x4x4:abc", classifier_id="c1")
    with pytest.raises(BadInput, match=r"train one on packs of latent.*encode the batches first"):
        annotate(batch, "b1", latent)


def test_the_curve_of_a_batch_is_told_by_source(batch):
    put_curves(batch, "b1", -np.array([0.0, 0.0, 2.0, 0.0, 2.0, 0.0])[:, None] / SIGMAS)
    rows = pool_curves(batch, "b1", "c1").to_pylist()
    assert {(row["source"], row["num_images"]) for row in rows} == {
        ("*", 6),
        ("web", 4),
        ("made", 2),
    }
    made = [row for row in rows if row["source"] == "made"]
    assert [row["mean_logit"] for row in made] == pytest.approx(-2 / SIGMAS)
    assert [row["tv"] for row in made] == pytest.approx(1 - np.exp(-2 / SIGMAS), rel=1e-5)
    assert all(row["tv"] == 0 for row in rows if row["source"] == "web")
    level = dataset_level(np.array([row["mean_logit"] for row in made]), SIGMAS, tau=0.3)
    assert level == pytest.approx(2 / 0.847, rel=0.1)
    assert dataset_level(np.full(8, -5.0), SIGMAS) is None


def test_a_policy_that_cannot_decide_is_not_registered(batch):
    with pytest.raises(BadInput, match="no level for source"):
        annotate(batch, "b1", FixedPerSource(noise_space=SPACE, levels={"web": 0.0}))
    assert batch.tables.read("policies", ["policy_id"]).num_rows == 0


def test_a_source_that_no_sample_is_of_is_said_aloud_where_the_rest_took_others(batch):
    space = EVERYTHING.noise_space

    def notes(levels):
        return annotate(batch, "b1", FixedPerSource(noise_space=space, levels=levels)).notes

    (note,) = notes({"wbe": 1.0, "made": 0.5, "*": 0.0})
    assert "levels name wbe" in note
    assert "gave the level to web" in note
    assert notes({"web": 1.0, "made": 0.5, "another": 1.0, "*": 0.0}) == ()
    assert notes({"web": 1.0, "*": 0.0}) == ()


def test_an_answer_that_is_the_same_for_all_is_said_aloud(batch):
    put_curves(batch, "b1", np.full((6, 8), 0.5))
    report = annotate(batch, "b1", BY_CURVE)
    assert "cannot tell the pool from the reference" in report.notes[0]
    put_curves(batch, "b1", np.full((6, 8), -9.0))
    assert "where they show other things" in annotate(batch, "b1", BY_CURVE).notes[0]
    put_curves(batch, "b1", -np.array([0.0, 0.02, 0.2, 0.5, 1.0, 50.0])[:, None] / SIGMAS)
    assert annotate(batch, "b1", BY_CURVE).notes == ()
    assert annotate(batch, "b1", EVERYTHING).notes == ()
