"""What happens by itself: new drops, the nightly look, drift, growth, failures.

None runs until a person turns it on in the web page, unless the recipe's `operations.running` says
so.
"""

import json
import time
from typing import Any

import dagster as dg

from dagster_project.defs.jobs import candidate, new_batch, rescore
from dagster_project.defs.partitions import INGEST_BATCHES
from dagster_project.defs.project import Project
from dagster_project.defs.training_jobs import train
from dagster_project.operations.config import Watch
from dagster_project.operations.notices import Notice, notify
from schemas.errors import AmbientOmniError, JobAlreadyRunning
from schemas.ids import canonical_hash

_LOOK_SECONDS = 30
# A listing that did not change is looked through all the same this often: a disk may come back.
_RELOOK_SECONDS = 3600
_NUM_LOOKED_AT = 20
_NUM_NAMED = 5


def build_sensors(project: Project) -> list[dg.SensorDefinition]:
    """Return the sensors, on or off as the recipe says."""
    on = project.operations.running
    sensors = dg.DefaultSensorStatus.RUNNING if on else dg.DefaultSensorStatus.STOPPED
    return [
        _new_drops(sensors),
        _classifier_candidate(sensors),
        _growth(sensors),
        _failures(sensors),
        dg.AutomationConditionSensorDefinition(
            "new_or_stale",
            target=dg.AssetSelection.groups("ingest", "curate", "annotate"),
            default_status=sensors,
            description="Materializes batches whose code or inputs changed; see `defs/specs.py`.",
        ),
    ]


def build_schedules(project: Project) -> list[dg.ScheduleDefinition]:
    """Return the schedules, on or off as the recipe says."""
    operations = project.operations
    on = dg.DefaultScheduleStatus.RUNNING
    status = on if operations.running else dg.DefaultScheduleStatus.STOPPED

    @dg.schedule(
        name="nightly_rescore",
        job=rescore,
        cron_schedule=operations.rescore_cron,
        execution_timezone=operations.timezone,
        default_status=status,
        description="Computes what is new or stale, whatever the run history knows of it.",
    )
    def nightly_rescore(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        # The instant in UTC names the night: an hour that the clock shows twice is two instants,
        # and one that a restarted daemon evaluates again is the same.
        return dg.RunRequest(run_key=context.scheduled_execution_time.isoformat())

    return [nightly_rescore]


def _new_drops(status: dg.DefaultSensorStatus) -> dg.SensorDefinition:
    @dg.sensor(
        name="new_drops",
        job=new_batch,
        minimum_interval_seconds=_LOOK_SECONDS,
        default_status=status,
        description="Files under the recipe's watched folders become batches, each file once.",
    )
    def new_drops(
        context: dg.SensorEvaluationContext, project: Project
    ) -> dg.SensorResult | dg.SkipReason:
        from dagster_project.operations.drops import look, manifests, register_new

        root, config = project.root, project.operations
        cursor: dict[str, Any] = json.loads(context.cursor or "{}")
        now, said = time.time(), []
        batches: dict[str, Watch] = {}
        for watch in config.watch:
            before = cursor.get(watch.name, {})
            try:
                listing = look(watch, now)
                quiet = before.get("digest") == listing.digest and not listing.num_unsettled
                if quiet and now - before.get("at", 0) < _RELOOK_SECONDS:
                    continue
                register_new(root, watch, now=now, listing=listing)
            except JobAlreadyRunning:
                continue
            except AmbientOmniError as error:
                said.append(str(error))
                continue
            # Batches of an earlier tick whose run was never asked for are asked for again: the
            # run key makes one run of both.
            known = [drop.batch for drop in manifests(root, watch)]
            batches |= dict.fromkeys(_not_ingested(root, known), watch)
            cursor[watch.name] = {"digest": listing.digest, "at": now}
        if not batches:
            context.update_cursor(json.dumps(cursor))
            return dg.SkipReason("; ".join(said) or "nothing new")
        return dg.SensorResult(
            run_requests=[_request_of(name, watch) for name, watch in batches.items()],
            dynamic_partitions_requests=[INGEST_BATCHES.build_add_request(list(batches))],
            cursor=json.dumps(cursor),
        )

    return new_drops


def _not_ingested(root: Any, batches: list[str]) -> list[str]:
    """Return the batches without samples.

    Of those that are registered only the newest are looked at, since each look opens a table: an
    ingest that was broken off long ago is the nightly schedule's.
    """
    found = root.tables.read("ingest_batches", ["ingest_batch"])["ingest_batch"]
    registered = set(found.to_pylist())
    newest = set(batches[-_NUM_LOOKED_AT:])
    return [
        name
        for name in batches
        if name not in registered
        or (name in newest and root.tables.fingerprint("samples", {"ingest_batch": name}) is None)
    ]


def _request_of(batch: str, watch: Watch) -> dg.RunRequest:
    config = {"ops": {"bring_in_batch": {"config": {"name": batch, "until": watch.until}}}}
    return dg.RunRequest(run_key=batch, run_config=config, tags={"ambient-omni/batch": batch})


def _classifier_candidate(status: dg.DefaultSensorStatus) -> dg.SensorDefinition:
    @dg.sensor(
        name="classifier_candidate",
        job=candidate,
        minimum_interval_seconds=300,
        default_status=status,
        description="When levels or scores drift, a candidate for the noise classifier is trained.",
    )
    def classifier_candidate(
        context: dg.SensorEvaluationContext, project: Project
    ) -> dg.RunRequest | dg.SkipReason:
        from dagster_project.operations.classifiers import promoted_id
        from dagster_project.operations.drifted import drifted_batches

        root, request = project.root, project.request
        promoted = promoted_id(root, request.full_recipe.noise_space)
        if promoted is None:
            return dg.SkipReason("no classifier is promoted: each pool makes its own")
        drifted = drifted_batches(root, request, promoted)
        if not drifted:
            return dg.SkipReason("no batch that came since the promotion drifts")
        key = f"{promoted}:{canonical_hash(drifted)}"
        named = ", ".join(drifted[:_NUM_NAMED]) + (", ..." if drifted[_NUM_NAMED:] else "")
        if context.cursor == key:
            return dg.SkipReason(f"a candidate was asked for because of {named}")
        context.update_cursor(key)
        return dg.RunRequest(run_key=key, tags={"ambient-omni/drifted": named})

    return classifier_candidate


def _growth(status: dg.DefaultSensorStatus) -> dg.SensorDefinition:
    @dg.sensor(
        name="retrain_when_grown",
        job=train,
        minimum_interval_seconds=300,
        default_status=status,
        description="When the annotated pool grew by the recipe's share, a new model is proposed, "
        "or trained if the recipe says so.",
    )
    def retrain_when_grown(
        context: dg.SensorEvaluationContext, project: Project
    ) -> dg.RunRequest | dg.SkipReason:
        from dagster_project.operations.growth import growth_of

        root, request = project.root, project.request
        config = request.operations.retrain
        try:
            growth = growth_of(root, request)
        except AmbientOmniError as error:
            return dg.SkipReason(str(error))
        if not growth.is_due(config.growth_fraction):
            return dg.SkipReason(
                f"{growth.now:,} annotated images, {growth.then:,} at the last run"
            )
        key = f"{growth.run_id}:{growth.now}"
        if context.cursor == key:
            return dg.SkipReason(f"proposed already: {growth.now:,} annotated images")
        context.update_cursor(key)
        share = growth.now / growth.then - 1
        arm = request.full_recipe.main_arm
        notice = Notice(
            "retrain_proposed",
            f"the annotated pool grew by {share:.0%} since {arm} was trained",
            "It is being trained."
            if config.launch
            else f"`ambient-omni train --arm {arm}` trains it on all of them.",
            {"arm": arm, "images": str(growth.now), "run_id": str(growth.run_id)},
        )
        notify(root, request.operations.notify, notice)
        if not config.launch:
            return dg.SkipReason(f"{notice.title}; proposed, for launching is off")
        config_of_arm = {"ops": {"train_arm": {"config": {"arm": arm}}}}
        return dg.RunRequest(run_key=key, run_config=config_of_arm)

    return retrain_when_grown


def _failures(status: dg.DefaultSensorStatus) -> dg.SensorDefinition:
    @dg.run_failure_sensor(
        name="tell_of_failures",
        default_status=status,
        description="Tells the recipe's notifiers of every run that failed.",
    )
    def tell_of_failures(context: dg.RunFailureSensorContext, project: Project) -> None:
        run = context.dagster_run
        if "ambient-omni/started-by" in run.tags:
            return  # the run that started it fails too, and is told of
        partition = run.tags.get("dagster/partition", "")
        what = f"{run.job_name} {partition}".strip().replace("__ASSET_JOB", "materialization")
        text = _one_line(_reason(context))
        notify(
            project.root,
            project.operations.notify,
            Notice("run_failed", f"{what} failed", text, {"run_id": run.run_id}),
        )

    return tell_of_failures


def _reason(context: dg.RunFailureSensorContext) -> str:
    for event in context.get_step_failure_events():
        data = event.step_failure_data
        if data.user_failure_data is not None and data.user_failure_data.description:
            return str(data.user_failure_data.description)
        if data.error is not None:
            return str((data.error.cause or data.error).message)
    return str(context.failure_event.message)


def _one_line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 600 else words[:599] + "…"
