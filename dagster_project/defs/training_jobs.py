"""Jobs that train in a process of their own: one arm, or several side by side.

An arm's run belongs to `trained_models`: what happens while it trains shows there as observations,
and its end as a materialization.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError
from pydantic import Field

from dagster_project.defs.jobs import RESTARTED, refusals
from dagster_project.defs.project import Project
from dagster_project.operations.config import LaunchConfig
from dagster_project.steps import ARM
from schemas.errors import AmbientOmniError, BadInput

ASSET = dg.AssetKey("trained_models")
RUN_TAG = "ambient-omni/training-run"
STOP_TAG = "ambient-omni/stop-with-me"


class Launcher(dg.Config):
    """How the trainer is started; what is left out is the recipe's `operations.launch`."""

    kind: str = Field(default="", description="process, torchrun or template")
    num_processes: int | None = Field(default=None, ge=1, description="devices, for torchrun")
    template: list[str] = Field(
        default=[], description="words of a cluster's command; {command} stands for ours"
    )


class TrainArm(dg.Config):
    """One training run."""

    arm: str = Field(default="", description="an arm of the recipe; empty: its main arm")
    policy_id: str = Field(
        default="", description="another policy than the arm's; it must have levels for all batches"
    )
    recipe: str = Field(default="", description="bundled recipe or YAML file; empty: the root's")
    table_versions: dict[str, Any] = Field(
        default={},
        description="train on samples, reference_sets or noise_annotations as they were at a "
        "version: a number, or latest; what is left out is at its latest",
    )
    steps: int | None = Field(default=None, ge=1, description="budget; empty: the recipe's")
    max_retries: int | None = Field(default=None, ge=0, description="empty: the recipe's")
    launcher: Launcher = Launcher()


class CompareArms(dg.Config):
    """Several arms from the same tables with the same budget."""

    arms: list[str] = Field(default=[], description="arms of the recipe; empty: all")
    recipe: str = Field(default="", description="bundled recipe or YAML file; empty: the root's")
    table_versions: dict[str, Any] = Field(default={}, description="as for one arm")
    steps: int | None = Field(default=None, ge=1, description="budget of each arm")
    max_retries: int | None = Field(default=None, ge=0, description="empty: the recipe's")
    launcher: Launcher = Launcher()


@dg.op(description="Trains one arm in a process of its own and follows it.")
def train_arm(context: dg.OpExecutionContext, config: TrainArm, project: Project) -> str:
    """Start or find the trainer's process, follow it to its end, return the run's id."""
    return _train(context, project, config.model_dump())


@dg.op(
    out=dg.DynamicOut(dict[str, Any]),
    description="Says which runs will be compared, all from one state of the tables.",
)
def plan_comparison(
    context: dg.OpExecutionContext, config: CompareArms, project: Project
) -> Iterator[dg.DynamicOutput[dict[str, Any]]]:
    """Name each arm's run before the first is trained: equal budget, equal data."""
    common = config.model_dump(exclude={"arms"})
    with refusals():
        arms = config.arms or list(project.with_recipe(config.recipe).request.full_recipe.arms)
        # From here on it does not matter what is committed while the first arms train.
        common["table_versions"] = _present_versions(project, config.table_versions)
    planned = []
    for arm in arms:  # all are named, or refused, before the first is trained
        wanted = common | {"arm": arm, "policy_id": ""}
        with refusals():
            planned.append(wanted | {"run_id": _trainer(project, wanted)[0]})
    for wanted in planned:
        context.log.info(f"{wanted['arm']}: run {wanted['run_id']}")
        yield dg.DynamicOutput(wanted, mapping_key=_safe(wanted["arm"]))


@dg.op(description="Trains one arm of a comparison.")
def train_planned(
    context: dg.OpExecutionContext, project: Project, planned: dict[str, Any]
) -> dict[str, str]:
    """Train an arm, unless the data changed since the comparison was planned."""
    wanted = {name: value for name, value in planned.items() if name != "run_id"}
    with refusals():
        found = _trainer(project, wanted)[0]
    if found != planned["run_id"]:
        raise dg.Failure(
            f"the data changed while arms were trained: {planned['arm']} would be run {found}, "
            f"not {planned['run_id']}; start the comparison again",
            allow_retries=False,
        )
    run_id = _train(context, project, wanted)
    return {"arm": planned["arm"], "run_id": run_id, "recipe": planned["recipe"]}


@dg.op(description="Measures all arms on images that nobody trained on.")
def compare_trained(
    context: dg.OpExecutionContext, project: Project, trained: list[dict[str, str]]
) -> dict[str, Any]:
    """Return, per arm, the held-out loss with its standard error, best first."""
    from dagster_project.arms import evaluate_once, judging_set
    from dagster_project.describe import plain_table

    request = project.with_recipe(trained[0]["recipe"]).request
    images = request.full_recipe.training.held_out.max_images
    rows = []
    for one in trained:
        loss = evaluate_once(project.root, one["run_id"], judging_set(request), images)
        rows.append(
            {
                "arm": one["arm"],
                "held_out_loss": loss.total,
                "standard_error": loss.total_standard_error,
                "run_id": one["run_id"],
            }
        )
    rows.sort(key=lambda row: float(str(row["held_out_loss"])))
    table = dg.MetadataValue.md(plain_table(rows))
    context.add_output_metadata({"comparison": table, "reference_set": judging_set(request)})
    for row in rows:
        context.log.info(f"{row['arm']}: held-out loss {row['held_out_loss']:.4f}")
    return {"rows": rows}


@dg.job(
    description="Train one arm in a process of its own; it goes on from its checkpoint.",
    tags=RESTARTED,
)
def train() -> None:
    """One op."""
    train_arm()


@dg.job(
    description="Train several arms from one state of the tables and compare them.", tags=RESTARTED
)
def compare() -> None:
    """Plan, train each, compare."""
    compare_trained(plan_comparison().map(train_planned).collect())


def launch_config(project: Project, launcher: Mapping[str, Any]) -> LaunchConfig:
    """Return how to start the trainer: the recipe's way with what the run config changes.

    Raises:
        BadInput: the parts do not fit each other.
    """
    given = {name: value for name, value in launcher.items() if value}
    try:
        return LaunchConfig.model_validate(project.operations.launch.model_dump() | given)
    except ValueError as error:
        raise BadInput(f"launcher: {str(error).splitlines()[-2].strip()}") from error


def _present_versions(project: Project, wanted: Mapping[str, Any]) -> dict[str, int]:
    """Return the versions that all arms of a comparison are trained on."""
    from ambient_omni.data.training_data import READ_TABLES
    from dagster_project.operations.launch import pinned_versions

    root = project.root
    return root.tables.versions(READ_TABLES) | pinned_versions(root, wanted)


def _trainer(project: Project, wanted: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the run's id and its process, not started."""
    from ambient_omni.training.run_record import RunRecord
    from dagster_project.arms import config_of
    from dagster_project.operations.launch import TrainerProcess, pinned_versions

    project = project.with_recipe(wanted["recipe"])
    root, request = project.root, project.request
    recipe = request.full_recipe
    arm = wanted["arm"] or recipe.main_arm
    if arm not in recipe.arms:
        raise BadInput(f"there is no arm {arm!r}; the recipe has {', '.join(recipe.arms)}")
    if wanted["policy_id"]:
        config = recipe.training.of_arm(
            arm, wanted["policy_id"], request.of_role("reference", "pool"), recipe.transform
        )
    else:
        config = config_of(root, request, recipe, arm)
    changes: dict[str, Any] = {"table_versions": pinned_versions(root, wanted["table_versions"])}
    if wanted["steps"]:
        changes["num_images"] = wanted["steps"] * config.batch_size
    config = config.model_copy(update=changes)
    run = RunRecord.of(root, config)
    launch = launch_config(project, wanted["launcher"])
    values = config.model_dump(mode="json")
    return run.run_id, TrainerProcess(root, run.folder, arm, values, launch)


def _train(context: dg.OpExecutionContext, project: Project, wanted: Mapping[str, Any]) -> str:
    from dagster._core.pipes.utils import PipesEnvContextInjector, PipesFileMessageReader

    from dagster_project.operations.launch import REFUSED, TrainerFailed

    with refusals():
        run_id, trainer = _trainer(project, wanted)
    context.instance.add_run_tags(context.run_id, {RUN_TAG: run_id})
    reader = PipesFileMessageReader(str(trainer.messages), cleanup_file=False)
    try:
        if trainer.is_alive():
            trainer.start()
            context.log.info(f"run {run_id} is being trained already; following it")
            _follow(context, project, run_id, trainer, tell=True)
        else:
            # Leaving the session waits until the process has reported its last.
            with dg.open_pipes_session(context, PipesEnvContextInjector(), reader) as session:
                trainer.start(session.get_bootstrap_env_vars())
                context.log.info(f"run {run_id}: {' '.join(_short(trainer.command()))}")
                _follow(context, project, run_id, trainer, tell=False)
    except (DagsterExecutionInterruptedError, KeyboardInterrupt):
        _interrupted(context, trainer)
        raise
    except TrainerFailed as error:
        if trainer.exit_code == REFUSED:
            raise dg.Failure(str(error), allow_retries=False) from error
        retries = wanted["max_retries"]
        most = trainer.launch.max_retries if retries is None else retries
        if context.retry_number < most:
            context.log.warning(f"{error}; trying again from its checkpoint")
            raise dg.RetryRequested(max_retries=most, seconds_to_wait=1) from error
        raise dg.Failure(str(error), allow_retries=False) from error
    except AmbientOmniError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    return _finish(context, project, run_id, wanted)


def _follow(
    context: dg.OpExecutionContext, project: Project, run_id: str, trainer: Any, *, tell: bool
) -> None:
    from dagster_project.pictures import run_pictures

    for step in trainer.follow():
        if tell:
            context.log.info(step.line())
        if step.is_evaluation:
            context.log_event(
                dg.AssetObservation(
                    ASSET,
                    partition=_partition(context, trainer.name),
                    metadata={
                        "run_id": run_id,
                        "images_seen": int(step.metrics.get("images", 0)),
                        "held_out_total": float(step.metrics["held_out_total"]),
                        "audit": dg.MetadataValue.json(_audit(project, run_id)),
                        **run_pictures(project.root, run_id),
                    },
                )
            )


def _interrupted(context: dg.OpExecutionContext, trainer: Any) -> None:
    """Stop the trainer with a run that a person cancels; a run that is merely killed leaves it."""
    run = context.instance.get_run_by_id(context.run_id)
    canceled = run is not None and run.status in (
        dg.DagsterRunStatus.CANCELING,
        dg.DagsterRunStatus.CANCELED,
    )
    if canceled or (run is not None and STOP_TAG in run.tags):
        context.log.info("stopping the trainer; it saves first")
        trainer.stop()
    else:
        context.log.info("this run ends; the trainer goes on, and the same run config finds it")


def _finish(
    context: dg.OpExecutionContext, project: Project, run_id: str, wanted: Mapping[str, Any]
) -> str:
    from ambient_omni.training.run_record import find_run
    from dagster_project.pictures import run_pictures

    row = find_run(project.root, run_id)
    if row["status"] != "finished":
        raise dg.Failure(
            f"training {row['name']} is {row['status']} after {row['num_images_seen']:,} images; "
            "start it again to go on"
        )
    metadata = {
        "run_id": run_id,
        "policy_id": row["policy_id"],
        "images_seen": row["num_images_seen"],
        "table_versions": dg.MetadataValue.json(json.loads(row["table_versions"])),
        "metrics": dg.MetadataValue.json(json.loads(row["metrics"])),
        "audit": dg.MetadataValue.json(json.loads(row["audit"])),
        "folder": dg.MetadataValue.path(str(project.root.runs / run_id)),
        "line": f"run {run_id}, {row['num_images_seen']:,} images seen",
        **run_pictures(project.root, run_id),
    }
    context.log_event(
        dg.AssetMaterialization(
            ASSET, partition=_partition(context, str(row["name"])), metadata=metadata
        )
    )
    context.add_output_metadata({"run_id": run_id})
    return run_id


def _partition(context: dg.OpExecutionContext, arm: str) -> str:
    if not context.instance.has_dynamic_partition(ARM, arm):
        context.instance.add_dynamic_partitions(ARM, [arm])
    return arm


def _audit(project: Project, run_id: str) -> Any:
    rows = project.root.tables.read("training_runs", ["audit"], {"run_id": run_id})["audit"]
    return json.loads(rows[0].as_py()) if len(rows) else {}


def _short(words: list[str]) -> list[str]:
    """Return a command's words as a person would write them."""
    return ["python" if word == sys.executable else word for word in words]


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)
