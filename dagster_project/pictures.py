"""Plots and mosaics of materializations, small enough to live in the run history."""

import importlib.util
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ambient_omni.data.packs import Pack
from ambient_omni.data.transforms import Transform
from dagster_project.bands import BANDS
from dagster_project.describe import picture
from schemas.registry import contract
from schemas.root import Root

Metadata = dict[str, Any]

NUM_MOSAIC_IMAGES = 48
NUM_GRIDS = 4
MAX_STRIP_SIDE = 640
# The history holds pictures as text in its rows; larger ones are only looked at in the run folder.
MAX_PICTURE_BYTES = 400_000
_HISTOGRAMS = {
    "scores/classical": ("sharpness", "noise_std", "blockiness"),
    "ood_scores": ("mahalanobis", "knn_distance"),
}


def score_pictures(root: Root, table: str, batch: str) -> Metadata:
    """Return histograms of a batch's scores, a line per source."""
    if not can_draw():
        return {}
    from pipelines.report.plots import score_histogram

    wanted, names = contract(table), _HISTOGRAMS.get(table, ())
    rows = root.tables.read(table, ["sample_row", *names], {"ingest_batch": batch})
    rows = with_source(root, rows, batch)
    borders = _borders(root)
    found: Metadata = {}
    for name in names:
        column = rows.filter(pc.is_valid(rows[name]))
        if column.num_rows:
            png = score_histogram(
                by_source(column, name),
                name=name,
                unit=wanted.column(name).unit,
                thresholds=borders.get(name, ()),
            )
            found[f"histogram_{name}"] = picture(png, f"distribution of {name}")
    return found


def _borders(root: Root) -> dict[str, list[float]]:
    """Return the thresholds that policies freeze, by score."""
    found: dict[str, list[float]] = {}
    for row in root.tables.read("policies", ["parameters"], {"kind": "quality_rank"}).to_pylist():
        rule = json.loads(row["parameters"])
        if rule.get("cut_score") is not None:
            found.setdefault(rule["column"], []).append(float(rule["cut_score"]))
    return found


def band_picture(root: Root, batch: str, policies: Mapping[str, str]) -> Metadata:
    """Return how many images of a batch each noise band can draw from, per policy."""
    if not can_draw():
        return {}
    from ambient_omni.noise.usable import effective_samples_per_band
    from pipelines.report.plots import effective_samples

    counts = {}
    for name, policy_id in policies.items():
        where = {"policy_id": policy_id, "ingest_batch": batch}
        rows = root.tables.read("noise_annotations", ["sigma_min", "sigma_max"], where)
        low, high = rows["sigma_min"].to_numpy(), rows["sigma_max"].to_numpy()
        counts[name] = effective_samples_per_band(low, high, BANDS)
    if not counts:
        return {}
    png = effective_samples(counts, BANDS)
    return {"images_per_noise_band": picture(png, f"images of {batch} per noise band")}


def pack_picture(root: Root, transform: Transform, batch: str) -> Metadata:
    """Return a mosaic of images spread over a batch's pack."""
    if not can_draw():
        return {}
    from pipelines.report.plots import mosaic

    pack = Pack.open(root.packs, transform.transform_id, batch)
    if not len(pack):
        return {}
    places = np.linspace(0, len(pack) - 1, min(NUM_MOSAIC_IMAGES, len(pack))).astype(np.int64)
    images = pack.take(places)
    step = max(1, transform.resolution // 48)
    return {"mosaic": picture(mosaic(images[:, ::step, ::step], num_columns=12), f"of {batch}")}


def classifier_picture(root: Root, classifier_id: str) -> Metadata:
    """Return the classifier's total variation per level."""
    rows = root.tables.read("noise_classifiers", where={"classifier_id": classifier_id}).to_pylist()
    if not rows or not can_draw():
        return {}
    from pipelines.report.plots import tv_bound

    row = rows[0]
    png = tv_bound(row["sigmas"], row["tv_lower_bound"], row["tv_standard_error"])
    return {"total_variation": picture(png, "total variation per level")}


def level_pictures(root: Root, batch: str, policies: Mapping[str, str]) -> Metadata:
    """Return, per policy (name to policy_id), the share of a batch usable at each level."""
    if not can_draw():
        return {}
    from pipelines.report.plots import sigma_min_cdf

    found: Metadata = {}
    for name, policy_id in policies.items():
        where = {"policy_id": policy_id, "ingest_batch": batch}
        rows = root.tables.read("noise_annotations", ["sample_row", "sigma_min"], where)
        if rows.num_rows and len(pc.unique(rows["sigma_min"])) > 1:
            levels = by_source(with_source(root, rows, batch), "sigma_min")
            found[f"levels_{name}"] = picture(sigma_min_cdf(levels), f"levels under {name}")
    return found


def run_pictures(root: Root, run_id: str) -> Metadata:
    """Return a run's curves so far, its newest samples, and how they came to be."""
    folder = root.runs / run_id
    found: Metadata = {}
    grids = sorted(folder.glob("samples*.png"), key=lambda path: path.stat().st_mtime)
    if grids and grids[-1].stat().st_size <= MAX_PICTURE_BYTES:
        found["samples"] = picture(grids[-1].read_bytes(), f"samples of run {run_id}")
    if over_time := _over_time(grids):
        found["samples_over_time"] = over_time
    if not can_draw():
        return found
    from pipelines.report.plots import training_curves

    for name, title in (("held_out_total", "Held-out loss"), ("loss", "Training loss")):
        seen, values = _metric(folder, name)
        if values:
            png = training_curves({"run": (seen, values)}, title=title, ylabel=name)
            found[f"curve_{name}"] = picture(png, title)
    return found


def _over_time(grids: Sequence[Path]) -> dg.MarkdownMetadataValue | None:
    """Return some of a run's grids from first to last, a row of each, with their steps."""
    steps = [grid for grid in grids if grid.stem.removeprefix("samples-").isdigit()]
    if len(steps) < 2:
        return None
    places = np.unique(np.linspace(0, len(steps) - 1, NUM_GRIDS).astype(int))
    chosen = [steps[place] for place in places]
    said = ", ".join(f"{int(grid.stem.removeprefix('samples-')):,}" for grid in chosen)
    return picture(_first_rows(chosen), f"first samples after steps {said}, from above")


def _first_rows(grids: Sequence[Path]) -> bytes:
    """Return the first row of each grid under that of the one before, as PNG."""
    rows = []
    for grid in grids:
        with Image.open(grid) as opened:
            side = min(opened.width, opened.height)
            whole = opened.convert("RGB")
            # A grid is about a square of images; its top quarter holds the first row or rows.
            rows.append(whole.crop((0, 0, opened.width, max(1, side // 4))))
    width, height = max(r.width for r in rows), sum(r.height for r in rows)
    canvas = Image.new("RGB", (width, height + 2 * (len(rows) - 1)), (128, 128, 128))
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height + 2
    canvas.thumbnail((MAX_STRIP_SIDE, MAX_STRIP_SIDE))
    out = io.BytesIO()
    canvas.save(out, "PNG", optimize=True)
    return out.getvalue()


def _metric(folder: Path, name: str) -> tuple[list[float], list[float]]:
    """Return images seen and values of one metric; a line half written is left out."""
    seen, values = [], []
    file = folder / "metrics.jsonl"
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        value = found.get(name)
        if isinstance(value, int | float) and math.isfinite(value):
            seen.append(float(found["images"]))
            values.append(float(value))
    return seen, values


def with_source(root: Root, rows: pa.Table, batch: str) -> pa.Table:
    """Return rows of a batch with the column `source` beside them."""
    sources = root.tables.read("samples", ["sample_row", "source"], {"ingest_batch": batch})
    return rows.join(sources, "sample_row", join_type="inner")


def by_source(rows: pa.Table, column: str) -> dict[str, np.ndarray]:
    """Return a column's values, source by source."""
    names: Sequence[str] = sorted(pc.unique(rows["source"]).to_pylist())
    return {name: rows.filter(pc.equal(rows["source"], name))[column].to_numpy() for name in names}


def can_draw() -> bool:
    """Say whether plots can be made here."""
    # Plots are the `report` extra's; the graph runs without it.
    return importlib.util.find_spec("matplotlib") is not None
