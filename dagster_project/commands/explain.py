"""`ambient-omni explain`: why one image has its level."""

from pathlib import Path
from typing import Any

from dagster_project.commands.lookup import printable, samples_of, text_table
from schemas.errors import AmbientOmniError, BadInput
from schemas.ids import sample_id_of
from schemas.registry import all_contracts, contract
from schemas.root import Root
from schemas.shard_files import place_of, read_range

_KEYS = ("sample_row", "ingest_batch")


def explain(root_path: Path, sample_id: str, image: Path | None = None) -> str:
    """Return everything the tables say of one image, batch by batch, as text.

    Args:
        root_path: folder of the root.
        sample_id: or its first digits.
        image: where the image is written to, as it was stored.

    Raises:
        BadInput: no image is called so, or its bytes are not there any more.
    """
    root = Root.open(root_path)
    found = samples_of(root, sample_id)
    parts = [] if image is None else [_written(root, found[0], image)]
    for sample in found:
        where = {"ingest_batch": sample["ingest_batch"], "sample_row": sample["sample_row"]}
        parts += [
            _image(sample),
            _taken_down(root, sample),
            _attempts(root, where),
            _sets(root, sample["sample_row"]),
            *(_facts(root, name, where, name) for name in _score_tables(root)),
            _facts(root, "ood_scores", where, "distance to the reference"),
            _curves(root, where),
            _facts(root, "crop_scores", where, "its crops"),
            _annotations(root, where),
        ]
    parts.append(_runs(root, found[0]["sample_id"], {row["ingest_batch"] for row in found}))
    return "\n\n".join(part for part in parts if part)


def _image(sample: dict[str, Any]) -> str:
    size = f"{sample['width']}x{sample['height']} {sample['format']}, {sample['num_bytes']:,} bytes"
    told = [
        f"{k}: {printable(sample[k])}"
        for k in ("source", "label", "caption")
        if sample[k] is not None
    ]
    place = f"in {sample['shard']} from byte {sample['byte_offset']}"
    return "\n".join(
        [f"sample {sample['sample_id']} of batch {sample['ingest_batch']}", size, *told, place]
    )


def _written(root: Root, sample: dict[str, Any], image: Path) -> str:
    place = place_of(root.shards, sample["shard"])
    data = read_range(place, sample["byte_offset"], sample["num_bytes"])
    if sample_id_of(data) != sample["sample_id"]:
        raise BadInput(f"the bytes of {sample['sample_id']} are gone: it was purged, or damaged")
    try:
        image.write_bytes(data)
    except OSError as error:
        raise BadInput(f"the image cannot be written to {image}: {error}") from error
    return f"the image is in {image}"


def _score_tables(root: Root) -> list[str]:
    names = sorted(name for name in all_contracts() if name.startswith("scores/"))
    return [name for name in names if root.tables.exists(name)]


def _runs(root: Root, sample_id: str, batches: set[str]) -> str:
    """Return which training runs saw the image, as far as their weights know."""
    columns = ["run_id", "name", "status", "ingest_batches"]
    rows = [
        (run["name"], run["status"], _sighting(root, run["run_id"], sample_id), run["run_id"])
        for run in root.tables.read("training_runs", columns).to_pylist()
        if set(run["ingest_batches"]) & batches
    ]
    if not rows:
        return "no training run had a batch that holds it"
    return "training runs of its batches:\n" + text_table(("run", "status", "it", "id"), rows)


def _sighting(root: Root, run_id: str, sample_id: str) -> str:
    from ambient_omni.training.lookup import samples_seen

    try:
        return samples_seen(root, run_id, [sample_id]).of[sample_id]
    except AmbientOmniError:  # no checkpoint yet, or one from before this was kept
        return "not known"


def _taken_down(root: Root, sample: dict[str, Any]) -> str:
    rows = root.tables.read("exclusions", where={"sample_id": sample["sample_id"]}).to_pylist()
    lines = [f"TAKEN DOWN at {r['excluded_at']:%Y-%m-%d %H:%M} UTC: {r['why']}" for r in rows]
    return "\n".join(lines)


def _attempts(root: Root, where: dict[str, Any]) -> str:
    rows = root.tables.read("ingest_attempts", ["attempt_key", "status", "source_uri"], where)
    body = [tuple(row.values()) for row in rows.to_pylist()]
    return text_table(("listed as", "status", "from"), body) if body else ""


def _sets(root: Root, sample_row: int) -> str:
    names = root.tables.read("reference_sets", ["reference_set"], {"sample_row": sample_row})
    found = names["reference_set"].to_pylist()
    return f"in the reference sets: {', '.join(found)}" if found else ""


def _facts(root: Root, table: str, where: dict[str, Any], title: str) -> str:
    """Return the rows of a table that are about the image, a column a line."""
    lines = []
    for row in root.tables.read(table, where=where).to_pylist():
        lines.append(f"{title}:")
        for name, value in row.items():
            if name not in _KEYS and value is not None:
                unit = contract(table).column(name).unit
                text = f"{value:.4g} {unit}".rstrip() if isinstance(value, float) else value
                lines.append(f"  {name}: {text}")
    return "\n".join(lines)


def _curves(root: Root, where: dict[str, Any]) -> str:
    parts = []
    for row in root.tables.read("noise_curves", where=where).to_pylist():
        known = root.tables.read(
            "noise_classifiers", ["sigmas"], {"classifier_id": row["classifier_id"]}
        )
        sigmas = known["sigmas"].to_pylist()[0] if known.num_rows else [None] * len(row["logits"])
        body = list(zip(sigmas, row["logits"], row["logit_standard_error"], strict=True))
        head = f"noise curve of classifier {row['classifier_id']}, fold {row['fold']}"
        parts.append(f"{head}:\n" + text_table(("sigma", "logit of trust", "standard error"), body))
    return "\n\n".join(parts)


def _annotations(root: Root, where: dict[str, Any]) -> str:
    names = {p["policy_id"]: p["name"] for p in root.tables.read("policies").to_pylist()}
    rows = root.tables.read("noise_annotations", where=where).to_pylist()
    body = [
        (
            names.get(row["policy_id"], row["policy_id"]),
            row["sigma_min"],
            row["sigma_max"],
            row["reason"],
            row["sigma_min_standard_error_octaves"],
            row["noise_space"],
        )
        for row in rows
    ]
    header = ("policy", "sigma_min", "sigma_max", "reason", "+- octaves", "measured in")
    if not body:
        return "not annotated yet"
    return "levels (sigma_min '-': usable at no high level):\n" + text_table(header, body)
