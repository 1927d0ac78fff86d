"""Under a live page and daemon: killed runs, a killed daemon, a batch twice, a person who cancels.

Also what is materialized by itself, since a daemon is at hand.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from dagster_project import cli
from dagster_project.recipe import parse_recipe
from schemas.root import Root
from tests.data.trainables import RECIPE, make_trainable
from tests.data.weeks import write_images
from tests.integration.test_ui import LAUNCH, LOCATION, Page, alive, children_of, free_port

pytestmark = pytest.mark.slow

NUM_IMAGES = 1000
RUNS = """query($job: String!) { runsOrError(filter: {pipelineName: $job}) { ... on Runs {
  results { runId status tags { key value } } } } }"""
EVENTS = """query($id: ID!) { logsForRun(runId: $id) { ... on EventConnection { events {
  __typename ... on EngineEvent { metadataEntries { label ... on TextMetadataEntry { text }
  ... on IntMetadataEntry { intValue } } } } } } }"""
TERMINATE = """mutation($id: String!) { terminateRun(runId: $id) { __typename
  ... on TerminateRunFailure { message } } }"""
TURN_ON = """mutation($s: SensorSelector!) { startSensor(sensorSelector: $s) { __typename } }"""
TICKS = """query($s: SensorSelector!) { sensorOrError(sensorSelector: $s) { ... on Sensor {
  sensorState { ticks { status } } } } }"""


class Served:
    """`ambient-omni ui` of one root, which can be killed and started again."""

    def __init__(self, root):
        self.root = root
        self.start()

    def start(self):
        port = free_port()
        command = [sys.executable, "-m", "dagster_project.cli", "ui", "--root", str(self.root)]
        self.process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.PIPE)
        self.page = Page(f"http://127.0.0.1:{port}")
        try:
            self.page.wait(self.process)
        except BaseException:
            self.kill()  # nobody else knows of it yet
            raise

    def kill(self):
        """As a power cut would: everything at once, nobody is asked."""
        for pid in [self.process.pid, *children_of(self.process.pid)]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def bring_in(self, name, source, until="ingest"):
        config = {"name": name, "source": str(source), "until": until}
        return self.launch("new_batch", {"bring_in_batch": {"config": config}})

    def launch(self, job, ops):
        params = {
            "mode": "default",
            "selector": {
                "repositoryLocationName": LOCATION,
                "repositoryName": "__repository__",
                "pipelineName": job,
            },
            "runConfigData": {"ops": ops},
            "executionMetadata": {"tags": []},
        }
        answer = self.page.ask(LAUNCH, p=params)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return answer["run"]["runId"]

    def runs(self, job="new_batch"):
        """Return the runs of a job, newest first."""
        return self.page.ask(RUNS, job=job)["runsOrError"]["results"]

    def wait_for(self, condition, seconds=240):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.3)
        raise TimeoutError(str(self.runs()))

    def worker_of(self, run_id):
        """Return the process of a run once it works, from what it reported."""

        def pid():
            for event in self.page.ask(EVENTS, id=run_id)["logsForRun"]["events"]:
                for entry in event.get("metadataEntries", ()):
                    value = entry.get("text") or entry.get("intValue")
                    if entry["label"] == "pid" and str(value).isdigit():
                        return int(value)
            return None

        return self.wait_for(pid)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    home = tmp_path_factory.mktemp("faults")
    write_images(home / "reference", 60, "faults-reference")
    write_images(home / "pool", 4, "faults-pool")
    write_images(home / "many", NUM_IMAGES, "faults-many")
    (home / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    sources = ["--source", str(home / "pool"), "--reference", str(home / "reference")]
    run = ["run", "--root", str(home / "root"), "--recipe", str(home / "recipe.yaml"), *sources]
    assert cli.main([*run, "--until", "references"]) == 0
    make_trainable(Root.open(home / "root"), parse_recipe(RECIPE, "faults").transform)
    page = Served(home / "root")
    page.many, page.home = home / "many", home
    yield page
    page.process.send_signal(signal.SIGTERM)
    page.process.wait(60)


def test_a_run_that_a_person_cancels_stops_its_trainer_which_saves_first(served):
    config = {"arm": "everything", "steps": 100_000}
    run = served.launch("train", {"train_arm": {"config": config}})
    runs = served.root / "runs"
    metrics = served.wait_for(lambda: next(runs.glob("*/metrics.jsonl"), None))
    pid = json.loads((metrics.parent / "launch" / "process.json").read_text())["pid"]
    served.wait_for(lambda: list(metrics.parent.glob("checkpoints/step-*")))
    assert alive(pid)
    answer = served.page.ask(TERMINATE, id=run)["terminateRun"]
    assert answer["__typename"] == "TerminateRunSuccess", answer
    served.wait_for(lambda: served.runs("train")[0]["status"] == "CANCELED")
    served.wait_for(lambda: not alive(pid), 90)
    (row,) = Root.open(served.root).tables.read("training_runs").to_pylist()
    assert row["status"] == "interrupted"  # it was asked, and said how far it came
    assert 0 < row["num_images_seen"] < 8 * 100_000
    newest = max(int(p.name[5:]) for p in metrics.parent.glob("checkpoints/step-*"))
    assert newest * 8 == row["num_images_seen"]


def test_no_run_is_lost_and_one_of_two_wins(served):
    # A run's process is killed: the daemon starts the run again, and every image is there once.
    first = served.bring_in("many", served.many)
    os.kill(served.worker_of(first), signal.SIGKILL)
    served.wait_for(lambda: [r for r in served.runs() if r["status"] == "SUCCESS"])
    assert num_images(served, "many") == NUM_IMAGES

    # Page and daemon are killed in the middle of a run: it is known as lost, and started again.
    done = {run["runId"] for run in served.runs()}
    second = served.bring_in("again", served.many)
    served.worker_of(second)
    served.kill()
    served.start()
    served.wait_for(
        lambda: [r for r in served.runs() if r["status"] == "SUCCESS" and r["runId"] not in done]
    )
    states = {run["runId"]: run["status"] for run in served.runs()}
    assert states[second] in ("FAILURE", "SUCCESS")
    assert num_images(served, "again") == NUM_IMAGES

    # The same batch twice at once: one does it, the other does nothing or is refused.
    twins = [served.bring_in("twice", served.many) for _ in range(2)]

    def both_ended():
        states = {run["runId"]: run["status"] for run in served.runs()}
        ended = [states[run] for run in twins]
        return ended if set(ended) <= {"SUCCESS", "FAILURE"} else None

    assert "SUCCESS" in served.wait_for(both_ended)
    assert num_images(served, "twice") == NUM_IMAGES
    attempts = Root.open(served.root).tables.read("ingest_attempts", ["attempt_key"],
                                                  {"ingest_batch": "twice"})  # fmt: skip
    assert attempts.num_rows == NUM_IMAGES


def test_a_new_batch_is_materialized_by_the_condition_of_its_assets(served):
    where = {
        "repositoryLocationName": LOCATION,
        "repositoryName": "__repository__",
        "sensorName": "new_or_stale",
    }
    assert served.page.ask(TURN_ON, s=where)["startSensor"]["__typename"] == "Sensor"
    # Its first look only learns what is there; batches that come later are new.
    served.wait_for(lambda: "SKIPPED" in ticks_of(served, where))
    write_images(served.home / "new", 3, "faults-new")
    # Only asked for: nobody starts its steps but the sensor.
    served.bring_in("new", served.home / "new", until="nothing")
    served.wait_for(lambda: num_images(served, "new") == 3)
    wanted = [
        {"key": "dagster/partition", "value": "new"},
        {"key": "dagster/from_automation_condition", "value": "true"},
    ]
    made = [r for r in served.runs("__ASSET_JOB") if all(tag in r["tags"] for tag in wanted)]
    assert made
    assert not [run for run in made if run["status"] == "FAILURE"]


def ticks_of(served, sensor):
    state = served.page.ask(TICKS, s=sensor)["sensorOrError"]["sensorState"]
    return [tick["status"] for tick in state["ticks"]]


def num_images(served, batch):
    found = Root.open(served.root).tables.read("samples", ["sample_id"], {"ingest_batch": batch})
    assert len(set(found["sample_id"].to_pylist())) == found.num_rows
    return found.num_rows
