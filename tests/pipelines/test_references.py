"""Reference sets: no image is on two sides, and none that is held out is trained on."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.ingest import IngestConfig, ingest
from pipelines.references import define_reference_sets, held_out_sample_ids, sample_ids_of
from schemas.errors import BadInput, NotEnoughReferences, TableMissing
from schemas.ids import sample_id_of
from schemas.root import Root
from tests.data.pictures import encoded, put

QUIET = IngestConfig(show_progress=False)


def bring_in(root, tmp_path, batch, seeds, role):
    for seed in seeds:
        put(tmp_path / batch / f"{seed}.png", encoded(seed))
    ingest(root, batch, tmp_path / batch, QUIET, role=role)
    return {sample_id_of(encoded(seed)) for seed in seeds}


def ids(root):
    return {name: sample_ids_of(root, [name]) for name in ("trusted", "validation", "evaluation")}


def test_trusted_validation_and_evaluation_are_disjoint_and_complete(root, tmp_path):
    reference = bring_in(root, tmp_path, "ref", range(100), "reference")
    evaluation = bring_in(root, tmp_path, "eval", range(95, 130), "evaluation")
    report = define_reference_sets(root, "ref", validation_fraction=0.25, evaluation_batch="eval")
    found = ids(root)
    assert found["evaluation"] == evaluation
    assert found["trusted"] | found["validation"] == reference - evaluation
    assert not found["trusted"] & found["validation"]
    assert 10 <= len(found["validation"]) <= 40
    assert held_out_sample_ids(root) == found["validation"] | evaluation
    assert report.rejected == {"in_evaluation": 5}
    assert report.written == 95 + 35
    roles = root.tables.read("reference_sets").to_pylist()
    assert all(row["role"] == row["reference_set"] for row in roles)


def test_defining_twice_changes_nothing(root, tmp_path):
    bring_in(root, tmp_path, "ref", range(80), "reference")
    define_reference_sets(root, "ref", validation_fraction=0.2)
    before = root.tables.version("reference_sets"), ids(root)
    report = define_reference_sets(root, "ref", validation_fraction=0.2)
    assert (report.written, report.unchanged) == (0, 80)
    assert (root.tables.version("reference_sets"), ids(root)) == before


def test_an_evaluation_batch_that_is_no_longer_named_empties_its_set(root, tmp_path):
    bring_in(root, tmp_path, "ref", range(80), "reference")
    bring_in(root, tmp_path, "eval", range(70, 90), "evaluation")
    define_reference_sets(root, "ref", evaluation_batch="eval")
    define_reference_sets(root, "ref")
    found = ids(root)
    assert not found["evaluation"]
    assert len(found["trusted"] | found["validation"]) == 80


def test_the_side_of_an_image_depends_on_its_bytes_alone(root, tmp_path):
    bring_in(root, tmp_path, "ref", range(80), "reference")
    bring_in(root, tmp_path, "more", range(40, 200), "reference")
    define_reference_sets(root, "ref")
    first = ids(root)
    define_reference_sets(root, "more")
    second = ids(root)
    shared = {sample_id_of(encoded(seed)) for seed in range(40, 80)}
    assert first["validation"] & shared == second["validation"] & shared


def test_held_out_bytes_are_named_in_whichever_batch_they_lie(root, tmp_path):
    reference = bring_in(root, tmp_path, "ref", range(60), "reference")
    pool = bring_in(root, tmp_path, "pool", range(50, 70), "pool")
    define_reference_sets(root, "ref", validation_fraction=0.5, min_trusted=1, min_validation=1)
    held_out = held_out_sample_ids(root)
    assert held_out < reference
    assert held_out & pool


def test_nothing_is_held_out_where_nothing_was_defined(root):
    assert held_out_sample_ids(root) == frozenset()


def test_too_few_references_are_refused_with_counts_and_advice(root, tmp_path):
    bring_in(root, tmp_path, "ref", range(20), "reference")
    with pytest.raises(NotEnoughReferences, match=r"trusted set needs 32 images: ref has 20.*add"):
        define_reference_sets(root, "ref")
    with pytest.raises(NotEnoughReferences, match="validation set needs 8"):
        define_reference_sets(root, "ref", validation_fraction=0.01, min_trusted=5)
    assert not root.tables.exists("reference_sets")


def test_what_cannot_be_meant_is_refused(root, tmp_path):
    with pytest.raises(TableMissing, match="batch ref has no samples"):
        define_reference_sets(root, "ref")
    bring_in(root, tmp_path, "ref", range(5), "reference")
    with pytest.raises(TableMissing, match="batch other has no samples"):
        define_reference_sets(root, "other")
    bring_in(root, tmp_path, "pool", range(5), "pool")
    with pytest.raises(BadInput, match="pool was ingested as pool, not as reference"):
        define_reference_sets(root, "pool")
    with pytest.raises(BadInput, match="pool was ingested as pool, not as evaluation"):
        define_reference_sets(root, "ref", evaluation_batch="pool")
    with pytest.raises(BadInput, match="both"):
        define_reference_sets(root, "ref", evaluation_batch="ref")
    with pytest.raises(BadInput, match=r"validation_fraction is 1\.5"):
        define_reference_sets(root, "ref", validation_fraction=1.5)


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    reference=st.sets(st.integers(0, 30), min_size=4),
    evaluation=st.sets(st.integers(0, 30), min_size=1),
    fraction=st.floats(0.05, 0.95),
)
def test_no_image_is_ever_on_two_sides(tmp_path_factory, reference, evaluation, fraction):
    tmp_path = tmp_path_factory.mktemp("r")
    root = Root.create(tmp_path / "root")
    bring_in(root, tmp_path, "ref", reference, "reference")
    bring_in(root, tmp_path, "eval", evaluation, "evaluation")
    define_reference_sets(
        root,
        "ref",
        validation_fraction=fraction,
        evaluation_batch="eval",
        min_trusted=0,
        min_validation=0,
    )
    found = ids(root)
    assert sum(map(len, found.values())) == len(reference | evaluation)
    assert not found["trusted"] & held_out_sample_ids(root)
