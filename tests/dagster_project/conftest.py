"""A root with measurements that no network made, under a promoted classifier."""

import numpy as np
import pytest

from dagster_project.recipe import parse_recipe
from dagster_project.request import BatchRequest, Request
from schemas.registry import contract
from tests.ambient_omni.conftest import define_set

SIGMAS = np.geomspace(0.05, 10, 8)
ARMS = {
    "only_reference": {"kind": "fixed_per_source", "levels": {"*": None}},
    "annotated": {"kind": "classifier_threshold"},
    "soft": {"kind": "classifier_threshold", "soft": True},
    "counted": {"kind": "sample_size", "constant": 3.0},
    "piloted": {"kind": "pilot_calibrated", "num_images": 100},
    "foreign": {"kind": "crop_window"},
}


@pytest.fixture
def request_(root, make_batch, images):
    """A root with curves of a pool under a promoted classifier, and a request with every rule."""
    make_batch(root, "reference", images(6, seed=1), role="reference")
    rows = root.tables.read("samples", where={"ingest_batch": "reference"})["sample_row"]
    define_set(root, "trusted", rows.to_pylist())
    recipe = {"arms": ARMS, "transform": {"resolution": 32}}
    space = parse_recipe(recipe, "test").transform.noise_space
    known = contract("noise_classifiers")
    row = {name: "{}" for name in known.names if not known.column(name).nullable} | {
        "classifier_id": "c1",
        "question": "reference_against_pool",
        "pool_batches": ["pool"],
        "noise_space": space,
        "num_folds": 1,
        "sigmas": SIGMAS.tolist(),
        "weights_sha256": "0" * 64,
        "status": "promoted",
    }
    row |= {n: [0.5] * 8 for n in ("balanced_accuracy", "tv_lower_bound", "tv_standard_error")}
    root.tables.upsert("noise_classifiers", known.table([row]), job="tests")
    add_pool(root, make_batch, images, "pool", 2)
    batches = [("reference", "reference"), ("pool", "pool")]
    return Request(
        batches=tuple(BatchRequest(name=n, role=r, source="x") for n, r in batches), recipe=recipe
    )


def add_pool(root, make_batch, images, name, strength, source="folder"):
    rows = make_batch(root, name, images(8, seed=strength), source=source)["sample_row"]
    logits = [(-strength * (i + 1) / 8 / SIGMAS**2).tolist() for i in range(8)]
    table = contract("noise_curves").table(
        {
            "sample_row": rows,
            "ingest_batch": [name] * 8,
            "classifier_id": ["c1"] * 8,
            "fold": [0] * 8,
            "evaluations": [16] * 8,
            "annotator_id": [None] * 8,
            "logits": logits,
            "logit_standard_error": [[0.01] * 8] * 8,
        }
    )
    slice_ = {"classifier_id": "c1", "ingest_batch": name}
    root.tables.commit("noise_curves", table, slice=slice_, inputs={"l": logits}, job="tests")
