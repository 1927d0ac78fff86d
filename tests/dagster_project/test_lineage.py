import pytest

from dagster_project.definitions import defs
from dagster_project.lineage import SOURCES, column_lineage
from schemas.registry import contract


@pytest.mark.parametrize("table", sorted(SOURCES))
def test_every_column_of_the_lineage_is_in_its_contract(table):
    lineage = column_lineage(table)
    _, upstream, made_from = SOURCES[table]
    assert set(lineage.deps_by_column) <= set(contract(table).names)
    assert set(made_from) <= set(contract(upstream).names)
    assert lineage.deps_by_column


def test_every_asset_of_the_lineage_is_in_the_graph():
    graph = defs.get_repository_def().asset_graph
    for table in SOURCES:
        for deps in column_lineage(table, with_windows=True).deps_by_column.values():
            assert all(graph.has(dep.asset_key) for dep in deps)


def test_a_level_is_made_from_the_curve():
    deps = column_lineage("noise_annotations").deps_by_column["sigma_min"]
    assert {(d.asset_key.to_user_string(), d.column_name) for d in deps} == {
        ("noise_curves", "logits"),
        ("noise_curves", "logit_standard_error"),
    }


def test_without_windows_no_column_is_made_from_crops():
    assert "sigma_max" in column_lineage("noise_annotations", with_windows=True).deps_by_column
    assert "sigma_max" not in column_lineage("noise_annotations").deps_by_column


def test_what_begins_the_road_has_no_lineage():
    assert column_lineage("samples") is None
