"""One level per source, read off the classifier's levels there."""

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.freezing import freeze_source_levels
from pipelines.jobs.annotate import annotate
from pipelines.policies import (
    ClassifierPerSource,
    ClassifierThreshold,
    levels_of_sources,
)
from pipelines.policy_files import policy_from_file
from schemas.errors import AnnotationMissing, BadInput, TableMissing
from tests.ambient_omni.conftest import define_set
from tests.pipelines.test_annotate_job import SIGMAS, SPACE, put_curves

THRESHOLD = ClassifierThreshold(noise_space=SPACE, classifier_id="c1")
STRENGTHS = np.array([0.0, 0.02, 0.2, 0.5, 1.0, 50.0])


@pytest.fixture
def graded(root, make_batch, images):
    """Two sources: `folder` with all strengths, `other` with the three weakest."""
    make_batch(root, "b1", images(6))
    put_curves(root, "b1", -STRENGTHS[:, None] / SIGMAS)
    make_batch(root, "b2", images(3, seed=4), source="other")
    put_curves(root, "b2", -STRENGTHS[:3, None] / SIGMAS)
    return root


def own_levels(root, batch):
    annotate(root, batch, THRESHOLD)
    where = {"policy_id": THRESHOLD.policy_id, "ingest_batch": batch}
    return root.tables.read("noise_annotations", where=where)["sigma_min"].to_numpy()


@given(
    st.lists(st.floats(0, 50) | st.just(np.nan), min_size=1, max_size=40),
    st.floats(0.01, 1),
    st.integers(0, 2**16),
)
def test_a_sources_level_is_the_least_that_the_share_of_its_images_is_at_or_below(
    levels, quantile, seed
):
    names = np.random.Generator(np.random.Philox(seed)).choice(["a", "b"], len(levels)).tolist()
    own = np.where(np.isnan(levels), np.inf, levels)
    found = levels_of_sources(own, names, quantile)
    assert set(found) == set(names)
    for source, level in found.items():
        own = np.array([v for v, n in zip(levels, names, strict=True) if n == source])
        own = np.where(np.isnan(own), np.inf, own)
        enough = quantile - 1e-9
        if level is None:
            assert np.isfinite(own).mean() < quantile
        else:
            assert (own <= level).mean() >= enough
            assert (own < level).mean() < quantile + 1e-9


def test_images_that_were_not_measured_do_not_count():
    assert levels_of_sources(np.array([1.0, np.nan, np.nan]), list("aab"), 0.9) == {"a": 1}
    assert levels_of_sources(np.array([np.nan]), ["a"], 0.9) == {}


def test_every_image_of_a_source_gets_its_level(graded):
    policy = freeze_source_levels(graded, ["b1", "b2"], threshold=THRESHOLD, quantile=0.7)
    assert set(policy.levels) == {"folder", "other"}
    assert policy.levels["other"] == pytest.approx(own_levels(graded, "b2").max())
    annotate(graded, "b1", policy)
    where = {"policy_id": policy.policy_id}
    rows = graded.tables.read("noise_annotations", where=where)
    assert set(rows["sigma_min"].to_pylist()) == {policy.levels["folder"]}
    assert set(rows["reason"].to_pylist()) == {"level_of_source"}
    own = own_levels(graded, "b1")
    assert np.mean(own <= policy.levels["folder"] + 1e-9) >= 0.7


def test_a_source_that_is_mostly_never_usable_never_is(graded):
    policy = freeze_source_levels(graded, ["b1"], threshold=THRESHOLD, quantile=1.0)
    assert policy.levels == {"folder": None}
    annotate(graded, "b1", policy)
    assert (
        graded.tables.read("noise_annotations", where={"policy_id": policy.policy_id})[
            "sigma_min"
        ].to_pylist()
        == [None] * 6
    )


def test_references_keep_level_0_and_do_not_count(graded):
    rows = graded.tables.read("samples", where={"ingest_batch": "b2"})["sample_row"].to_pylist()
    define_set(graded, "trusted", rows[2:])
    policy = freeze_source_levels(graded, ["b2"], threshold=THRESHOLD, quantile=1.0)
    annotate(graded, "b2", policy)
    where = {"policy_id": policy.policy_id}
    found = graded.tables.read("noise_annotations", where=where)["sigma_min"].to_pylist()
    assert found == [policy.levels["other"], policy.levels["other"], 0.0]
    assert policy.levels["other"] < own_levels(graded, "b1")[2]


def test_a_source_that_came_later_has_no_level_until_it_is_frozen_again(graded):
    policy = freeze_source_levels(graded, ["b1"], threshold=THRESHOLD)
    with pytest.raises(BadInput, match=r"no level for source .other.*freeze it again"):
        annotate(graded, "b2", policy)


def test_what_is_missing_is_named(graded, make_batch, images):
    make_batch(graded, "b3", images(2, seed=9))
    with pytest.raises(TableMissing, match="'b3' has no noise_curves"):
        freeze_source_levels(graded, ["b3"], threshold=THRESHOLD)
    put_curves(graded, "b3", np.zeros((2, len(SIGMAS))))
    rows = graded.tables.read("samples", where={"ingest_batch": "b3"})["sample_row"].to_pylist()
    define_set(graded, "trusted", rows)
    with pytest.raises(AnnotationMissing, match="no pool image of"):
        freeze_source_levels(graded, ["b3"], threshold=THRESHOLD)


def test_a_policy_file_needs_only_the_threshold(graded, tmp_path):
    file = tmp_path / "policy.yaml"
    threshold = {"kind": "classifier_threshold", "classifier_id": "c1", "tau": 0.48}
    file.write_text(yaml.safe_dump({"kind": "classifier_per_source", "threshold": threshold}))
    policy = policy_from_file(graded, file, ["b1"])
    assert isinstance(policy, ClassifierPerSource)
    assert (policy.quantile, policy.threshold.tau, policy.noise_space) == (0.9, 0.48, SPACE)
    file.write_text(yaml.safe_dump({"kind": "classifier_per_source", "tau": 0.4}))
    with pytest.raises(BadInput, match=r"needs \['threshold'\]; missing"):
        policy_from_file(graded, file, ["b1"])
    rule = {"kind": "fixed_per_source", "noise_space": SPACE, "levels": {"*": 1}}
    file.write_text(yaml.safe_dump({"kind": "classifier_per_source", "threshold": rule}))
    with pytest.raises(BadInput, match="threshold: it must be of kind classifier_threshold"):
        policy_from_file(graded, file, ["b1"])
    file.write_text(yaml.safe_dump({"kind": "classifier_per_source", "threshold": 3}))
    with pytest.raises(BadInput, match="threshold: it must be of kind classifier_threshold"):
        policy_from_file(graded, file, ["b1"])
    for wrong in (2, 0, "most"):
        values = {"kind": "classifier_per_source", "threshold": threshold, "quantile": wrong}
        file.write_text(yaml.safe_dump(values))
        with pytest.raises(BadInput, match=r"policy.yaml: quantile: Input should be"):
            policy_from_file(graded, file, ["b1"])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"levels": {"a": -1.0}}, "no sigma"),
        ({"levels": {}}, "at least 1"),
        ({"quantile": 0.0}, "greater than 0"),
        ({"noise_space": "pixel:9x9:pm1"}, "threshold measures in"),
        ({"threshold": THRESHOLD.model_copy(update={"soft": True})}, "hard floor"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change, why):
    good = {"noise_space": SPACE, "threshold": THRESHOLD, "levels": {"a": 0.5}}
    assert ClassifierPerSource(**good).levels == {"a": 0.5}
    with pytest.raises(ValidationError, match=why):
        ClassifierPerSource(**{**good, **change})
