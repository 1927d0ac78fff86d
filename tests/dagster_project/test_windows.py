"""Crop classifiers, receptive fields and crop scores as assets: grains, whose answer is known."""

import dagster as dg
import pytest
from dagster._core.errors import DagsterExecutionStepExecutionError

from dagster_project.arms import policy_of
from dagster_project.commands.what_if import _policy, asked_rule
from dagster_project.defs.checks import first_failure
from dagster_project.defs.window_checks import _judged
from dagster_project.defs.windows import NAMES
from dagster_project.operations.batches import chain_of
from dagster_project.operations.stale import stale_work
from dagster_project.recipe import parse_recipe
from dagster_project.request import BatchRequest, Request
from dagster_project.runner import plan
from dagster_project.window_pictures import crop_maps
from dagster_project.windows import id_of, measure
from schemas.errors import TableMissing
from tests.ambient_omni import windows_data
from tests.ambient_omni.windows_data import CROPS, JOB, SPACE
from tests.dagster_project.test_pictures import images_in
from tests.data.weeks import RECIPE, Orchestrator

RULE = {
    "kind": "crop_window",
    "epsilon": 0.1,
    "crops": CROPS.model_dump(mode="json"),
    "receptive_field": JOB.receptive_field.model_dump(mode="json"),
}
PLAIN = {"only_reference": {"kind": "fixed_per_source", "levels": {"*": None}}}
VALUES = RECIPE | {
    "transform": SPACE.model_dump(mode="json"),
    "arms": PLAIN | {"foreign": RULE},
    "main_arm": "foreign",
}
ROLES = {"ref": "reference", "foreign": "pool", "static": "pool"}


def asked(values):
    recipe = parse_recipe(values, "windows").model_dump(mode="json")
    batches = tuple(BatchRequest(name=n, role=r, source="tests") for n, r in ROLES.items())
    return Request(batches=batches, recipe=recipe)


@pytest.fixture
def windows(tmp_path_factory):
    """An orchestrator of a root of grains, whose recipe has an arm with windows."""
    root, *ids = windows_data.measured(tmp_path_factory.getbasetemp())
    asked(VALUES).save(root)
    orchestrator = Orchestrator(root)
    orchestrator.ids = ids
    return orchestrator


def materialize(orchestrator, asset, partition=None):
    """Materialize one asset with its checks: (metadata, passed by check)."""
    if partition is not None:
        orchestrator.instance.add_dynamic_partitions("ingest_batch", [partition])
    job = orchestrator.definitions.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=orchestrator.instance,
        asset_selection=[dg.AssetKey(asset)],
        partition_key=partition,
    )
    (event,) = result.get_asset_materialization_events()
    checks = {found.check_name: found.passed for found in result.get_asset_check_evaluations()}
    return event.materialization.metadata, checks


def test_windows_are_measured_shown_and_checked_asset_by_asset(windows):
    classifier, field = windows.ids
    found, checks = materialize(windows, "crop_classifier")
    assert found["arms"].value == {"foreign": classifier}
    assert "domain against shuffled" in found[f"control_{classifier}"].md_str
    assert checks == {"crop_classifier_is_valid": True}

    found, checks = materialize(windows, "receptive_field")
    assert found["line"].value == field
    assert len(images_in(found["receptive_field_foreign"])) == 1
    assert "needed side" in found["needed_context_foreign"].md_str
    assert checks == {"crops_reach_a_level": True}

    for batch in ("foreign", "static"):
        found, checks = materialize(windows, "crop_scores", batch)
        assert set(checks) == {"every_sample_has_crop_scores", "crop_scores_fulfil_their_contract"}
        assert all(checks.values())
    assert found["dagster/row_count"].value == 40
    assert len(images_in(found[f"crop_maps_{classifier}"])) == 3
    assert len(images_in(found[f"in_domain_{classifier}"])) == 1

    found, checks = materialize(windows, "noise_annotations", "foreign")
    assert all(checks.values())
    assert "sigma_max" in found["dagster/column_lineage"].column_lineage.deps_by_column
    assert "usable below sigma" in found["windows_foreign"].md_str
    assert len(images_in(found["window_shares_foreign"])) == 1
    policy = policy_of(windows.root, Request.load(windows.root), *recipe_and_arm(windows))
    where = {"policy_id": policy.policy_id, "ingest_batch": "foreign"}
    ends = windows.root.tables.read("noise_annotations", ["sigma_max"], where)["sigma_max"]
    assert sum(end > 0 for end in ends.to_pylist()) > 60  # of 120 local twins


def recipe_and_arm(windows):
    return Request.load(windows.root).full_recipe, "foreign"


def test_a_batch_that_comes_later_falls_under_the_same_windows(windows):
    root, request = windows.root, Request.load(windows.root)
    recipe = request.full_recipe
    first = measure(root, request, recipe, "foreign", "crop_classifier")
    grown = request.with_batches([BatchRequest(name="more", role="pool", source="tests")])
    assert measure(root, grown, recipe, "foreign", "crop_classifier") == first
    other = RULE | {"crops": RULE["crops"] | {"num_crops": 9_000}}
    changed = asked(VALUES | {"arms": PLAIN | {"foreign": other}})
    with pytest.raises(TableMissing, match="arm 'foreign': its crop_classifier was not made yet"):
        id_of(root, changed.full_recipe, "foreign", "crop_classifier")
    why = {s.step.name: s.why for s in stale_work(root, changed) if s.step.only_for}
    assert why["windows"] == "not made yet under the settings of foreign"
    assert why["crops"].startswith("waits: arm 'foreign'")
    assert "context" not in why


def test_another_border_is_asked_of_the_windows_that_are_there(windows):
    root, request = windows.root, Request.load(windows.root)
    recipe = request.full_recipe
    for part in ("crop_classifier", "receptive_field"):
        measure(root, request, recipe, "foreign", part)
    strict = _policy(root, request, recipe, asked_rule(recipe, "epsilon=0.05"))
    now = policy_of(root, request, recipe, "foreign")
    assert (now.epsilon, strict.epsilon) == (0.1, 0.05)
    assert strict.crop_classifier_id == now.crop_classifier_id
    assert strict.sigma_max == now.sigma_max


def test_without_an_arm_with_windows_the_graph_has_no_assets_of_windows(root):
    request = asked(VALUES | {"arms": PLAIN, "main_arm": "only_reference"})
    request.save(root)
    assert not {step.name for step, _ in plan(request)} & {"windows", "context", "crops"}
    orchestrator = Orchestrator(root)
    graph = orchestrator.definitions.get_repository_def().asset_graph
    assert not {dg.AssetKey(name) for name in NAMES} & graph.get_all_asset_keys()
    parents = graph.get(dg.AssetKey("noise_annotations")).parent_keys
    assert parents == {
        dg.AssetKey(name) for name in ("noise_curves", "quality_scores", "reference_sets")
    }
    assert is_due(orchestrator, ("samples", "noise_curves", "quality_scores", "noise_annotations"))


def test_a_recipe_that_lost_its_windows_since_the_graph_was_loaded_measures_nothing(root):
    asked(VALUES).save(root)
    orchestrator = Orchestrator(root)
    asked(VALUES | {"arms": PLAIN, "main_arm": "only_reference"}).save(root)
    found, checks = materialize(orchestrator, "crop_classifier")
    assert found["line"].value == "no arm of the recipe is of kind crop_window"
    assert checks == {"crop_classifier_is_valid": True}
    assert materialize(orchestrator, "crop_scores", "foreign")[0]["dagster/row_count"].value == 0
    assert root.tables.read("crop_classifiers").num_rows == 0


def test_levels_with_windows_wait_for_the_crops(root):
    asked(VALUES).save(root)
    upstream = ("samples", "noise_curves", "quality_scores", "noise_annotations")
    assert not is_due(Orchestrator(root), upstream)
    assert is_due(Orchestrator(root), (*upstream, "crop_scores", "receptive_field"))


def is_due(orchestrator, made):
    """Say whether new curves of a batch make its annotations due, with these assets there."""
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions("ingest_batch", ["b"])

    def report(name, version):
        partition = None if name in ("receptive_field", "reference_sets") else "b"
        tags = {"dagster/data_version": version}
        instance.report_runless_asset_event(
            dg.AssetMaterialization(name, partition=partition, tags=tags)
        )

    for name in ("reference_sets", *made):
        report(name, "1")
    cursor = dg.evaluate_automation_conditions(orchestrator.definitions, instance).cursor
    report("noise_curves", "2")
    found = dg.evaluate_automation_conditions(orchestrator.definitions, instance, cursor=cursor)
    return found.get_num_requested(dg.AssetKey("noise_annotations")) == 1


def test_a_new_foreign_batch_is_walked_through_its_crops(windows):
    request = asked(VALUES | {"arms": PLAIN | {"foreign": RULE}})
    steps = {step.name for step, _ in chain_of(windows.root, request, "static", "annotate")}
    assert {"windows", "context", "crops", "annotate"} <= steps
    assert not {"windows", "crops"} & {
        step.name for step, _ in chain_of(windows.root, request, "static", "score")
    }


def test_a_classifier_that_learned_the_wrong_way_warns_and_a_blind_one_fails():
    control = '{"bar": 0.4, "tv_lower_bound": [0.1, %s], "tv_standard_error": [0.1, 0.01]}'
    row = {
        "crop_classifier_id": "c",
        "sizes": [4, 8],
        "tv_lower_bound": [-0.5, 0.2],
        "tv_standard_error": [0.01, 0.01],
    }
    wrong = _judged(row | {"control": control % 0.9})
    assert (wrong.passed, wrong.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "crops of side [4]" in wrong.description
    blind = _judged(row | {"control": control % 0.41})
    assert (blind.passed, blind.severity) == (False, dg.AssetCheckSeverity.ERROR)
    # What blocks is not hidden by what warns before it.
    assert first_failure([wrong, blind]) is blind


def test_maps_of_a_batch_without_a_pack_fail_nothing(windows):
    assert crop_maps(windows.root, "never", windows.ids[0], [4, 8]) == {}


def test_crops_before_their_classifier_are_refused_in_one_line(root):
    asked(VALUES).save(root)
    with pytest.raises((TableMissing, DagsterExecutionStepExecutionError), match="crop_classifier"):
        materialize(Orchestrator(root), "crop_scores", "foreign")
