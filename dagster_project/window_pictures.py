"""What crops say, drawn: maps over images, how many images get a window, context by level."""

import itertools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa

from dagster_project.describe import picture, pictures_below, plain_table
from dagster_project.pictures import MAX_PICTURE_BYTES, Metadata, by_source, can_draw, with_source
from schemas.errors import AmbientOmniError
from schemas.root import Root

if TYPE_CHECKING:
    from pipelines.policies import AnyPolicy


def crop_control(row: Mapping[str, Any]) -> dg.MarkdownMetadataValue:
    """Return a crop classifier's figures as a table, a row per size."""
    control = json.loads(row["control"])
    columns = (
        row["sizes"],
        row["tv_lower_bound"],
        row["tv_standard_error"],
        control["tv_lower_bound"],
    )
    rows = [
        {
            "side": side,
            "domain against foreign (TV)": told,
            "standard error": error,
            "domain against shuffled (TV)": planted,
        }
        for side, told, error, planted in zip(*columns, strict=True)
    ]
    return dg.MetadataValue.md(plain_table(rows))


def crop_maps(root: Root, batch: str, crop_classifier_id: str, sizes: list[int]) -> Metadata:
    """Return what crops of the middle size say, drawn over some images of a batch."""
    if not can_draw():
        return {}
    from pipelines.jobs.windows import pictured

    size = sizes[len(sizes) // 2]
    try:
        maps = pictured(root, batch, crop_classifier_id, size)
    except AmbientOmniError:  # a picture must not fail what it illustrates
        return {}
    sizes_so_far = itertools.accumulate(map(len, maps))
    maps = [png for png, upto in zip(maps, sizes_so_far, strict=True) if upto <= MAX_PICTURE_BYTES]
    if not maps:
        return {}
    name = f"crop_maps_{crop_classifier_id}"
    return {name: pictures_below(maps, f"crops of side {size} of {batch}")}


def crop_histogram(
    root: Root, batch: str, crop_classifier_id: str, sizes: list[int], borders: list[float]
) -> Metadata:
    """Return how mean P(in domain) is distributed over a batch's images, a line per size.

    Args:
        root: where the tables are.
        batch: whose images.
        crop_classifier_id: which said it.
        sizes: its sides.
        borders: above which crops pass, of the rules that read them.
    """
    if not can_draw():
        return {}
    from pipelines.measures import read_crop_scores
    from pipelines.report.plots import score_histogram

    means = read_crop_scores(root, batch, crop_classifier_id).values[:, 0]
    if not len(means):
        return {}
    by_size = {f"side {side}": means[:, place] for place, side in enumerate(sizes)}
    png = score_histogram(by_size, name="mean P(in domain)", thresholds=borders)
    return {f"in_domain_{crop_classifier_id}": picture(png, f"crops of {batch}")}


def context_pictures(row: Mapping[str, Any], reach: Mapping[int, float]) -> Metadata:
    """Return a receptive field as a plot and as a table.

    Args:
        row: of `receptive_fields`.
        reach: side of a crop to the level up to which it is context enough.
    """
    needs = zip(row["sigmas"], row["needed_context"], strict=True)
    rows = [{"sigma": sigma, "needed side": side} for sigma, side in needs]
    found: Metadata = {"needed_context": dg.MetadataValue.md(plain_table(rows))}
    if can_draw():
        from pipelines.report.plots import needed_context

        png = needed_context(row["sigmas"], row["needed_context"], reach)
        found["receptive_field"] = picture(png, "context that denoising needs, per level")
    return found


def window_pictures(root: Root, batch: str, policies: Mapping[str, "AnyPolicy"]) -> Metadata:
    """Return, per rule of windows, its table of windows and how many images have which."""
    from pipelines.policies import CropWindow

    found: Metadata = {}
    for name, policy in policies.items():
        if not isinstance(policy, CropWindow):
            continue
        sizes = zip(policy.sizes, policy.sigma_max, strict=True)
        rows = [{"side of the crops": size, "usable below sigma": level} for size, level in sizes]
        found[f"windows_{name}"] = dg.MetadataValue.md(plain_table(rows))
        where = {"policy_id": policy.policy_id, "ingest_batch": batch}
        table = root.tables.read("noise_annotations", ["sample_row", "sigma_max"], where)
        if table.num_rows and can_draw():
            found[f"window_shares_{name}"] = _shares(root, batch, table)
    return found


def _shares(root: Root, batch: str, table: pa.Table) -> dg.MarkdownMetadataValue:
    from pipelines.report.plots import window_shares

    ends = by_source(with_source(root, table, batch), "sigma_max")
    return picture(window_shares(ends), f"windows of {batch}")
