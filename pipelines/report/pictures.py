"""Everything of a report that is drawn, from the root's tables, packs and run folders."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ambient_omni.config import TrainConfig
from ambient_omni.noise.levels import log_grid
from ambient_omni.noise.usable import effective_samples_per_band
from ambient_omni.packs import PackSet
from pipelines.report.comparison import Comparison, display
from pipelines.report.drawing.classifier import probability_curve, tv_bound
from pipelines.report.drawing.levels import effective_samples, severity_medians, sigma_min_cdf
from pipelines.report.drawing.mosaic import encode
from pipelines.report.drawing.scores import score_against_level, score_histogram
from pipelines.report.drawing.training import heldout_difference, training_curves
from pipelines.report.pool import Pool, Truth, read_scores
from schemas.contract import Contract
from schemas.registry import contract
from schemas.root import Root

Floats = NDArray[np.float64]

IMAGES_PER_GROUP = 18
NUM_LEVEL_GROUPS = 6
NUM_BANDS = 24
NUM_CURVES = 6
THUMBNAIL_SIDE = 96
_PRIOR_TAIL = 0.005


@dataclass(frozen=True)
class Picture:
    """A PNG as a data URI, with the words that stand for it."""

    uri: str
    text: str


@dataclass(frozen=True)
class GalleryImage:
    """One image of the gallery; `caption` is untrusted text."""

    uri: str
    level: str
    caption: str


@dataclass(frozen=True)
class GalleryGroup:
    """Images of neighbouring levels."""

    title: str
    num_images: int
    images: list[GalleryImage]


def picture(png: bytes, text: str) -> Picture:
    """Return a PNG as a picture of the page."""
    return Picture("data:image/png;base64," + base64.b64encode(png).decode(), text)


def level_words(sigma_min: float) -> str:
    """Return a level as words."""
    if np.isnan(sigma_min) or np.isinf(sigma_min):
        return "never"
    return "everywhere" if sigma_min == 0 else f"σ ≥ {sigma_min:.2g}"


def gallery(pool: Pool, pack: PackSet) -> list[GalleryGroup]:
    """Return the pool in groups from usable everywhere to never, images spread over each group."""
    order = np.argsort(np.nan_to_num(pool.sigma_min, nan=np.inf), kind="stable")
    levels = pool.sigma_min[order]
    groups = [("usable at every level", order[levels == 0])]
    finite = order[(levels > 0) & ~np.isnan(levels)]
    for part in np.array_split(finite, min(NUM_LEVEL_GROUPS, max(1, len(finite)))):
        if len(part):
            low, high = pool.sigma_min[part[0]], pool.sigma_min[part[-1]]
            groups.append((f"usable from σ = {low:.2g} … {high:.2g} on", part))
    groups.append(("usable at no high level", order[np.isnan(levels)]))
    return [_group(title, places, pool, pack) for title, places in groups if len(places)]


def _group(title: str, places: NDArray[np.int64], pool: Pool, pack: PackSet) -> GalleryGroup:
    shown = places[np.linspace(0, len(places) - 1, min(IMAGES_PER_GROUP, len(places))).astype(int)]
    pixels = pack.take(pack.index_of(pool.sample_rows[shown]))
    captions = pool.table["caption"].take(shown).to_pylist()
    images = [
        GalleryImage(
            picture(encode(image, THUMBNAIL_SIDE), "").uri,
            level_words(float(pool.sigma_min[place])),
            caption or "",
        )
        for image, place, caption in zip(pixels, shown, captions, strict=True)
    ]
    return GalleryGroup(title, len(places), images)


def level_plot(pool: Pool) -> Picture:
    """Draw the share of each source that is usable at each level."""
    png = sigma_min_cdf(pool.by_source(pool.sigma_min))
    return picture(png, "Share of the images of each source that may be used at each noise level")


def score_plots(root: Root, pool: Pool, packs: Sequence[str]) -> list[Picture]:
    """Draw every score per source, and the first of each table against the level."""
    drawn = []
    for table in packs:
        wanted = contract(table)
        columns = _score_columns(wanted)
        for number, (name, values) in enumerate(read_scores(root, table, columns, pool).items()):
            if not np.isfinite(values).any():
                continue
            unit = wanted.column(name).unit
            if len(np.unique(values[np.isfinite(values)])) > 1:
                png = score_histogram(pool.by_source(values), name=name, unit=unit)
                drawn.append(picture(png, f"Distribution of {name} per source"))
            if number == 0:
                png = score_against_level(values, pool.sigma_min, name=name, unit=unit)
                drawn.append(picture(png, f"{name} of each image against its sigma_min"))
    return drawn


def _score_columns(wanted: Contract) -> list[str]:
    return [
        c.name for c in wanted.columns if str(c.type) == "double" and c.name != "scorer_version"
    ]


def classifier_plot(row: Mapping[str, object]) -> Picture:
    """Draw the classifier's total variation per level."""
    png = tv_bound(row["sigmas"], row["tv_lower_bound"], row["tv_standard_error"])  # type: ignore[arg-type]
    return picture(png, "Lower bound of the total variation of reference and pool per noise level")


def curve_plots(
    root: Root, classifier_id: str, sigmas: Sequence[float], tau: float, pool: Pool, pack: PackSet
) -> list[Picture]:
    """Draw the curves of a few images, spread over the levels from the lowest to never."""
    order = np.argsort(np.nan_to_num(pool.sigma_min, nan=np.inf), kind="stable")
    places = order[np.linspace(0, len(order) - 1, min(NUM_CURVES, len(order))).astype(int)]
    rows = pool.sample_rows[places]
    found = root.tables.read(
        "noise_curves",
        ["sample_row", "logits", "logit_standard_error"],
        {"classifier_id": classifier_id, "sample_row": rows.tolist()},
    ).to_pylist()
    curves = {row["sample_row"]: row for row in found}
    thumbnails = pack.take(pack.index_of(rows))
    drawn = []
    for place, row, thumbnail in zip(places, rows, thumbnails, strict=True):
        if (curve := curves.get(int(row))) is None:
            continue
        level = float(pool.sigma_min[place])
        png = probability_curve(
            sigmas,
            curve["logits"],
            curve["logit_standard_error"],
            tau=tau,
            sigma_min=None if np.isnan(level) else level,
            title=f"usable: {level_words(level)}",
            thumbnail=thumbnail,
        )
        drawn.append(picture(png, f"P(trusted) over noise levels; usable {level_words(level)}"))
    return drawn


def effective_plot(
    levels_by_arm: Mapping[str, tuple[Floats, Floats]], config: TrainConfig
) -> Picture:
    """Draw how many images each noise band can draw from under each arm's policy.

    Args:
        levels_by_arm: arm to (sigma_min (N,), sigma_max (N,)) of all that it may train on.
        config: of one run, for its prior.
    """
    prior = config.prior
    low, high = prior.sigma_of(np.array([_PRIOR_TAIL, 1 - _PRIOR_TAIL]))
    bands = log_grid(NUM_BANDS + 1, float(low), float(high))
    counts = {
        arm: effective_samples_per_band(sigma_min, sigma_max, bands, config.kappa)
        for arm, (sigma_min, sigma_max) in levels_by_arm.items()
    }
    png = effective_samples(counts, bands, np.diff(prior.cdf(bands)))
    return picture(png, "Images that each noise band can draw from, per arm")


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """Read the lines of a run's metrics.jsonl."""
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def training_plots(root: Root, arms: Mapping[str, str], comparison: Comparison) -> list[Picture]:
    """Draw training loss and held-out loss over images seen."""
    lines = {arm: metrics_of(root.runs / run_id) for arm, run_id in arms.items()}
    best = {}
    for arm, found in lines.items():
        checkpoint = comparison.losses[arm].checkpoint
        seen = {f"step-{int(x['step']):08d}": x["images"] for x in found}
        if checkpoint in seen:
            best[arm] = float(seen[checkpoint])
    drawn = []
    for key, title, ylabel in (
        ("loss", "Training loss (each arm on its own images)", "EDM-weighted loss"),
        ("held_out_total", "Held-out loss during training (validation)", "sum over levels"),
    ):
        curves = {
            arm: (
                np.array([x["images"] for x in found if key in x], np.float64),
                np.array([x[key] for x in found if key in x], np.float64),
            )
            for arm, found in lines.items()
        }
        curves = {arm: curve for arm, curve in curves.items() if len(curve[0])}
        marks = best if key == "held_out_total" else None
        if curves:
            png = training_curves(curves, marks, title=title, ylabel=ylabel)
            drawn.append(picture(png, title))
    return drawn


def heldout_plot(comparison: Comparison, baseline: str) -> Picture | None:
    """Draw each arm's held-out loss per level against the baseline arm's."""
    if baseline not in comparison.losses or len(comparison.losses) < 2:
        return None
    differences = {
        arm: comparison.level_difference(arm, baseline)
        for arm in comparison.losses
        if arm != baseline
    }
    png = heldout_difference(
        comparison.sigmas, differences, baseline=baseline, arm_names=list(comparison.losses)
    )
    return picture(png, f"Held-out loss per noise level relative to {display(baseline)}")


def sample_grids(root: Root, arms: Mapping[str, str]) -> list[tuple[str, Picture]]:
    """Return (arm, grid of samples) for the arms that have one."""
    found = []
    for arm, run_id in arms.items():
        file = root.runs / run_id / "samples.png"
        if file.exists():
            found.append((arm, picture(file.read_bytes(), f"Samples of {display(arm)}")))
    return found


def severity_plot(truth: Truth, pool: Pool) -> Picture | None:
    """Draw the median level against true severity, a line per kind."""
    finite = pool.sigma_min[np.isfinite(pool.sigma_min)]
    if not truth.severities:
        return None
    png = severity_medians(
        {s.kind: s.medians for s in truth.severities},
        top=float(finite.max()) if len(finite) else 1.0,
        title="Median level against what was really done",
    )
    return picture(png, "Median sigma_min against true severity, per kind of damage")
