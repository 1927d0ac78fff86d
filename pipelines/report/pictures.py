"""The plots of a report, from the root's tables, packs and run folders."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ambient_omni.noise.levels import log_grid
from ambient_omni.noise.priors import read_prior
from ambient_omni.noise.usable import effective_samples_per_band, kappa
from pipelines.report import plots
from pipelines.report.comparison import Comparison
from pipelines.report.drawing.style import words
from pipelines.report.pool import Pool, Score
from pipelines.report.truth import Truth
from schemas.root import Root

Floats = NDArray[np.float64]

NUM_BANDS = 24
_PRIOR_TAIL = 0.005
REFERENCE = "trusted reference"


@dataclass(frozen=True)
class Picture:
    """A PNG as a data URI, with the words that stand for it."""

    uri: str
    text: str


def data_uri(png: bytes) -> str:
    """Return a PNG as text that a page can hold."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def picture(png: bytes, text: str) -> Picture:
    """Return a PNG as a picture of the page."""
    return Picture(data_uri(png), text)


def level_plot(pool: Pool) -> Picture:
    """Draw the share of each source that is usable at each level."""
    png = plots.sigma_min_cdf(pool.by_source(pool.sigma_min))
    return picture(png, "Share of the images of each source that may be used at each noise level")


def score_pictures(score: Score, pool: Pool) -> list[Picture]:
    """Draw one measure per source, and against the level."""
    groups = pool.by_source(score.values)
    if len(score.reference):
        groups[REFERENCE] = score.reference
    histogram = plots.score_histogram(groups, name=score.name, unit=score.unit)
    relation = plots.score_against_level(
        score.values, pool.sigma_min, name=score.name, unit=score.unit
    )
    return [
        picture(histogram, f"Distribution of {score.name} per source"),
        picture(relation, f"{score.name} of each pool image against its sigma_min"),
    ]


def classifier_plot(row: Mapping[str, Any]) -> Picture:
    """Draw the classifier's total variation per level."""
    png = plots.tv_bound(row["sigmas"], row["tv_lower_bound"], row["tv_standard_error"])
    return picture(png, "Lower bound of the total variation of reference and pool per noise level")


def effective_plot(
    levels_by_arm: Mapping[str, tuple[Floats, Floats]], config: Mapping[str, Any]
) -> Picture:
    """Draw how many images each noise band can draw from under each arm's policy.

    Args:
        levels_by_arm: arm to (sigma_min (N,), sigma_max (N,)) of all that it may train on.
        config: of one run, for its prior and its objective's margin. Not as a `TrainConfig`: a
            run of an older release may hold fields that this one has not.
    """
    prior = read_prior(config["prior"])
    margin = kappa(config["objective"], config["max_amplification"])
    low, high = prior.sigma_of(np.array([_PRIOR_TAIL, 1 - _PRIOR_TAIL]))
    bands = log_grid(NUM_BANDS + 1, float(low), float(high))
    counts = {
        arm: effective_samples_per_band(sigma_min, sigma_max, bands, margin)
        for arm, (sigma_min, sigma_max) in levels_by_arm.items()
    }
    png = plots.effective_samples(counts, bands, np.diff(prior.cdf(bands)))
    return picture(png, "Images that each noise band can draw from, per arm")


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """Read the lines of a run's metrics.jsonl; none where there is no such file."""
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def training_plots(
    root: Root, arms: Mapping[str, str], comparison: Comparison | None
) -> list[Picture]:
    """Draw training loss and validation loss over images seen, selected checkpoints marked."""
    lines = {arm: metrics_of(root.runs / run_id) for arm, run_id in arms.items()}
    losses = comparison.losses if comparison else {}
    best = {
        arm: images
        for arm, loss in losses.items()
        if (images := images_seen_at(lines[arm], loss.checkpoint)) is not None
    }
    drawn = []
    for key, title, ylabel, marks in (
        ("held_out_total", "Validation loss (ring: chosen checkpoint)", "sum over levels", best),
        ("loss", "Training loss, each arm on its own images", "EDM-weighted loss", None),
    ):
        curves = {arm: curve for arm in lines if (curve := _curve(lines[arm], key)) is not None}
        if curves:
            png = plots.training_curves(curves, marks, title=title, ylabel=ylabel)
            drawn.append(picture(png, title))
    return drawn


def images_seen_at(lines: list[dict[str, float]], checkpoint: str) -> float | None:
    """Return how many images a run had seen at a checkpoint, None if it is not in its log."""
    seen = {f"step-{int(x['step']):08d}": x["images"] for x in lines}
    return seen.get(checkpoint)


def _curve(lines: list[dict[str, float]], key: str) -> tuple[Floats, Floats] | None:
    points = [(x["images"], x[key]) for x in lines if x.get(key) is not None]
    if not points:
        return None
    images, values = np.array(points, np.float64).T
    return images, values


def heldout_plot(comparison: Comparison, baseline: str) -> Picture | None:
    """Draw each arm's held-out loss per level against the baseline arm's."""
    if baseline not in comparison.losses or len(comparison.losses) < 2:
        return None
    differences = {
        arm: comparison.level_difference(arm, baseline)
        for arm in comparison.losses
        if arm != baseline
    }
    png = plots.heldout_difference(
        comparison.sigmas, differences, baseline=baseline, arm_names=list(comparison.losses)
    )
    return picture(png, f"Held-out loss per noise level relative to {words(baseline)}")


def sample_grids(root: Root, arms: Mapping[str, str]) -> list[tuple[str, Picture]]:
    """Return (arm, grid of samples) for the arms that have one."""
    found = []
    for arm, run_id in arms.items():
        file = root.runs / run_id / "samples.png"
        if file.exists():
            found.append((arm, picture(file.read_bytes(), f"Samples of {words(arm)}")))
    return found


def severity_plot(truth: Truth, pool: Pool) -> Picture | None:
    """Draw the median level against true severity, a line per kind."""
    if not truth.kinds:
        return None
    finite = pool.sigma_min[pool.sigma_min > 0]
    png = plots.severity_medians(
        {kind.name: kind.medians for kind in truth.kinds},
        top=float(finite.max()) if len(finite) else 1.0,
        title="Median level against what was really done",
    )
    return picture(png, "Median sigma_min against true severity, per kind of damage")
