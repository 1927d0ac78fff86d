from types import SimpleNamespace

import pyarrow as pa
import pytest

from dagster_project.arms import policy_of
from dagster_project.defs import checks
from dagster_project.defs.project import Project
from dagster_project.recipe import load_recipe
from dagster_project.request import BatchRequest, Request, Verdict, change_request, judge
from schemas.registry import contract


@pytest.fixture
def check(root):
    """`check(name, batch)`: evaluate an asset check as the graph would."""
    recipe = load_recipe("default").model_dump(mode="json")
    batch = BatchRequest(name="pool", role="pool", source="tests")
    Request(recipe=recipe, batches=(batch,)).save(root)

    def run(name, batch=None):
        body = getattr(checks, name).op.compute_fn.decorated_fn
        project = Project(root_path=str(root.path))
        if batch is None:
            return body(project)
        return body(SimpleNamespace(partition_key=batch), project)

    return run


def annotate(root, rows, policy_id="p-1"):
    count = len(rows)
    table = contract("noise_annotations").table(
        {
            "sample_row": rows,
            "ingest_batch": ["pool"] * count,
            "policy_id": [policy_id] * count,
            "sigma_min": [0.0] * count,
            "sigma_max": [0.0] * count,
            "noise_space": ["s"] * count,
            "slope": [None] * count,
            "sigma_min_standard_error_octaves": [None] * count,
            "sigma_min_low": [None] * count,
            "sigma_min_high": [None] * count,
            "reason": ["fixed_per_source"] * count,
        }
    )
    slice_ = {"policy_id": policy_id, "ingest_batch": "pool"}
    root.tables.commit("noise_annotations", table, slice=slice_, inputs={}, job="tests")


def test_a_batch_with_a_level_for_every_sample_passes(root, make_batch, images, check):
    samples = make_batch(root, "pool", images(4))
    annotate(root, samples["sample_row"].to_pylist())
    assert check("every_sample_is_annotated", "pool").passed


def test_a_sample_without_a_level_fails_and_is_named(root, make_batch, images, check):
    rows = make_batch(root, "pool", images(4))["sample_row"].to_pylist()
    annotate(root, rows, "p-1")
    annotate(root, rows[1:], "p-2")
    found = check("every_sample_is_annotated", "pool")
    assert not found.passed
    assert str(rows[0]) in found.description
    assert "p-2" in found.description


def test_a_batch_without_any_level_fails(root, make_batch, images, check):
    make_batch(root, "pool", images(2))
    assert not check("every_sample_is_annotated", "pool").passed


def test_a_batch_that_was_never_scored_fails(root, make_batch, images, check):
    make_batch(root, "pool", images(2))
    found = check("every_sample_is_scored", "pool")
    assert not found.passed
    assert "2 samples of pool" in found.description


def test_a_sample_that_no_attempt_explains_fails(root, make_batch, images, check):
    make_batch(root, "pool", images(2))
    found = check("every_attempt_is_accounted_for", "pool")
    assert "2 samples without an attempt" in found.description


def test_an_image_that_is_trusted_and_held_out_fails(root, make_batch, images, check):
    rows = make_batch(root, "reference", images(2), role="reference")["sample_row"].to_pylist()
    for name, members in (("trusted", rows), ("validation", rows[:1])):
        table = contract("reference_sets").table(
            {
                "reference_set": [name] * len(members),
                "sample_row": members,
                "role": [name] * len(members),
            }
        )
        slice_ = {"reference_set": name}
        root.tables.commit("reference_sets", table, slice=slice_, inputs={}, job="tests")
    found = check("held_out_images_are_not_trusted")
    assert not found.passed
    assert "1 trusted images are held out" in found.description


@pytest.fixture
def stream(root, make_batch, images):
    """Two batches of one stream, whose levels can be given; drift holds batches back."""
    recipe = load_recipe("default").model_dump(mode="json")
    recipe["arms"] = {"everything": {"kind": "fixed_per_source", "levels": {"*": 0.0}}}
    recipe["main_arm"] = recipe["baseline_arm"] = "everything"
    recipe["operations"]["drift"] |= {"hold": True, "num_bins": 3, "min_images": 10}
    batches = [BatchRequest(name=name, role="pool", source="tests") for name in ("a", "b")]
    request = Request(recipe=recipe, batches=tuple(batches))
    request.save(root)
    policy = policy_of(root, request, request.full_recipe, "everything").policy_id
    rows = {
        name: make_batch(root, name, images(40, seed=seed))["sample_row"].to_pylist()
        for seed, name in enumerate(("a", "b"))
    }

    def check(batch, levels):
        count = len(levels)
        table = contract("noise_annotations").table(
            {column.name: [None] * count for column in contract("noise_annotations").columns}
            | {
                "sample_row": rows[batch],
                "ingest_batch": [batch] * count,
                "policy_id": [policy] * count,
                "sigma_min": levels,
                "sigma_max": [0.0] * count,
                "noise_space": ["s"] * count,
                "reason": ["fixed_per_source"] * count,
            }
        )
        slice_ = {"policy_id": policy, "ingest_batch": batch}
        inputs = {"levels": levels}
        root.tables.commit("noise_annotations", table, slice=slice_, inputs=inputs, job="tests")
        body = checks.levels_do_not_drift.op.compute_fn.decorated_fn
        return body(SimpleNamespace(partition_key=batch), Project(root_path=str(root.path)))

    return check


LOW, HIGH = [0.01 * n for n in range(40)], [5.0 + 0.01 * n for n in range(40)]


def test_a_batch_that_drifts_is_held_back_and_said_why(root, stream):
    assert stream("a", LOW).passed
    found = stream("b", HIGH)
    assert not found.passed
    assert "differs from a in sigma_min" in found.description
    assert Request.load(root).is_held("b")


def test_a_batch_is_not_let_in_where_the_one_before_has_no_levels_under_the_policy(root, stream):
    found = stream("b", LOW)
    assert not found.passed
    assert "cannot be held against a" in found.description
    assert Request.load(root).is_held("b")
    assert stream("a", LOW).passed
    assert stream("b", LOW).passed


def test_a_held_batch_whose_levels_are_mended_is_let_in(root, stream):
    stream("a", LOW)
    stream("b", HIGH)
    assert stream("b", LOW).passed
    assert Request.load(root).of_role("pool") == ("a", "b")


def test_a_batch_that_was_let_in_stays_in_when_it_is_measured_anew(root, stream):
    stream("a", LOW)
    stream("b", LOW)
    found = stream("b", HIGH)  # under a new classifier, say
    assert not found.passed
    assert found.severity.value == "WARN"
    assert not Request.load(root).is_held("b")


def test_a_batch_that_a_person_let_in_is_not_held_back(root, stream):
    stream("a", LOW)
    judge(root, "b", Verdict(status="accepted", why="a new camera", by="person"))
    found = stream("b", HIGH)
    assert "a new camera" in found.description
    assert not Request.load(root).is_held("b")


def test_a_null_score_needs_a_reason():
    rows = pa.table(
        {
            "sample_row": [1, 2],
            "sharpness": pa.array([1.0, None], pa.float64()),
            "unscored_reason": pa.array([None, None], pa.string()),
        }
    )
    assert "1 rows with no sharpness and no reason, first sample_row [2]" in (
        checks._unexplained_nulls(rows)
    )


def test_curves_that_disagree_with_the_search_are_named_and_block_if_asked_to(
    root, check, monkeypatch
):
    from dagster_project import arms
    from pipelines.jobs.agreement import Agreement

    found = Agreement(16, 0.8, 2.0, (7, 3), 1.0)
    monkeypatch.setattr(arms, "agreement_of", lambda *_: found)
    said = check("curves_agree_with_the_search", "pool")
    assert not said.passed
    assert said.severity.value == "WARN"
    assert "0.80 octaves" in said.description
    assert "[7, 3]" in said.description
    change_request(root, lambda r: r.model_copy(update={"recipe": r.recipe | {"operations": {
        "agreement": {"block": True}}}}))  # fmt: skip
    assert check("curves_agree_with_the_search", "pool").severity.value == "ERROR"
    monkeypatch.setattr(arms, "agreement_of", lambda *_: Agreement(16, 0.2, 2.0, (), 1.0))
    assert check("curves_agree_with_the_search", "pool").passed
