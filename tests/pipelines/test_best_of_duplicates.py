"""Of equal images the best by a score is used; the others are not, wherever they lie."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.jobs.annotate import annotate
from pipelines.policies import BestOfDuplicates, FixedPerSource, load
from pipelines.policies.by_duplicates import worse_members
from pipelines.policy_files import policy_from_file
from pipelines.scorers.classical import CLASSICAL
from schemas.errors import BadInput, TableMissing
from schemas.registry import contract
from tests.pipelines.test_annotate_job import SPACE, put_scores

FLOOR = FixedPerSource(noise_space=SPACE, levels={"*": 1.5})


def policy(**changes):
    values = {
        "noise_space": SPACE,
        "floor": FLOOR,
        "pack": "classical",
        "column": "sharpness",
        "scorer_version": CLASSICAL.version,
        "direction": "higher_is_better",
        "clusters": ("perceptual",),
    }
    return BestOfDuplicates(**values | changes)


def put_clusters(root, kind, *clusters):
    rows = [
        {"kind": kind, "sample_row": row, "cluster_row": min(cluster)}
        for cluster in clusters
        for row in cluster
    ]
    table = contract("duplicate_clusters").table(rows) if rows else None
    root.tables.commit(
        "duplicate_clusters",
        contract("duplicate_clusters").empty() if table is None else table,
        slice={"kind": kind},
        inputs={"clusters": clusters},
        job="tests",
    )


def levels(root, batch):
    rows = root.tables.read("noise_annotations", where={"ingest_batch": batch}).to_pylist()
    return [row["sigma_min"] for row in rows], [row["reason"] for row in rows]


@pytest.fixture
def filled(root, make_batch, images):
    """Two batches; images 0, 1 of b1 and 0 of b2 are copies, 1 of b2 and 3 of b1 too."""
    first = make_batch(root, "b1", images(4))["sample_row"].to_pylist()
    second = make_batch(root, "b2", images(2, seed=1))["sample_row"].to_pylist()
    put_clusters(root, "perceptual", [first[0], first[1], second[0]], [first[3], second[1]])
    put_scores(root, "b1", [1.0, 5.0, 2.0, 7.0])
    put_scores(root, "b2", [3.0, 7.0])
    return root, first, second


def test_the_best_of_each_cluster_is_kept_across_batches(filled):
    root, _, _ = filled
    annotate(root, "b1", policy())
    annotate(root, "b2", policy())
    fixed = "fixed_per_source"
    assert levels(root, "b1") == ([None, 1.5, 1.5, 1.5], ["duplicate", fixed, fixed, fixed])
    # Of equal scores the image that came first stays.
    assert levels(root, "b2") == ([None, None], ["duplicate", "duplicate"])
    assert load(root, policy().policy_id) == policy().model_copy(
        update={"name": policy().policy_id}
    )


def test_a_better_copy_makes_the_annotations_stale(filled):
    root, _, _ = filled
    annotate(root, "b1", policy())
    assert annotate(root, "b1", policy()).written == 0
    put_scores(root, "b2", [9.0, 8.0])
    assert annotate(root, "b1", policy()).written == 4
    assert levels(root, "b1")[0] == [None, None, 1.5, None]
    put_clusters(root, "perceptual")
    annotate(root, "b1", policy())
    assert levels(root, "b1")[0] == [1.5] * 4


def test_kinds_are_joined_where_they_share_an_image(filled):
    root, first, _ = filled
    put_clusters(root, "exact", [first[1], first[2]])
    both = policy(clusters=("exact", "perceptual"))
    annotate(root, "b1", both)
    assert levels(root, "b1")[0] == [None, 1.5, None, 1.5]


def test_a_reference_stays_and_its_copies_in_the_pool_give_way(filled, make_batch, images):
    root, first, _ = filled
    trusted = make_batch(root, "r", images(1, seed=2), role="reference")["sample_row"].to_pylist()
    put_clusters(root, "perceptual", [first[1], trusted[0]])
    annotate(root, "b1", policy())
    annotate(root, "r", policy())
    assert levels(root, "b1")[0] == [1.5, None, 1.5, 1.5]
    assert levels(root, "r") == ([0.0], ["reference"])


def test_without_clusters_or_scores_the_job_says_what_to_run(filled, make_batch, images):
    root, first, _ = filled
    with pytest.raises(TableMissing, match="run `dedup --kind exact` first"):
        annotate(root, "b1", policy(clusters=("exact",)))
    third = make_batch(root, "b3", images(1, seed=3))["sample_row"].to_pylist()
    put_clusters(root, "perceptual", [first[0], third[0]])
    with pytest.raises(TableMissing, match="'b3' has no scores/classical"):
        annotate(root, "b1", policy())


def test_a_file_needs_only_the_score_and_the_floor(filled, tmp_path):
    root, _, _ = filled
    path = tmp_path / "policy.yaml"
    path.write_text(
        "kind: best_of_duplicates\ncolumn: sharpness\nclusters: [perceptual]\n"
        f"floor: {{kind: fixed_per_source, noise_space: '{SPACE}', levels: {{'*': 1.5}}}}\n"
    )
    assert policy_from_file(root, path, ["b1"]).policy_id == policy().policy_id
    path.write_text("kind: best_of_duplicates\ncolumn: sharpness\n")
    with pytest.raises(BadInput, match="needs a floor"):
        policy_from_file(root, path, ["b1"])


members = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([0.0, 1.0, 2.0, np.nan]), st.booleans()),
    min_size=0,
    max_size=20,
)


@given(members, st.sampled_from(["higher_is_better", "lower_is_better"]), st.randoms())
@settings(max_examples=200, deadline=None)
def test_one_of_each_cluster_stays_and_no_better_one_goes(found, direction, shuffle):
    rows = np.arange(len(found), dtype=np.int64) + 1
    clusters = np.array([cluster for cluster, _, _ in found], np.int64)
    scores = np.array([score for _, score, _ in found], np.float64)
    trusted = np.array([is_reference for _, _, is_reference in found], bool)
    rule = policy(direction=direction)
    gone = set(worse_members(rule, rows, clusters, scores, trusted).tolist())
    order = np.array(shuffle.sample(range(len(found)), len(found)), np.int64)
    again = worse_members(rule, rows[order], clusters[order], scores[order], trusted[order])
    assert set(again.tolist()) == gone
    sign = 1 if direction == "higher_is_better" else -1
    value = np.where(np.isnan(scores), -np.inf, sign * scores)
    for cluster in set(clusters.tolist()):
        inside = clusters == cluster
        stays = inside & ~np.isin(rows, list(gone))
        if trusted[inside].any():
            assert (stays == (inside & trusted)).all()
        else:
            assert stays.sum() == 1
            assert value[stays][0] == value[inside].max()


def test_unequal_noise_spaces_are_refused():
    other = FixedPerSource(noise_space="elsewhere", levels={"*": 0.0})
    with pytest.raises(ValueError, match="the floor measures in elsewhere"):
        policy(floor=other)


def test_empty_clusters_are_no_error(root, make_batch, images):
    make_batch(root, "b1", images(2))
    put_clusters(root, "perceptual")
    annotate(root, "b1", policy())
    assert levels(root, "b1")[0] == [1.5, 1.5]
    assert isinstance(root.tables.read("noise_annotations"), pa.Table)
