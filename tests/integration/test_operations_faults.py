"""A run's process is killed, the page and its daemon are killed, a batch is launched twice."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dagster_project import cli
from schemas.root import Root
from tests.data.weeks import write_images
from tests.integration.test_ui import LAUNCH, LOCATION, Page, alive, children_of, free_port

pytestmark = pytest.mark.slow

NUM_IMAGES = 1500
RUNS = """query($job: String!) { runsOrError(filter: {pipelineName: $job}) { ... on Runs {
  results { runId status tags { key value } } } } }"""
EVENTS = """query($id: ID!) { logsForRun(runId: $id) { ... on EventConnection { events {
  __typename ... on EngineEvent { metadataEntries { label ... on TextMetadataEntry { text }
  ... on IntMetadataEntry { intValue } } } } } } }"""


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
        self.page.wait(self.process)

    def kill(self):
        """As a power cut would: everything at once, nobody is asked."""
        for pid in [self.process.pid, *children_of(self.process.pid)]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def launch(self, name, source):
        config = {"ops": {"bring_in_batch": {"config": {
            "name": name, "source": str(source), "until": "ingest"}}}}  # fmt: skip
        params = {
            "mode": "default",
            "selector": {
                "repositoryLocationName": LOCATION,
                "repositoryName": "__repository__",
                "pipelineName": "new_batch",
            },
            "runConfigData": config,
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


@pytest.fixture
def served(tmp_path):
    write_images(tmp_path / "reference", 60, "faults-reference")
    write_images(tmp_path / "pool", 4, "faults-pool")
    write_images(tmp_path / "many", NUM_IMAGES, "faults-many")
    sources = ["--source", str(tmp_path / "pool"), "--reference", str(tmp_path / "reference")]
    run = ["run", "--root", str(tmp_path / "root"), *sources, "--until", "references"]
    assert cli.main(run) == 0
    page = Served(tmp_path / "root")
    page.many = tmp_path / "many"
    yield page
    page.process.send_signal(signal.SIGTERM)
    page.process.wait(60)


def test_no_run_is_lost_and_one_of_two_wins(served):
    # A run's process is killed: the daemon starts the run again, and every image is there once.
    first = served.launch("many", served.many)
    os.kill(served.worker_of(first), signal.SIGKILL)
    served.wait_for(lambda: [r for r in served.runs() if r["status"] == "SUCCESS"])
    assert num_images(served, "many") == NUM_IMAGES

    # Page and daemon are killed in the middle of a run: it is known as lost, and started again.
    done = {run["runId"] for run in served.runs()}
    second = served.launch("again", served.many)
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
    twins = [served.launch("twice", served.many) for _ in range(2)]

    def both_ended():
        states = {run["runId"]: run["status"] for run in served.runs()}
        ended = [states[run] for run in twins]
        return ended if set(ended) <= {"SUCCESS", "FAILURE"} else None

    assert "SUCCESS" in served.wait_for(both_ended)
    assert num_images(served, "twice") == NUM_IMAGES
    attempts = Root.open(served.root).tables.read("ingest_attempts", ["attempt_key"],
                                                  {"ingest_batch": "twice"})  # fmt: skip
    assert attempts.num_rows == NUM_IMAGES


def num_images(served, batch):
    found = Root.open(served.root).tables.read("samples", ["sample_id"], {"ingest_batch": batch})
    assert len(set(found["sample_id"].to_pylist())) == found.num_rows
    return found.num_rows
