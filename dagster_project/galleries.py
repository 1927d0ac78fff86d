"""Galleries: the images at both ends of a measure, where a person would rather look than read."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ambient_omni.data.packs import Pack
from ambient_omni.data.transforms import Transform
from dagster_project.describe import picture
from dagster_project.pictures import MAX_PICTURE_BYTES, Metadata, can_draw
from schemas.contract import Contract
from schemas.errors import AmbientOmniError
from schemas.registry import contract
from schemas.root import Root

NUM_EACH = 12
MAX_SIDE = 48
SCORES = ("sharpness", "noise_std", "blockiness")


def score_galleries(
    root: Root, transform: Transform, batch: str, versions: dict[str, str]
) -> Metadata:
    """Return, per score, the images with its lowest values above those with its highest.

    Args:
        root: where tables and packs are.
        transform: of the pack that the images are taken from.
        batch: whose images.
        versions: table of scores to the version of its scorers.
    """
    found: Metadata = {}
    for table, version in versions.items():
        wanted: Contract = contract(table)
        for name in SCORES:
            if name in wanted.names:
                where = {"ingest_batch": batch, "scorer_version": version}
                rows = root.tables.read(table, ["sample_row", name], where)
                found |= _ends(root, transform, batch, rows, name)
    return found


def level_gallery(root: Root, transform: Transform, batch: str, policy_id: str) -> Metadata:
    """Return the images with the lowest levels above those with the highest."""
    where = {"ingest_batch": batch, "policy_id": policy_id}
    rows = root.tables.read("noise_annotations", ["sample_row", "sigma_min"], where)
    return _ends(root, transform, batch, rows, "sigma_min")


def _ends(root: Root, transform: Transform, batch: str, rows: pa.Table, name: str) -> Metadata:
    """Return a mosaic of two halves; nothing where all values are one, or no pack is there."""
    if not can_draw():
        return {}
    known = rows.filter(pc.is_valid(rows[name])).sort_by(name)
    values = known[name].to_numpy()
    if len(values) < 2 or values[0] == values[-1]:
        return {}
    count = min(NUM_EACH, len(values) // 2)
    both_ends = [*range(count), *range(len(values) - count, len(values))]
    chosen = known["sample_row"].to_numpy()[both_ends]
    images = _images(root, transform, batch, chosen)
    if images is None:
        return {}
    from pipelines.report.plots import mosaic

    png = mosaic(images, num_columns=count)
    if len(png) > MAX_PICTURE_BYTES:
        return {}
    low, high = values[count - 1], values[-count]
    said = f"above: {name} at most {low:.3g}; below: at least {high:.3g}"
    return {f"ends_of_{name}": picture(png, said)}


def _images(
    root: Root, transform: Transform, batch: str, sample_rows: NDArray[np.int64]
) -> NDArray[np.uint8] | None:
    """Return uint8 (N, H, W, 3), small enough for the history; None without a pack of them all."""
    try:
        pack = Pack.open(root.packs, transform.transform_id, batch)
    except AmbientOmniError:  # a picture must not fail what it illustrates
        return None
    places = np.searchsorted(pack.sample_rows, sample_rows)
    places = np.minimum(places, len(pack) - 1)
    if not len(pack) or not np.array_equal(pack.sample_rows[places], sample_rows):
        return None
    step = -(-transform.resolution // MAX_SIDE)
    images: NDArray[np.uint8] = pack.take(places)[:, ::step, ::step]
    return images
