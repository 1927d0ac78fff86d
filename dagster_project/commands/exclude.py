"""`ambient-omni exclude`: take one image down."""

from datetime import UTC, datetime
from pathlib import Path

from dagster_project.commands.lookup import samples_of, text_table
from schemas.exclusions import CONTRACT
from schemas.root import Root


def exclude(root_path: Path, sample_id: str, why: str) -> str:
    """Note the take-down and return which runs trained on batches that held the image."""
    root = Root.open(root_path)
    found = samples_of(root, sample_id)
    full, batches = found[0]["sample_id"], [row["ingest_batch"] for row in found]
    row = {"sample_id": full, "excluded_at": datetime.now(UTC), "why": why}
    root.tables.upsert("exclusions", CONTRACT.table([row]), job="exclude")
    runs = [
        (run["name"], run["status"], run["run_id"])
        for run in root.tables.read("training_runs").to_pylist()
        if set(run["ingest_batches"]) & set(batches)
    ]
    lines = [f"{full} of {', '.join(batches)} is taken down; every reader leaves it out."]
    if runs:
        lines += ["Training runs whose batches held it:", text_table(("run", "status", "id"), runs)]
    else:
        lines.append("No training run had a batch that held it.")
    lines.append("Its bytes stay in the shard; run `ambient-omni run` again to train without it.")
    return "\n".join(lines)
