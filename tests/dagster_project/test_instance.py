import os

import dagster as dg
import yaml
from dagster._core.events import EngineEventData

from dagster_project.definitions import defs
from dagster_project.instance import (
    CLI_CONFIG,
    SERVED_CONFIG,
    end_lost_runs,
    home_of,
    open_instance,
)


def coordinator(root, file):
    settings = yaml.safe_load((root.dagster / file).read_text())
    return settings["run_coordinator"]["class"]


def started(instance, pid):
    """A run that says it works in a process."""
    job = defs.resolve_job_def("rescore")
    run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    instance.report_engine_event("Executing", run, EngineEventData.in_process(pid))
    return run.run_id


def test_a_page_with_a_daemon_queues_its_runs_and_the_command_line_does_not(root):
    home_of(root, max_concurrent_runs=3)
    assert coordinator(root, SERVED_CONFIG) == "QueuedRunCoordinator"
    assert coordinator(root, CLI_CONFIG) == "DefaultRunCoordinator"
    open_instance(root)  # a command beside the page leaves the page's settings alone
    assert coordinator(root, SERVED_CONFIG) == "QueuedRunCoordinator"
    home_of(root)
    assert coordinator(root, SERVED_CONFIG) == "DefaultRunCoordinator"


def test_no_settings_send_anything_anywhere(root):
    home_of(root, max_concurrent_runs=1)
    settings = yaml.safe_load((root.dagster / SERVED_CONFIG).read_text())
    assert settings["telemetry"] == {"enabled": False}
    assert settings["nux"] == {"enabled": False}


def test_a_run_whose_process_is_gone_is_marked_as_failed_and_one_that_works_is_not(
    root, monkeypatch
):
    instance = open_instance(root)
    monkeypatch.setattr("dagster_project.instance._is_orchestrator", lambda pid: pid == os.getpid())
    lost, working = started(instance, 4_000_000), started(instance, os.getpid())
    silent = instance.create_run_for_job(
        defs.resolve_job_def("rescore"), status=dg.DagsterRunStatus.STARTING
    ).run_id
    waiting = instance.create_run_for_job(
        defs.resolve_job_def("rescore"), status=dg.DagsterRunStatus.NOT_STARTED
    ).run_id
    found = end_lost_runs(instance)
    states = {run.run_id: run.status for run in instance.get_runs()}
    assert states[waiting] == dg.DagsterRunStatus.NOT_STARTED
    assert set(found) == {lost, silent}
    assert states[lost] == states[silent] == dg.DagsterRunStatus.FAILURE
    assert states[working] == dg.DagsterRunStatus.STARTED
