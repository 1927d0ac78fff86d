"""From one call of a job to one result of an asset."""

import time
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import dagster as dg

from dagster_project.describe import figures, preview
from dagster_project.interrupts import keyboard_interrupts
from dagster_project.lineage import column_lineage
from pipelines.job import JobReport
from schemas.ids import canonical_hash
from schemas.registry import contract
from schemas.root import Root

P = ParamSpec("P")
T = TypeVar("T")
Result = dg.MaterializeResult[None]


def run_job(job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a job so that ctrl-C reaches it as KeyboardInterrupt."""
    with keyboard_interrupts():
        return job(*args, **kwargs)


def timed(job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
    """Call a job that returns an id, and say how many seconds it took."""
    began = time.monotonic()
    return run_job(job, *args, **kwargs), time.monotonic() - began


def job_result(
    root: Root,
    report: JobReport,
    table: str | None = None,
    where: Mapping[str, Any] | None = None,
    *,
    asset_key: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> Result:
    """Return the result of an asset that one job wrote: figures, table version, first rows."""
    found = figures(report)
    if table is not None and (version := root.tables.version(table)) is not None:
        found["table_version"] = version
        found["preview"] = preview(root, table, where or {})
        if (lineage := column_lineage(table)) is not None:
            found["dagster/column_lineage"] = lineage
    found.update(more or {})
    made_of = None if table is None else data_version(root, table, where or {})
    return dg.MaterializeResult(asset_key=asset_key, metadata=found, data_version=made_of)


def data_version(root: Root, table: str, where: Mapping[str, Any]) -> dg.DataVersion | None:
    """Return what a slice was made from, so that unchanged rows make nothing below them stale.

    None where `where` names no whole slice of the table.
    """
    if set(where) != set(contract(table).partition_by):
        return None
    made_from = root.tables.fingerprint(table, where)
    return dg.DataVersion(canonical_hash([dict(where), made_from]))
