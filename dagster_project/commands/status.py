"""`ambient-omni status`: what is there."""

from pathlib import Path

import pyarrow as pa

from dagster_project.commands.lookup import count_by, text_table
from schemas.registry import all_contracts
from schemas.root import Root


def status(root_path: Path) -> str:
    """Return tables, batches, policies and training runs of a root as text."""
    root = Root.open(root_path)
    parts = [f"root {root.path}", _tables(root), _batches(root), _policies(root), _runs(root)]
    report = root.reports / "report.html"
    parts.append(f"report: {report}" if report.exists() else "report: none yet")
    return "\n\n".join(part for part in parts if part)


def _tables(root: Root) -> str:
    rows = []
    for name, wanted in all_contracts().items():
        if root.tables.exists(name):
            snapshot = root.tables.open(name)
            rows.append((name, snapshot.read([wanted.key[0]]).num_rows, str(snapshot.version)))
    return text_table(("table", "rows", "version"), rows) if rows else "no tables yet"


def _batches(root: Root) -> str:
    batches = root.tables.read("ingest_batches").to_pylist()
    attempts = root.tables.read("ingest_attempts", ["ingest_batch", "status"])
    samples = count_by(root.tables.read("samples", ["ingest_batch"]), "ingest_batch")
    rejected = count_by(
        attempts.filter(pa.compute.equal(attempts["status"], "rejected")), "ingest_batch"
    )
    rows = [
        (
            batch["ingest_batch"],
            batch["role"],
            samples.get(batch["ingest_batch"], 0),
            rejected.get(batch["ingest_batch"], 0),
            batch["source_uri"],
        )
        for batch in sorted(batches, key=lambda b: b["batch_ordinal"])
    ]
    header = ("batch", "role", "images", "rejected", "from")
    return text_table(header, rows) if rows else ""


def _policies(root: Root) -> str:
    policies = root.tables.read("policies").to_pylist()
    annotated = count_by(root.tables.read("noise_annotations", ["policy_id"]), "policy_id")
    rows = [
        (p["name"], p["kind"], annotated.get(p["policy_id"], 0), p["policy_id"]) for p in policies
    ]
    return text_table(("policy", "kind", "annotated", "policy_id"), rows) if rows else ""


def _runs(root: Root) -> str:
    runs = root.tables.read(
        "training_runs", ["name", "status", "num_images_seen", "policy_id", "run_id"]
    )
    rows = [tuple(run.values()) for run in runs.to_pylist()]
    header = ("training run", "status", "images seen", "policy_id", "run_id")
    return text_table(header, rows) if rows else ""
