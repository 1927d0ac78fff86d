"""Training as the orchestrator launches it: by torchrun, and several arms from one state."""

import json
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import dagster as dg
import pytest

from tests.data.trainables import fill_trainable
from tests.data.weeks import Orchestrator
from tests.integration.test_ui import children_of

pytestmark = pytest.mark.slow


@pytest.fixture
def orchestrator(root):
    fill_trainable(root)
    return Orchestrator(root)


def test_two_processes_of_torchrun_train_one_run_and_report_as_one(orchestrator):
    launcher = {"kind": "torchrun", "num_processes": 2}
    with ranks_of(orchestrator.root) as ranks:
        result = orchestrator.execute("train", {"train_arm": {"config": {"launcher": launcher}}})
    assert result.success
    assert set(ranks) == {"0", "1"}
    assert len(set(ranks.values())) == 2
    (run,) = orchestrator.root.tables.read("training_runs").to_pylist()
    assert run["status"] == "finished"
    assert run["num_images_seen"] == 96
    folder = orchestrator.root.runs / run["run_id"]
    facts = json.loads((folder / "launch" / "process.json").read_text())
    assert facts["command"][1:3] == ["-m", "torch.distributed.run"]
    said = [  # by one of them alone
        event.user_message
        for event in orchestrator.instance.all_logs(result.run_id)
        if "images: " in event.user_message
    ]
    assert len(said) == len(set(said)) > 0
    key = dg.AssetKey("trained_models")
    event = orchestrator.instance.get_latest_materialization_event(key)
    assert event.asset_materialization.metadata["images_seen"].value == 96


@contextmanager
def ranks_of(root):
    """Watch which processes a launched trainer has: rank to process."""
    found, done = {}, threading.Event()

    def watch():
        while not done.wait(0.1):
            for file in root.runs.glob("*/launch/process.json"):
                for pid in children_of(json.loads(file.read_text())["pid"]):
                    with suppress(OSError):
                        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                        set_ = dict(e.split(b"=", 1) for e in environ if b"=" in e)
                        if b"RANK" in set_:
                            found.setdefault(set_[b"RANK"].decode(), pid)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def test_arms_are_compared_from_the_versions_of_the_moment_they_were_planned(orchestrator):
    root = orchestrator.root
    before = root.tables.versions(["samples", "noise_annotations"])
    result = orchestrator.execute("compare", {"plan_comparison": {"config": {"steps": 4}}})
    assert result.success
    rows = result.output_for_node("compare_trained")["rows"]
    assert {row["arm"] for row in rows} == {"everything", "only_reference"}
    runs = root.tables.read("training_runs").to_pylist()
    assert {run["num_images_seen"] for run in runs} == {32}
    for run in runs:
        versions = json.loads(run["table_versions"])
        assert {name: versions[name] for name in before} == before


def test_a_version_that_is_gone_is_refused_in_one_line(orchestrator):
    config = {"table_versions": {"samples": 99}}
    result = orchestrator.execute("train", {"train_arm": {"config": config}})
    assert not result.success
    (failure,) = [e for e in result.all_events if e.event_type_value == "STEP_FAILURE"]
    said = failure.step_failure_data
    text = said.user_failure_data.description if said.user_failure_data else said.error.message
    assert "99" in text
    assert orchestrator.root.tables.read("training_runs").num_rows == 0
