import os
import signal

import dagster as dg
import pytest

from dagster_project.recipe import load_recipe
from dagster_project.request import Request
from dagster_project.runner import Runner
from dagster_project.steps import steps_until


def test_ctrl_c_while_dagster_itself_is_at_work_is_ctrl_c_and_no_traceback(root, monkeypatch):
    request = Request(recipe=load_recipe("default").model_dump(mode="json"))
    request.save(root)
    runner = Runner(root, request)
    handle = dg.DagsterInstance.handle_new_event

    def stopped(instance, entry, **more):
        if entry.dagster_event and entry.dagster_event.is_step_start:
            os.kill(os.getpid(), signal.SIGINT)
        return handle(instance, entry, **more)

    monkeypatch.setattr(dg.DagsterInstance, "handle_new_event", stopped)
    step = steps_until("references")[-1]
    with pytest.raises(KeyboardInterrupt):
        runner.materialize(step, None)
