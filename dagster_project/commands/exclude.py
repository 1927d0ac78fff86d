"""`ambient-omni exclude`: take one image down."""

from datetime import UTC, datetime
from pathlib import Path

from dagster_project.commands.lookup import samples_of, text_table
from pipelines.takedown import find_samples
from schemas.exclusions import CONTRACT
from schemas.root import Root


def exclude(root_path: Path, name: str, why: str) -> str:
    """Note the take-down and return which runs trained on batches that held the image.

    Args:
        root_path: folder of the root.
        name: the sample_id, its first digits, or the address that the image was listed by.
        why: the request or finding behind it.
    """
    root = Root.open(root_path)
    is_address = bool(set(name.lower()) - set("0123456789abcdef"))
    found = [
        row
        for sample_id in (find_samples(root, [name]) if is_address else [name])
        for row in samples_of(root, sample_id)
    ]
    ids = sorted({row["sample_id"] for row in found})
    batches = sorted({row["ingest_batch"] for row in found})
    now = datetime.now(UTC)
    rows = [{"sample_id": one, "excluded_at": now, "why": why} for one in ids]
    root.tables.upsert("exclusions", CONTRACT.table(rows), job="exclude")
    runs = [
        (run["name"], run["status"], run["run_id"])
        for run in root.tables.read("training_runs").to_pylist()
        if set(run["ingest_batches"]) & set(batches)
    ]
    where = ", ".join(batches)
    lines = [f"{one} of {where} is taken down; every reader leaves it out." for one in ids]
    if runs:
        lines += ["Training runs whose batches held it:", text_table(("run", "status", "id"), runs)]
    else:
        lines.append("No training run had a batch that held it.")
    lines.append("Its bytes stay in the shard; run `ambient-omni run` again to train without it.")
    return "\n".join(lines)
