from types import SimpleNamespace

import pytest

from dagster_project.defs import checks
from dagster_project.defs.project import Project
from dagster_project.recipe import load_recipe
from dagster_project.request import BatchRequest, Request
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
