"""A week of a root: drops, nights, a bad batch, a new scorer, a killed run, a take-down."""

import json
import os
import shutil
import signal
import threading
import time
from datetime import UTC, datetime

import dagster as dg
import numpy as np
import pytest
import yaml

from ambient_omni.data.packs import Pack
from dagster_project import cli
from dagster_project.commands.exclude import exclude
from dagster_project.operations.notices import notices
from dagster_project.request import Request, change_request
from schemas.maintenance import compact, vacuum
from schemas.root import Root
from tests.data.weeks import RECIPE, Orchestrator, write_images

pytestmark = pytest.mark.slow

FACTS = ("scores/classical", "embeddings", "noise_curves", "noise_annotations", "ood_scores")


@pytest.fixture(scope="module")
def week(tmp_path_factory):
    """Monday: a root with levels, its classifier promoted, and a watched folder."""
    home = tmp_path_factory.mktemp("week")
    write_images(home / "reference", 60, "week-reference")
    write_images(home / "pool", 40, "week-pool", blur=1.5)
    (home / "inbox").mkdir()
    operations = {
        "watch": [{"name": "inbox", "path": str(home / "inbox"), "settle_seconds": 0}],
        "drift": {"hold": True, "num_bins": 4, "min_images": 10},
        "retrain": {"growth_fraction": 0.4},
    }
    recipe = RECIPE | {"operations": operations}
    (home / "week.yaml").write_text(yaml.safe_dump(recipe))
    root = home / "root"
    run = [
        *("run", "--root", str(root), "--recipe", str(home / "week.yaml"), "--until", "annotate"),
        *("--source", str(home / "pool"), "--reference", str(home / "reference")),
    ]
    assert cli.main(run) == 0
    assert cli.main(["promote", "--root", str(root)]) == 0
    orchestrator = Orchestrator(Root.open(root))
    orchestrator.home = home
    return orchestrator


def rows(week, table, **where):
    return week.root.tables.read(table, ["sample_row"], where)["sample_row"].to_pylist()


def test_the_days_of_a_week(week):
    monday_promoted(week)
    tuesday_a_drop(week)
    wednesday_a_bad_batch(week)
    thursday_a_new_scorer(week)
    friday_a_killed_training(week)
    saturday_a_take_down(week)
    sunday_growth_and_a_failure(week)


def monday_promoted(week):
    classifiers = week.root.tables.read("noise_classifiers").to_pylist()
    assert [c["status"] for c in classifiers] == ["promoted"]
    week.classifier = classifiers[0]["classifier_id"]


def tuesday_a_drop(week):
    write_images(week.home / "inbox", 24, "week-first", blur=1.5)
    versions = week.root.tables.versions(["noise_classifiers", "reference_sets"])
    (result,) = week.tick("new_drops")
    assert result.success
    assert len(rows(week, "noise_annotations", ingest_batch="inbox-00000")) == 2 * 24
    # The promoted classifier graded it: nothing was trained, and no other batch was touched.
    assert week.root.tables.versions(list(versions)) == versions
    found = week.root.tables.read("noise_curves", ["classifier_id"])["classifier_id"]
    assert set(found.to_pylist()) == {week.classifier}
    assert week.tick("new_drops") == []
    week.cursors.clear()  # the orchestrator forgot everything
    week.run_keys.clear()
    assert week.tick("new_drops") == []


def wednesday_a_bad_batch(week):
    write_images(week.home / "inbox", 24, "week-bad", contrast=0.02)
    (result,) = week.tick("new_drops")
    assert result.success  # holding back is no failure of the machine
    request = Request.load(week.root)
    assert request.is_held("inbox-00001")
    assert "differs from inbox-00000" in request.verdicts["inbox-00001"].why
    assert len(rows(week, "scores/classical", ingest_batch="inbox-00001")) == 24
    assert rows(week, "noise_annotations", ingest_batch="inbox-00001") == []
    assert [n.kind for n in notices(week.root)] == ["batch_held"]


def thursday_a_new_scorer(week):
    scores = Request.load(week.root).full_recipe.scores
    old = scores.encoder.encoder_version
    before = {name: week.root.tables.version(name) for name in FACTS}

    def another_encoder(request):
        changed = json.loads(json.dumps(request.recipe))
        for part in ("scores", "ood"):
            changed[part]["encoder"]["resolution"] = 40
        return request.model_copy(update={"recipe": changed})

    new = change_request(week.root, another_encoder).full_recipe.scores.encoder.encoder_version
    assert new != old
    result = week.night(datetime(2026, 3, 5, 3, tzinfo=UTC))
    assert result.success
    kept = ("reference", "pool", "inbox-00000")  # not what is held back
    wanted = [r for batch in kept for r in rows(week, "samples", ingest_batch=batch)]
    assert sorted(rows(week, "embeddings", encoder_version=new)) == sorted(wanted)
    assert set(wanted) < set(rows(week, "embeddings", encoder_version=old))
    after = {name: week.root.tables.version(name) for name in FACTS}
    assert {name for name in FACTS if before[name] != after[name]} == {"embeddings", "ood_scores"}
    done = result.output_for_node("rescore_stale")
    measured = [f"scores {batch}" for batch in kept] + [f"distance {b}" for b in kept[1:]]
    assert sorted(line.split(":")[0] for line in done) == sorted(measured)
    again = week.night(datetime(2026, 3, 6, 3, tzinfo=UTC))
    assert again.output_for_node("rescore_stale") == []


def friday_a_killed_training(week):
    killed, vacuumed = [], []
    unpinned = week.root.tables.versions(["samples", "noise_annotations"])

    def kill_once():
        give_up = time.monotonic() + 120
        while time.monotonic() < give_up:
            for file in week.root.runs.glob("*/launch/process.json"):
                if list(file.parents[1].glob("checkpoints/step-*")):
                    # Everything the run reads is written anew and the old files are vacuumed.
                    for table in ("samples", "noise_annotations"):
                        compact(week.root.tables, table, min_files=1)
                        vacuumed.extend(vacuum(week.root.tables, table, retention_hours=0))
                    killed.append(json.loads(file.read_text())["pid"])
                    os.kill(killed[0], signal.SIGKILL)
                    return
            time.sleep(0.02)

    killer = threading.Thread(target=kill_once)
    killer.start()
    config = {"steps": 300, "max_retries": 2}
    result = week.execute("train", {"train_arm": {"config": config}})
    killer.join()
    assert result.success
    (run,) = week.root.tables.read("training_runs").to_pylist()
    assert run["status"] == "finished"
    assert run["num_images_seen"] == 300 * 16
    assert run["ingest_batches"] == ["reference", "pool", "inbox-00000"]
    # Neither the vacuum nor the kill hurt: it went on from its checkpoint at what it had pinned.
    assert len(killed) == 1
    pinned = json.loads(run["table_versions"])
    assert {name: pinned[name] for name in unpinned} == unpinned
    assert week.root.tables.version("samples") > pinned["samples"]
    metrics = week.root.runs / run["run_id"] / "metrics.jsonl"
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] == 300
    # The first try's process was killed, the second one's is another.
    last = json.loads((metrics.parent / "launch" / "process.json").read_text())["pid"]
    assert last != killed[0]
    key = dg.AssetKey("trained_models")
    event = week.instance.get_latest_materialization_event(key)
    assert {"samples", "curve_held_out_total", "audit"} <= set(event.asset_materialization.metadata)
    seen = week.instance.fetch_observations(key, limit=100).records
    assert len(seen) >= 2  # what was evaluated while it trained


def saturday_a_take_down(week):
    sample = week.root.tables.read("samples", ["sample_id", "sample_row"], {"ingest_batch": "pool"})
    gone = sample.slice(3, 1).to_pylist()[0]
    assert "annotated" in exclude(week.root.path, gone["sample_id"], "asked for")
    transform = Request.load(week.root).full_recipe.transform
    result = week.night(datetime(2026, 3, 7, 3, tzinfo=UTC))
    assert result.success
    for table in ("samples", *FACTS):
        assert gone["sample_row"] not in rows(week, table, ingest_batch="pool")
    pack = Pack.open(week.root.packs, transform.transform_id, "pool")
    assert len(pack) == 39
    assert not np.isin(gone["sample_row"], pack.sample_rows)
    # Facts about the others stood, and were not made again.
    done = {line.split(":")[0] for line in result.output_for_node("rescore_stale")}
    assert "pack pool" in done
    assert not {line for line in done if line.startswith(("scores", "pack inbox"))}


def sunday_growth_and_a_failure(week):
    assert week.tick("retrain_when_grown") == []
    assert "annotated images" in week.skipped
    write_images(week.home / "inbox", 70, "week-second", blur=1.5)
    (result,) = week.tick("new_drops")
    assert result.success
    assert len(rows(week, "noise_annotations", ingest_batch="inbox-00002")) == 2 * 70
    assert week.tick("retrain_when_grown") == []
    assert [n.kind for n in notices(week.root)] == ["batch_held", "retrain_proposed"]
    assert week.tick("retrain_when_grown") == []  # once per size
    assert len(notices(week.root)) == 2
    no_source = {"name": "ghost", "source": str(week.home / "nowhere")}
    failed = week.execute("new_batch", {"bring_in_batch": {"config": no_source}})
    assert not failed.success
    assert "ghost" not in {b.name for b in Request.load(week.root).batches}
    tell(week, failed)
    assert notices(week.root)[-1].kind == "run_failed"
    assert "does not exist" in notices(week.root)[-1].text
    shutil.rmtree(week.home / "inbox")
    assert week.tick("new_drops") == []
    assert "is not there" in week.skipped


def tell(week, result):
    sensor = week.definitions.get_repository_def().get_sensor_def("tell_of_failures")
    run = week.instance.get_run_by_id(result.run_id)
    event = next(e for e in result.all_events if e.event_type_value == "PIPELINE_FAILURE")
    context = dg.build_run_status_sensor_context(
        sensor_name="tell_of_failures",
        dagster_instance=week.instance,
        dagster_run=run,
        dagster_event=event,
        resources={"project": week.project},
    ).for_run_failure()
    sensor(context)
