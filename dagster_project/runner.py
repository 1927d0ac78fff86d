"""Walks the steps in this process and says one line about each."""

import sys
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import dagster as dg
from dagster._core.errors import DagsterAssetCheckFailedError, DagsterExecutionInterruptedError

from dagster_project.definitions import build_definitions
from dagster_project.defs.project import Project
from dagster_project.instance import open_instance
from dagster_project.operations.stale import LAST_STEP, stale_work
from dagster_project.request import Request
from dagster_project.steps import ARM, INGEST_BATCH, Step, steps_until
from schemas.errors import ContractViolation
from schemas.root import Root

LOG = "run.log"
LINE = "line"
PARENT_TAG = "ambient-omni/started-by"


class Out(Protocol):
    """Where lines go: a terminal, or the log of a run."""

    def write(self, text: str, /) -> object:
        """Take some text."""
        ...

    def flush(self) -> None:
        """Show it now."""
        ...

    def isatty(self) -> bool:
        """Say whether a line can be drawn over."""
        ...


class Runner:
    """Materializes a root's graph, one partition of one step after the other.

    Every job behind a step skips what is current, so a run that was stopped goes on where it was
    when it is started again.
    """

    def __init__(
        self,
        root: Root,
        request: Request,
        *,
        out: Out | None = None,
        instance: dg.DagsterInstance | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self._root = root
        self._request = request
        self._out: Out = out or sys.stdout
        self._tags = dict(tags or {})
        self._instance = instance or open_instance(root)
        definitions = build_definitions(Project(root_path=str(root.path)))
        self._job = definitions.resolve_implicit_global_asset_job_def()

    def run(self, until: str | None = None) -> dict[str, Any]:
        """Walk the steps up to and with `until`; return the last step's metadata.

        Raises:
            AmbientOmniError: a job refused; what was finished before it stays.
            KeyboardInterrupt: ctrl-C.
        """
        return self.walk(plan(self._request, until))

    def walk(self, work: list[tuple[Step, str | None]]) -> dict[str, Any]:
        """Materialize some partitions of some steps, in order; return the last one's metadata.

        A batch that a check holds back on the way is left out of what follows.

        Raises:
            AmbientOmniError, KeyboardInterrupt: as `run`.
        """
        self.register_partitions()
        found: dict[str, Any] = {}
        began = time.monotonic()
        for number, (step, partition) in enumerate(work, 1):
            if step.roles and self._is_held(partition):
                continue
            done = self._materialize_unless_held(
                step, partition, f"[{number:>{len(str(len(work)))}}"
            )
            if done is not None:
                found = done
                self._say(_finished(step, partition, found, number, len(work)))
        self._say(f"{len(work)} steps in {_duration(time.monotonic() - began)}")
        return found

    def refresh(self, until: str = LAST_STEP) -> list[tuple[Step, str | None, str]]:
        """Materialize what is new or stale, and nothing else; return what that was.

        Raises:
            AmbientOmniError, KeyboardInterrupt: as `run`.
        """
        self.register_partitions()
        done = []
        for stale in stale_work(self._root, self._request, until):
            if stale.step.roles and self._is_held(stale.partition):
                continue
            found = self._materialize_unless_held(stale.step, stale.partition, "[ ")
            if found is not None:
                done.append((stale.step, stale.partition, stale.why))
                self._say(_line(stale.step, stale.partition, found))
        return done

    def _materialize_unless_held(
        self, step: Step, partition: str | None, head: str
    ) -> dict[str, Any] | None:
        """Return the metadata; None if a check held the batch back, which others do not suffer."""
        try:
            return self.materialize(step, partition, head)
        except ContractViolation as error:
            if not (step.roles and self._is_held(partition)):
                raise
            self._say(f"{partition} is held back: {error}")
            return None

    def materialize(self, step: Step, partition: str | None, head: str = "[ ") -> dict[str, Any]:
        """Materialize one partition of one step; return its metadata.

        Raises:
            AmbientOmniError: the job refused, or a blocking check failed.
            KeyboardInterrupt: ctrl-C.
        """
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
                tags=self._tags,
                run_config={
                    "loggers": {"file": {"config": {"path": str(self._root.dagster / LOG)}}}
                },
            )
        except DagsterAssetCheckFailedError as error:
            raise ContractViolation(_why_refused(self._instance, run_id)) from error
        except DagsterExecutionInterruptedError:  # between jobs, ctrl-C is Dagster's to tell
            raise KeyboardInterrupt from None
        event = result.get_asset_materialization_events()[0]
        metadata = event.materialization.metadata
        found = {name: getattr(value, "value", value) for name, value in metadata.items()}
        return found | {"wall_seconds": time.monotonic() - began}

    def register_partitions(self) -> None:
        """Make batches and arms known to the run history."""
        add_partitions(self._instance, INGEST_BATCH, (b.name for b in self._request.batches))
        add_partitions(self._instance, ARM, self._request.full_recipe.arms)

    def _is_held(self, batch: str | None) -> bool:
        # A check may have held it since this run began.
        now = Request.load(self._root)
        return now is not None and batch is not None and now.is_held(batch)

    def _say(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()


def add_partitions(instance: dg.DagsterInstance, definition: str, names: Iterable[str]) -> None:
    """Make partition keys known that are not yet."""
    known = set(instance.get_dynamic_partitions(definition))
    instance.add_dynamic_partitions(definition, [name for name in names if name not in known])


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
    return f"[{number:>{len(str(total))}}/{total}] {_line(step, partition, found)}"


def _line(step: Step, partition: str | None, found: Mapping[str, Any]) -> str:
    what = f"{step.title} {partition or ''}".rstrip()
    return f"{what:<28} {found.get(LINE, ''):<44} {_duration(found['wall_seconds']):>8}"


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
        if not found.passed and found.severity == dg.AssetCheckSeverity.ERROR:
            said.append(f"check {found.check_name} of {found.asset_key.to_user_string()} failed: ")
            said.append(found.description or "see the web page")
    return "".join(said)
