"""The code location: what `ambient-omni ui` and `dg dev` load.

Loading imports the orchestrator and the contracts, nothing that computes: no torch, no Spark, no
JVM, no network. Jobs are imported when an asset runs.
"""

import os
import warnings
from collections.abc import Sequence
from typing import cast

import dagster as dg

from dagster_project.defs import (
    annotate,
    checks,
    curate,
    evaluate,
    ingest,
    jobs,
    sensors,
    train,
    training_jobs,
    window_checks,
    windows,
)
from dagster_project.defs.project import RECIPE_VARIABLE, Project
from dagster_project.defs.specs import complete, has_windows
from dagster_project.logfile import file_logger, terminal_logger
from schemas.root import ROOT_VARIABLE

# The orchestrator's own code uses what is in beta or preview: when it resolves sensors, and when it
# reads what a trainer's process reports.
warnings.filterwarnings("ignore", message="Parameter `owners`", category=dg.BetaWarning)
warnings.filterwarnings(
    "ignore", message="Function `PipesMessageReader", category=dg.PreviewWarning
)


def build_definitions(project: Project) -> dg.Definitions:
    """Return the whole graph for one project."""
    with_windows = has_windows(project)
    groups = [ingest, curate, annotate, train, evaluate, *([windows] if with_windows else [])]
    return dg.Definitions(
        assets=dg.map_asset_specs(
            complete(project),
            # Unlike other loaders, this one may meet source assets: there are none.
            cast(
                Sequence[dg.AssetsDefinition],
                dg.load_assets_from_modules(groups),
            ),
        ),
        asset_checks=dg.load_asset_checks_from_modules(
            [checks, window_checks] if with_windows else [checks]
        ),
        jobs=[
            jobs.new_batch,
            jobs.rescore,
            jobs.candidate,
            jobs.promote,
            training_jobs.train,
            training_jobs.compare,
        ],
        sensors=sensors.build_sensors(project),
        schedules=sensors.build_schedules(project),
        resources={"project": project},
        loggers={
            "console": dg.colored_console_logger,
            "file": file_logger,
            "terminal": terminal_logger,
        },
        # One process a run: Spark's session and torch's weights are shared by its steps.
        executor=dg.in_process_executor,
    )


defs = build_definitions(
    Project(
        root_path=os.environ.get(ROOT_VARIABLE, ""),
        recipe_name=os.environ.get(RECIPE_VARIABLE, ""),
    )
)
