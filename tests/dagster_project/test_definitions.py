import subprocess
import sys

import dagster as dg

from dagster_project.definitions import defs
from dagster_project.steps import STEPS

HEAVY = ("torch", "pyspark", "py4j", "diffusers", "accelerate", "matplotlib", "scipy")


def test_loading_the_graph_imports_nothing_that_computes():
    code = (
        "import sys; from dagster_project.definitions import defs; defs.get_repository_def(); "
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""  # no warning of a feature in preview either


def test_every_step_of_the_command_line_is_made_of_assets_of_the_graph():
    graph = defs.get_repository_def().asset_graph
    keys = {key.to_user_string() for key in graph.get_all_asset_keys()}
    assert {name for step in STEPS for name in step.assets} == keys


def test_a_step_comes_after_everything_it_depends_on():
    graph = defs.get_repository_def().asset_graph
    order = {name: number for number, step in enumerate(STEPS) for name in step.assets}
    for name, number in order.items():
        for parent in graph.get(dg.AssetKey(name)).parent_keys:
            assert order[parent.to_user_string()] < number


def test_steps_and_assets_agree_on_their_partitions():
    graph = defs.get_repository_def().asset_graph
    for step in STEPS:
        expected = "ingest_batch" if step.roles else "arm" if step.per_arm else None
        for name in step.assets:
            partitions = graph.get(dg.AssetKey(name)).partitions_def
            assert getattr(partitions, "name", None) == expected


def test_every_asset_says_what_it_is():
    graph = defs.get_repository_def().asset_graph
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description
        assert node.kinds
        assert node.group_name in {"ingest", "curate", "annotate", "train", "evaluate"}


def test_checks_stand_before_training_and_block():
    graph = defs.get_repository_def().asset_graph
    checks = {k.name: graph.get_check_spec(k) for k in graph.asset_check_keys}
    assert {"every_sample_is_annotated", "every_sample_is_scored"} <= set(checks)
    assert all(spec.blocking for spec in checks.values())
