"""Curves beside the exhaustive search: right ones agree, shifted ones are far off and named."""

import numpy as np
import pytest

from ambient_omni.classifier.annotators import ExhaustiveSearch, Reading
from ambient_omni.classifier.config import ExhaustiveConfig
from ambient_omni.classifier.noise_classifier import load
from ambient_omni.data.packs import Pack, to_x0
from pipelines.jobs import agreement as module
from pipelines.jobs.agreement import agreement
from pipelines.jobs.pack import build_pack
from schemas.errors import TableMissing
from schemas.registry import contract
from tests.pipelines.test_curves_job import TRANSFORM, store_classifier

SEARCH = ExhaustiveConfig(num_levels=32, num_noises=4, num_bins=16)
READING = Reading(tau=0.45, smoothing_octaves=0.0, decay_exponent=None)


@pytest.fixture
def graded(spark, root, make_batch, images):
    """`graded(logits)`: a batch of ten whose curves are these; by default the search's own."""
    make_batch(root, "b1", images(10))
    store_classifier(root)
    build_pack(root, "b1", TRANSFORM)
    pack = Pack.open(root.packs, TRANSFORM.transform_id, "b1")
    samples = root.tables.read("samples", ["sample_row", "sample_id"])
    ids = dict(zip(*(samples[n].to_pylist() for n in ("sample_row", "sample_id")), strict=True))
    classifier = load(root, "c1")
    search = ExhaustiveSearch(classifier, SEARCH, classifier.config.seed)
    names = [ids[row] for row in pack.sample_rows.tolist()]
    right = search.curves(to_x0(pack.take(np.arange(10))), names).at(classifier.sigmas)

    def commit(change=lambda logits: logits):
        logits = change(right.logits.astype(np.float64)).tolist()
        table = contract("noise_curves").table(
            {
                "sample_row": pack.sample_rows,
                "ingest_batch": ["b1"] * 10,
                "classifier_id": ["c1"] * 10,
                "fold": [0] * 10,
                "logits": logits,
                "logit_standard_error": [[0.01] * len(classifier.sigmas)] * 10,
                "evaluations": [1] * 10,
                "annotator_id": [None] * 10,
            }
        )
        slice_ = {"classifier_id": "c1", "ingest_batch": "b1"}
        root.tables.commit("noise_curves", table, slice=slice_, inputs={"l": logits}, job="tests")
        return root

    return commit


def test_curves_of_the_search_agree_and_are_asked_once(graded, monkeypatch):
    root = graded()
    found = agreement(root, "b1", "c1", READING, num_images=6, search=SEARCH)
    assert found.num_images == 6
    assert found.median_octaves < 0.3
    monkeypatch.setattr(module, "ExhaustiveSearch", None)
    assert agreement(root, "b1", "c1", READING, num_images=6, search=SEARCH) == found


def test_curves_that_call_everything_clean_and_such_that_call_nothing_cannot_both_agree(graded):
    apart = []
    for shift in (50, -50):
        root = graded(lambda logits, shift=shift: logits + shift)
        found = agreement(root, "b1", "c1", READING, num_images=10, search=SEARCH)
        apart.append(found.p95_octaves)
        rows = root.tables.read("samples", ["sample_row"])["sample_row"].to_pylist()
        assert set(found.farthest) <= set(rows)
    assert max(apart) > 1


def test_a_batch_that_nobody_graded_is_named(root, make_batch, images):
    make_batch(root, "b1", images(2))
    with pytest.raises(TableMissing, match="b1"):
        agreement(root, "b1", "c1", READING, search=SEARCH)
