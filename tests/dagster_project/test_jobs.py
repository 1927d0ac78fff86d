"""Jobs, sensors and schedules on roots that were only ingested: no Spark, no training."""

import json
import time
from datetime import datetime
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster._utils.schedules import schedule_execution_time_iterator

from dagster_project import cli
from dagster_project.definitions import build_definitions
from dagster_project.defs.project import Project
from dagster_project.operations.batches import chain_of
from dagster_project.recipe import load_recipe
from dagster_project.request import BatchRequest, Request, Verdict, judge
from pipelines.scorers import PACKS
from schemas.registry import contract
from tests.data.weeks import Orchestrator, write_images


@pytest.fixture
def asked(root, tmp_path):
    """A root whose recipe watches a folder, and who plays the daemon for it."""
    (tmp_path / "inbox").mkdir()
    recipe = load_recipe("default").model_dump(mode="json")
    recipe["operations"]["watch"] = [
        {"name": "inbox", "path": str(tmp_path / "inbox"), "settle_seconds": 0}
    ]
    Request(recipe=recipe).save(root)
    return Orchestrator(root)


def batch(**config):
    return {"bring_in_batch": {"config": {"until": "ingest"} | config}}


def test_a_person_registers_a_folder_from_the_launchpad(asked, tmp_path):
    write_images(tmp_path / "cats" / "tabby", 3, "job-cats")
    own = {"labels_from_folders": True, "source_name": "shelter"}
    result = asked.execute(
        "new_batch", batch(name="cats", source=str(tmp_path / "cats"), ingest=own)
    )
    assert result.success
    samples = asked.root.tables.read("samples").to_pylist()
    assert {(s["ingest_batch"], s["label"], s["source"]) for s in samples} == {
        ("cats", "tabby", "shelter")
    }
    assert asked.instance.get_dynamic_partitions("ingest_batch") == ["cats"]
    event = asked.instance.get_latest_materialization_event(dg.AssetKey("samples"))
    assert event.asset_materialization.partition == "cats"
    assert asked.execute("new_batch", batch(name="cats")).success  # again, by its name alone


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "a", "source": "/no/such"}, "does not exist"),
        ({"name": "a"}, "name its source"),
        ({"name": "../a", "source": "/tmp"}, "cannot be used"),
        ({"name": "a", "source": "/tmp", "role": "king"}, "king"),
        ({"name": "a", "source": "/tmp", "until": "never"}, "never"),
        ({"name": "a", "source": "{here}", "ingest": {"colour": 1}}, "colour"),
    ],
)
def test_what_cannot_be_registered_is_refused_and_nothing_is_kept(asked, tmp_path, config, words):
    write_images(tmp_path / "here", 1, "job-here")
    config = {
        name: str(v).format(here=tmp_path / "here") if name == "source" else v
        for name, v in config.items()
    }
    before = Request.load(asked.root)
    result = asked.execute("new_batch", batch(**config))
    assert not result.success
    assert words in failure_of(result)
    assert Request.load(asked.root) == before


def failure_of(result):
    event = next(e for e in result.all_events if e.event_type_value == "STEP_FAILURE")
    data = event.step_failure_data
    found = data.user_failure_data.description if data.user_failure_data else None
    return found or data.error.to_string()


def test_a_name_that_holds_another_source_is_refused(asked, tmp_path):
    for name in ("one", "two"):
        write_images(tmp_path / name, 1, f"job-{name}")
    assert asked.execute("new_batch", batch(name="a", source=str(tmp_path / "one"))).success
    result = asked.execute("new_batch", batch(name="a", source=str(tmp_path / "two")))
    assert "already holds" in failure_of(result)


def test_a_drop_becomes_a_partition_and_a_run_and_no_tick_repeats_it(asked, tmp_path):
    write_images(tmp_path / "inbox", 3, "drop-a")
    sensor = asked.definitions.get_repository_def().get_sensor_def("new_drops")

    def tick(cursor):
        resources = {"project": asked.project}
        with dg.build_sensor_context(
            instance=asked.instance, cursor=cursor, resources=resources
        ) as context:
            return sensor.evaluate_tick(context)

    first = tick(None)
    assert [r.run_key for r in first.run_requests] == ["inbox-00000"]
    assert first.dynamic_partitions_requests[0].partition_keys == ["inbox-00000"]
    quiet = tick(first.cursor)
    assert not quiet.run_requests
    # The orchestrator lost its cursor before the run began: asked for again under the same key,
    # which makes it one run; no file is in two batches.
    lost = tick(None)
    assert [r.run_key for r in lost.run_requests] == ["inbox-00000"]
    assert [b.name for b in Request.load(asked.root).batches] == ["inbox-00000"]


@pytest.mark.slow
def test_a_hundred_thousand_new_files_are_a_few_batches_within_a_tick(asked, tmp_path):
    for folder in range(100):
        place = tmp_path / "inbox" / f"{folder:02d}"
        place.mkdir()
        for number in range(1000):
            (place / f"{number}.png").touch()
    began = time.monotonic()
    sensor = asked.definitions.get_repository_def().get_sensor_def("new_drops")
    resources = {"project": asked.project}
    with dg.build_sensor_context(instance=asked.instance, resources=resources) as context:
        data = sensor.evaluate_tick(context)
    print(f"tick of 100,000 new files: {time.monotonic() - began:.1f} s")  # noqa: T201
    assert [r.run_key for r in data.run_requests] == ["inbox-00000", "inbox-00001"]
    staged = list((asked.root.path / "drops").glob("inbox-*/*/*.png"))
    assert len(staged) == 100_000
    assert len(data.cursor) < 1000


def test_each_night_is_asked_for_once_when_the_clock_changes(root):
    recipe = load_recipe("default").model_dump(mode="json")
    recipe["operations"] |= {"rescore_cron": "30 2 * * *", "timezone": "Europe/Berlin"}
    Request(recipe=recipe).save(root)
    definitions = build_definitions(Project(root_path=str(root.path)))
    schedule = definitions.get_repository_def().get_schedule_def("nightly_rescore")
    for first in (datetime(2026, 3, 27), datetime(2026, 10, 23)):  # noqa: DTZ001 - local days
        start = first.replace(tzinfo=ZoneInfo("Europe/Berlin"))
        times = schedule_execution_time_iterator(
            start.timestamp(), schedule.cron_schedule, schedule.execution_timezone, ascending=True
        )
        keys = []
        for _ in range(5):
            with dg.build_schedule_context(scheduled_execution_time=next(times)) as context:
                (request,) = schedule.evaluate_tick(context).run_requests
            keys.append(request.run_key)
        assert len(set(keys)) == 5
        assert len({key[:10] for key in keys}) == 5  # a run a night, on both nights of the change


def test_nothing_runs_by_itself_unless_the_recipe_says_so(root):
    recipe = load_recipe("default").model_dump(mode="json")

    def states():
        repository = build_definitions(Project(root_path=str(root.path))).get_repository_def()
        found = [*repository.sensor_defs, *repository.schedule_defs]
        return {one.default_status.value for one in found}

    Request(recipe=recipe).save(root)
    assert states() == {"STOPPED"}
    recipe["operations"]["running"] = True
    Request(recipe=recipe).save(root)
    assert states() == {"RUNNING"}


def test_without_a_promoted_classifier_a_batch_brings_the_whole_pool_along(asked, tmp_path):
    batches = [
        BatchRequest(name=name, role=role, source=str(tmp_path))
        for name, role in (("reference", "reference"), ("a", "pool"), ("b", "pool"))
    ]
    request = Request.load(asked.root).with_batches(batches)
    steps = chain_of(asked.root, request, "b", "annotate")
    assert ("noise curves", "a") in {(step.title, partition) for step, partition in steps}
    promoted_row(asked.root, request)
    steps = [
        (step.name, partition) for step, partition in chain_of(asked.root, request, "b", "annotate")
    ]
    assert ("references", None) in steps  # not defined yet
    assert {partition for _, partition in steps} == {None, "b"}
    assert [name for name, partition in steps if partition] == [
        "ingest", "score", "ood", "pack", "curves", "annotate"]  # fmt: skip

    arms = {**request.recipe["arms"], "by_source": {"kind": "classifier_per_source"}}
    by_source = request.model_copy(update={"recipe": {**request.recipe, "arms": arms}})
    work = [
        partition
        for step, partition in chain_of(asked.root, by_source, "a", "annotate")
        if step.name == "annotate"
    ]
    assert work == ["reference", "b", "a"]  # a new source is a new policy: for all, "a" last


def promoted_row(root, request):
    table = contract("noise_classifiers")
    row = {
        "classifier_id": "c-1",
        "question": "reference_against_pool",
        "reference_set": "trusted",
        "pool_batches": ["a"],
        "noise_space": request.full_recipe.transform.noise_space,
        "num_folds": 2,
        "sigmas": [0.1],
        "balanced_accuracy": [0.9],
        "tv_lower_bound": [0.8],
        "tv_standard_error": [0.01],
        "control": json.dumps({"planted": {"gaussian_blur": {"found": True}}}),
        "config": "{}",
        "weights_sha256": "0" * 64,
        "status": "promoted",
        "code_version": "1",
    }
    known = {column.name: None for column in table.columns}
    root.tables.upsert("noise_classifiers", table.table([known | row]), job="tests")


def test_a_batch_that_a_person_accepted_is_not_held_by_a_check(root):
    Request(recipe={}, batches=(BatchRequest(name="a", role="pool", source="/x"),)).save(root)
    judge(root, "a", Verdict(status="held", why="odd"))
    assert Request.load(root).of_role("pool") == ()
    judge(root, "a", Verdict(status="accepted", why="looked at it", by="person"))
    assert judge(root, "a", Verdict(status="held", why="odd")).of_role("pool") == ("a",)


def test_accept_lets_a_batch_in_and_hold_keeps_it_out(root, capsys):
    Request(recipe={}, batches=(BatchRequest(name="a", role="pool", source="/x"),)).save(root)
    accept = ["accept", "--root", str(root.path), "a", "--why", "seen"]
    assert cli.main([*accept, "--hold"]) == 0
    assert Request.load(root).is_held("a")
    assert cli.main(accept) == 0
    assert not Request.load(root).is_held("a")
    assert cli.main(["accept", "--root", str(root.path), "b", "--why", "x"]) == 2
    assert "no batch 'b'" in capsys.readouterr().err


def test_rescore_says_what_it_would_do(root, tmp_path, capsys):
    write_images(tmp_path / "pool", 2, "rescore-pool")
    write_images(tmp_path / "reference", 60, "rescore-reference")
    run = ["run", "--root", str(root.path), "--until", "references"]
    sources = ["--source", str(tmp_path / "pool"), "--reference", str(tmp_path / "reference")]
    assert cli.main([*run, *sources]) == 0
    capsys.readouterr()
    assert cli.main(["rescore", "--root", str(root.path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "2 of 2 images" in said
    assert "60 of 60 images" in said
    steps = {line.split("  ")[0] for line in said.splitlines()[1:]}
    assert "scores" in steps
    assert not steps & {"ingest", "reference sets"}


def test_a_root_that_was_asked_for_nothing_says_so(root, capsys):
    for command in ("train", "compare", "candidate", "promote", "rescore"):
        assert cli.main([command, "--root", str(root.path)]) == 2
        assert "asked for nothing" in capsys.readouterr().err


def test_a_new_batch_is_due_step_by_step_and_only_once(asked):
    definitions, instance = asked.definitions, dg.DagsterInstance.ephemeral()
    first = dg.evaluate_automation_conditions(definitions, instance)
    assert first.total_requested == 0
    instance.add_dynamic_partitions("ingest_batch", ["b"])
    second = dg.evaluate_automation_conditions(definitions, instance, cursor=first.cursor)
    assert second.get_num_requested(dg.AssetKey("samples")) == 1
    third = dg.evaluate_automation_conditions(definitions, instance, cursor=second.cursor)
    assert third.total_requested == 0


def test_a_new_code_version_makes_due_what_it_measures_and_nothing_above_it(asked, monkeypatch):
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions("ingest_batch", ["b"])
    names = ("samples", "quality_scores", "embeddings", "reference_sets", "ood_scores")
    for name in names:
        partition = None if name == "reference_sets" else "b"
        tags = {"dagster/data_version": "1"}
        instance.report_runless_asset_event(
            dg.AssetMaterialization(name, partition=partition, tags=tags)
        )
    definitions = build_definitions(asked.project)
    cursor = dg.evaluate_automation_conditions(definitions, instance).cursor
    monkeypatch.setitem(PACKS["classical"].__dict__, "version", "classical-next")
    changed = build_definitions(asked.project)
    due = dg.evaluate_automation_conditions(changed, instance, cursor=cursor)
    assert due.get_num_requested(dg.AssetKey("quality_scores")) == 1
    assert due.get_num_requested(dg.AssetKey("samples")) == 0
    assert due.get_num_requested(dg.AssetKey("training_pack")) == 0
