import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from ambient_omni import rng
from ambient_omni.classifier.data import ClassifierData, fold_of
from ambient_omni.classifier.groups import groups_of, join, named
from schemas.registry import contract

names = st.sampled_from("abcdefgh")


def pictures(count, seed=0):
    return list(rng.generator(seed, "groups").integers(0, 256, (count, 8, 8, 3), dtype=np.uint8))


@given(st.lists(st.tuples(names, names)))
def test_two_names_share_a_group_exactly_if_pairs_connect_them(pairs):
    found = join(pairs)
    reach = {name: {name} for pair in pairs for name in pair}
    for _ in reach:
        for one, other in pairs:
            both = reach[one] | reach[other]
            reach[one] = reach[other] = both
    for name, connected in reach.items():
        if len(connected) == 1:
            assert name not in found
        else:
            assert found[name] == min(connected)


def cluster(root, kind: str, rows: list[int]) -> None:
    """Make these rows the only cluster of a kind."""
    rows = [int(row) for row in rows]
    table = contract("duplicate_clusters").table(
        [{"kind": kind, "sample_row": row, "cluster_row": min(rows)} for row in rows]
    )
    root.tables.commit(
        "duplicate_clusters", table, slice={"kind": kind}, inputs={"rows": rows}, job="tests"
    )


def samples_of(root) -> pa.Table:
    return root.tables.read("samples", ["sample_row", "sample_id", "parent_sample_id"])


def test_clusters_of_different_kinds_are_joined_and_semantic_ones_are_not(root, make_batch, tiny):
    rows = make_batch(root, "b", pictures(6))["sample_row"].to_pylist()
    cluster(root, "exact", [rows[0], rows[1]])
    cluster(root, "perceptual", [rows[1], rows[2]])
    cluster(root, "semantic", [rows[3], rows[4]])
    samples = samples_of(root)
    ids = samples["sample_id"].to_pylist()
    found = groups_of(root, samples)
    assert set(found) == set(ids[:3])
    assert set(found.values()) == {min(ids[:3])}
    assert named(ids, found)[3:] == tuple(ids[3:])


def test_without_clusters_everything_stands_alone(root, make_batch, tiny):
    make_batch(root, "b", pictures(3))
    assert groups_of(root, samples_of(root)) == {}


def test_near_duplicates_of_held_out_references_are_neither_positives_nor_pool(
    root, make_batch, tiny
):
    reference = make_batch(root, "ref", pictures(60))["sample_row"].to_numpy()
    pool = make_batch(root, "pool", pictures(60, seed=1))["sample_row"].to_numpy()
    tiny.define_set(root, "validation", reference[:12])
    tiny.define_set(root, "trusted", reference[12:])
    cluster(root, "perceptual", [reference[0], reference[20], pool[3]])
    cluster(root, "exact", pool[[7, 8]])
    data = ClassifierData.read(root, ["pool"], "trusted")
    assert len(data.trusted) == 47
    assert len(data.pool) == 59
    assert int(reference[20]) not in data.trusted.sample_rows
    assert int(pool[3]) not in data.pool.sample_rows
    place = {row: i for i, row in enumerate(data.pool.sample_rows.tolist())}
    twins = [data.pool.groups[place[int(row)]] for row in pool[[7, 8]]]
    assert twins[0] == twins[1]
    assert fold_of(twins[0], 2) == fold_of(twins[1], 2)


def test_clusters_make_another_classifier_only_where_they_touch_its_images(root, make_batch, tiny):
    from ambient_omni.classifier.config import ClassifierConfig
    from ambient_omni.data.transforms import Transform

    reference = make_batch(root, "ref", pictures(60))["sample_row"].to_numpy()
    pool = make_batch(root, "pool", pictures(60, seed=1))["sample_row"].to_numpy()
    other = make_batch(root, "other", pictures(4, seed=2))["sample_row"].to_numpy()
    tiny.define_set(root, "validation", reference[:12])
    tiny.define_set(root, "trusted", reference[12:])

    def name() -> str:
        data = ClassifierData.read(root, ["pool"], "trusted")
        return data.classifier_id(ClassifierConfig(), Transform(), "reference_against_pool")

    before = name()
    cluster(root, "perceptual", other[:2])
    assert name() == before
    cluster(root, "perceptual", pool[:2])
    assert name() != before
