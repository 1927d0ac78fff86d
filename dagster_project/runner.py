"""Walks the steps in this process and says one line about each."""

import sys
import time
import uuid
from collections.abc import Mapping
from typing import Any, TextIO

import dagster as dg
from dagster._core.errors import DagsterAssetCheckFailedError

from dagster_project.definitions import build_definitions
from dagster_project.defs.project import Project
from dagster_project.instance import open_instance
from dagster_project.request import Request
from dagster_project.steps import ARM, INGEST_BATCH, Step, steps_until
from schemas.errors import ContractViolation
from schemas.root import Root

LOG = "run.log"
LINE = "line"


class Runner:
    """Materializes a root's graph, one partition of one step after the other.

    Every job behind a step skips what is current, so a run that was stopped goes on where it was
    when it is started again.
    """

    def __init__(self, root: Root, request: Request, *, out: TextIO | None = None) -> None:
        self._root = root
        self._request = request
        self._out = out or sys.stdout
        self._instance = open_instance(root)
        definitions = build_definitions(Project(root_path=str(root.path)))
        self._job = definitions.resolve_implicit_global_asset_job_def()

    def run(self, until: str | None = None) -> dict[str, Any]:
        """Walk the steps up to and with `until`; return the last step's metadata.

        Raises:
            AmbientOmniError: a job refused; what was finished before it stays.
            KeyboardInterrupt: ctrl-C.
        """
        work = plan(self._request, until)
        self._register_partitions()
        found: dict[str, Any] = {}
        began = time.monotonic()
        for number, (step, partition) in enumerate(work, 1):
            found = self._materialize(step, partition, f"[{number:>{len(str(len(work)))}}")
            self._say(_finished(step, partition, found, number, len(work)))
        self._say(f"{len(work)} steps in {_duration(time.monotonic() - began)}")
        return found

    def _materialize(self, step: Step, partition: str | None, head: str) -> dict[str, Any]:
        if self._out.isatty():
            self._out.write(f"\r{head}] {step.title} {partition or ''} ...\r")
            self._out.flush()
        began, run_id = time.monotonic(), str(uuid.uuid4())
        try:
            result = self._job.execute_in_process(
                instance=self._instance,
                asset_selection=[dg.AssetKey(name) for name in step.assets],
                partition_key=partition,
                run_id=run_id,
                run_config={
                    "loggers": {"file": {"config": {"path": str(self._root.dagster / LOG)}}}
                },
            )
        except DagsterAssetCheckFailedError as error:
            raise ContractViolation(_why_refused(self._instance, run_id)) from error
        event = result.get_asset_materialization_events()[0]
        metadata = event.materialization.metadata
        found = {name: getattr(value, "value", value) for name, value in metadata.items()}
        return found | {"wall_seconds": time.monotonic() - began}

    def _register_partitions(self) -> None:
        names = {
            INGEST_BATCH: [batch.name for batch in self._request.batches],
            ARM: list(self._request.full_recipe.arms),
        }
        for definition, wanted in names.items():
            known = set(self._instance.get_dynamic_partitions(definition))
            self._instance.add_dynamic_partitions(
                definition, [name for name in wanted if name not in known]
            )

    def _say(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()


def plan(request: Request, until: str | None = None) -> list[tuple[Step, str | None]]:
    """Return every (step, partition) of a run, in order."""
    arms = list(request.full_recipe.arms)
    return [
        (step, partition)
        for step in steps_until(until)
        for partition in step.partitions(request, arms)
    ]


def _finished(
    step: Step, partition: str | None, found: Mapping[str, Any], number: int, total: int
) -> str:
    what = f"{step.title} {partition or ''}".rstrip()
    count = f"[{number:>{len(str(total))}}/{total}]"
    return f"{count} {what:<28} {found.get(LINE, ''):<44} {_duration(found['wall_seconds']):>8}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def _why_refused(instance: dg.DagsterInstance, run_id: str) -> str:
    """Return what the blocking checks of a run said."""
    said = []
    for event in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION):
        assert event.dagster_event is not None
        found = event.dagster_event.asset_check_evaluation_data
        if not found.passed:
            said.append(f"check {found.check_name} of {found.asset_key.to_user_string()} failed: ")
            said.append(found.description or "see the web page")
    return "".join(said)
