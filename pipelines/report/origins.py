"""Where a report's figures come from: what came in, and the parents of every run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ambient_omni.code_version import code_version
from ambient_omni.data.training_data import held_out
from pipelines.report.comparison import Comparison
from pipelines.report.drawing.style import words
from pipelines.report.inputs import ReportInputs
from pipelines.report.pictures import Floats
from schemas.errors import BadInput
from schemas.root import Root

Run = dict[str, Any]

READ_TABLES = (
    "ingest_attempts",
    "samples",
    "reference_sets",
    "scores/classical",
    "ood_scores",
    "noise_classifiers",
    "noise_curves",
    "policies",
    "noise_annotations",
    "training_runs",
)


@dataclass(frozen=True)
class CameIn:
    """What became of the listed items of one source of one batch."""

    batch: str
    role: str
    source: str
    listed: int
    stored: int
    duplicate: int
    rejected: dict[str, int]  # by reason code


def what_came_in(root: Root) -> list[CameIn]:
    """Count every listed item of every batch, by status and reason."""
    roles = {r["ingest_batch"]: r["role"] for r in root.tables.read("ingest_batches").to_pylist()}
    keys = ["ingest_batch", "source", "status", "reason"]
    rows = root.tables.read("ingest_attempts", keys)
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows.group_by(keys).aggregate([([], "count_all")]).to_pylist():
        status = row["reason"] if row["status"] == "rejected" else row["status"]
        found = counts.setdefault((row["ingest_batch"], row["source"]), {})
        found[status] = found.get(status, 0) + row["count_all"]
    lines = []
    for (batch, source), found in sorted(counts.items()):
        listed, stored = sum(found.values()), found.pop("stored", 0)
        duplicate = found.pop("duplicate", 0)
        lines.append(
            CameIn(batch, roles.get(batch, ""), source, listed, stored, duplicate, dict(found))
        )
    return lines


def runs_of(root: Root, arms: Mapping[str, str]) -> dict[str, Run]:
    """Read the row of each arm's run.

    Raises:
        BadInput: an arm has no run.
    """
    rows = root.tables.read("training_runs", where={"run_id": list(arms.values())}).to_pylist()
    found = {row["run_id"]: row for row in rows}
    for arm, run_id in arms.items():
        if run_id not in found:
            raise BadInput(f"arm {arm} has no training run {run_id}: train it first")
    return {arm: found[run_id] for arm, run_id in arms.items()}


def levels_by_arm(root: Root, runs: Mapping[str, Run]) -> dict[str, tuple[Floats, Floats]]:
    """Return (sigma_min (N,), sigma_max (N,)) of what each arm may train on, held-out left out."""
    tables = ("samples", "reference_sets", "noise_annotations")
    out = np.array(sorted(held_out(root, root.tables.versions(tables)).sample_rows), np.int64)
    levels = {}
    for arm, run in runs.items():
        found = root.tables.read(
            "noise_annotations",
            ["sample_row", "sigma_min", "sigma_max"],
            {"policy_id": run["policy_id"], "ingest_batch": run["ingest_batches"]},
        )
        rows, sigma_min, sigma_max = (c.to_numpy(zero_copy_only=False) for c in found.columns)
        kept = ~np.isin(rows, out)
        levels[arm] = (sigma_min[kept], sigma_max[kept])
    return levels


def provenance(
    root: Root, inputs: ReportInputs, runs: Mapping[str, Run], comparison: Comparison | None
) -> list[tuple[str, str]]:
    """Return lines of name and value: everything that the page was made from."""
    versions = root.tables.versions(READ_TABLES)
    policies = {inputs.main_policy_id, *(run["policy_id"] for run in runs.values())}
    where = {"policy_id": sorted(policies)}
    spaces = set(root.tables.read("policies", ["noise_space"], where)["noise_space"].to_pylist())
    lines = [
        ("code version", code_version()),
        ("noise space", ", ".join(sorted(spaces))),
        ("data's standard deviation (σ data)", _sigma_data(comparison)),
        ("main policy", inputs.main_policy_id),
        ("noise classifier", inputs.classifier_id or "none"),
        ("pool batches", ", ".join(inputs.pool_batches)),
        ("reference batch", inputs.reference_batch or "none"),
        ("evaluation set", inputs.evaluation_set),
        ("tables as read by this page", _versions(versions)),
    ]
    for arm, run in runs.items():
        lines += _run_lines(words(arm), run)
    return lines


def _sigma_data(comparison: Comparison | None) -> str:
    losses = [] if comparison is None else comparison.losses.values()
    return ", ".join(f"{found:g}" for found in sorted({x.sigma_data for x in losses})) or "unknown"


def _run_lines(arm: str, run: Run) -> Sequence[tuple[str, str]]:
    figures = {k: v for k, v in json.loads(run["audit"]).items() if isinstance(v, int | float)}
    audit = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in figures.items())
    return [
        (f"{arm}: run", f"{run['run_id']} ({run['status']}, code {run['code_version']})"),
        (f"{arm}: policy", run["policy_id"]),
        (f"{arm}: tables it pinned", _versions(json.loads(run["table_versions"]))),
        (f"{arm}: audit", audit or "none"),
    ]


def _versions(versions: Mapping[str, int]) -> str:
    return ", ".join(f"{name}@{version}" for name, version in versions.items())
