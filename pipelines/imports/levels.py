"""Levels that others decided, as a policy of the kind `external`."""

import time
from dataclasses import replace

import numpy as np

from pipelines.batches import open_batch
from pipelines.imports.files import Listing
from pipelines.imports.matching import Matches, match
from pipelines.imports.scores import (
    JOB as SCORES_JOB,
)
from pipelines.imports.scores import ImportedFile, measure_version, write_measure
from pipelines.job import JobReport
from pipelines.jobs.annotate import annotate
from pipelines.policies import External
from pipelines.spark import SparkSettings
from schemas.errors import BadInput
from schemas.root import Root

JOB = "import-levels"
SIGMA_MIN, SIGMA_MAX = "sigma_min", "sigma_max"


def import_levels(
    root: Root,
    batch: str,
    file: ImportedFile,
    *,
    noise_space: str,
    name: str = "levels",
    sigma_min_column: str = SIGMA_MIN,
    sigma_max_column: str | None = None,
    settings: SparkSettings | None = None,
    dry_run: bool = False,
) -> JobReport:
    """Write the levels of a file as annotations of a batch under an external policy.

    The numbers are kept as measures in `scores/external`; the policy names them by the hash of the
    file, so that `annotate --policy-id` applies it like any other. What the file leaves open, by
    null or by silence, is `unscored`: usable at no high level. References have level 0.

    Args:
        root: where the tables are.
        batch: whose samples are meant.
        file: what to read.
        noise_space: what the levels are measured in; nothing in a file can tell.
        name: of the levels, for people and in the version of the measure.
        sigma_min_column: column of the lowest usable level.
        sigma_max_column: column of the window's upper end; None: `sigma_max` if there is one.
        settings: how to reach Spark, which only keys by pixels need.
        dry_run: match and count, write nothing.

    Raises:
        BadInput: a column is missing, a level is negative or no number, no row fits, or rows of
            one image differ.
        TableMissing: the batch was never ingested.
    """
    began = time.monotonic()
    listing = file.read()
    if sigma_max_column is None and SIGMA_MAX in listing.columns:
        sigma_max_column = SIGMA_MAX
    columns = {SIGMA_MIN: sigma_min_column}
    if sigma_max_column is not None:
        columns[SIGMA_MAX] = sigma_max_column
    for column in columns.values():
        _require_levels(listing, column)
    versions = {side: measure_version(f"{name}-{side}", listing.digest) for side in columns}
    policy = External(
        name=name,
        noise_space=noise_space,
        sigma_min_version=versions[SIGMA_MIN],
        sigma_max_version=versions.get(SIGMA_MAX),
    )
    matches = _write(root, batch, listing, columns, versions, settings, dry_run=dry_run)
    note = (matches.note(), f"policy {policy.policy_id}")
    if dry_run:
        return JobReport(JOB, batch, read=len(matches.sample_rows), notes=note)
    report = annotate(root, batch, policy)
    return replace(
        report,
        job=JOB,
        rejected={**matches.rejected, **report.rejected},
        seconds=time.monotonic() - began,
        notes=(*note, *report.notes),
    )


def _write(
    root: Root,
    batch: str,
    listing: Listing,
    columns: dict[str, str],
    versions: dict[str, str],
    settings: SparkSettings | None,
    *,
    dry_run: bool,
) -> Matches:
    with root.lock(SCORES_JOB, batch):
        facts = open_batch(root, batch)
        matches = match(root, facts, listing, settings)
        if not dry_run:
            for side, column in columns.items():
                write_measure(root, facts, listing, matches, column, versions[side])
    return matches


def _require_levels(listing: Listing, column: str) -> None:
    levels, silent = listing.numbers(column), listing.nulls(column)
    bad = np.flatnonzero(~silent & ~(np.isfinite(levels) & (levels >= 0)))
    if len(bad):
        first = bad[0]
        raise BadInput(
            f"{listing.path}: {column} is {levels[first]} in row {first + 1}, and in {len(bad)} "
            "rows no level: finite, 0 or more, or nothing for 'at no high level'"
        )
