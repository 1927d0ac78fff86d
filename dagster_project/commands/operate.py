"""`ambient-omni rescore`, `train`, `compare`, `candidate`, `promote`, `accept`: jobs of the graph.

They run in this process, with the history that the web page shows.
"""

import sys
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from dagster_project.commands.lookup import text_table
from dagster_project.request import Verdict, judge
from schemas.errors import AmbientOmniError, BadInput
from schemas.root import Root


class JobFailed(AmbientOmniError):
    """A job of the graph failed; the message says why."""


def rescore(root_path: Path, *, dry_run: bool) -> int:
    """Compute what is new or stale, or only say what that is."""
    from dagster_project.defs.project import Project

    root = Root.open(root_path)
    request = Project(root_path=str(root.path)).request
    if dry_run:
        from dagster_project.operations.stale import stale_work

        rows = [(s.step.title, s.partition or "-", s.why) for s in stale_work(root, request)]
        said = text_table(("step", "batch", "why"), rows) if rows else "nothing is stale"
        sys.stdout.write(said + "\n")
        return 0
    from dagster_project.runner import Runner

    done = Runner(root, request).refresh()
    sys.stdout.write(f"{len(done)} steps were new or stale\n")
    return 0


def train(root_path: Path, wanted: dict[str, Any]) -> int:
    """Train one arm in a process of its own."""
    run_id = _execute(root_path, "train", {"train_arm": {"config": wanted}}, "train_arm")
    sys.stdout.write(f"run {run_id}\n")
    return 0


def compare(root_path: Path, wanted: dict[str, Any]) -> int:
    """Train arms from one state of the tables and print how they do on images nobody trained on."""
    config = {"plan_comparison": {"config": wanted}}
    found = _execute(root_path, "compare", config, "compare_trained")
    rows = [(r["arm"], r["held_out_loss"], r["standard_error"], r["run_id"]) for r in found["rows"]]
    header = ("arm", "held-out loss", "standard error", "run_id")
    sys.stdout.write(text_table(header, rows) + "\n")
    return 0


def candidate(root_path: Path) -> int:
    """Train a candidate for the noise classifier."""
    found = _execute(root_path, "candidate", {}, "train_candidate_classifier")
    sys.stdout.write("\n".join(f"{name}: {value}" for name, value in found.items()) + "\n")
    return 0


def promote(root_path: Path, classifier_id: str, *, force: bool) -> int:
    """Promote a noise classifier and refresh curves and levels."""
    config = {"classifier_id": classifier_id, "force": force}
    found = _execute(
        root_path, "promote", {"promote_classifier": {"config": config}}, "promote_classifier"
    )
    sys.stdout.write("\n".join(f"{name}: {value}" for name, value in found.items()) + "\n")
    return 0


def accept(root_path: Path, batch: str, why: str, *, hold: bool) -> str:
    """Let a batch in, or hold it back; return what follows of it."""
    root = Root.open(root_path)
    judge(root, batch, Verdict(status="held" if hold else "accepted", why=why, by="person"))
    then = "run `ambient-omni rescore` to bring it to levels"
    return f"batch {batch} is {'held back from all that follows' if hold else f'let in; {then}'}"


def _execute(root_path: Path, job: str, ops: dict[str, Any], op: str) -> Any:
    """Execute a job in this process; return what its last op returned.

    Raises:
        JobFailed: it failed for a reason that a person can mend.
        KeyboardInterrupt: ctrl-C; what was begun was stopped with it.
    """
    from dagster_project.definitions import build_definitions
    from dagster_project.defs.project import Project
    from dagster_project.defs.training_jobs import STOP_TAG
    from dagster_project.instance import open_instance
    from dagster_project.runner import LOG

    root = Root.open(root_path)
    project = Project(root_path=str(root.path))
    if not project.recipe_values:
        raise BadInput(f"{root_path} was asked for nothing yet; begin with `ambient-omni run`")
    loggers = {"file": {"config": {"path": str(root.dagster / LOG)}}, "terminal": {}}
    try:
        result = (
            build_definitions(project)
            .resolve_job_def(job)
            .execute_in_process(
                instance=open_instance(root),
                run_config={"ops": ops, "loggers": loggers},
                tags={STOP_TAG: "true"},
            )
        )
    except dg.Failure as error:
        raise JobFailed(str(error.description)) from error
    except DagsterExecutionInterruptedError:
        raise KeyboardInterrupt from None
    return result.output_for_node(op)
