"""Plots of the decision: levels of the images, and how many images each noise band gets.

Shapes: N images, B noise bands.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from pipelines.report.drawing.style import (
    LIGHT,
    Theme,
    arm_colour,
    label_right,
    log_sigma_axis,
    note,
    panel,
    percent_axis,
    png,
    source_colour,
    words,
)

SIGMA_LABEL = "noise level σ (standard deviation of the noise; data in [−1, 1])"


def sigma_min_cdf(
    sigma_min_by_source: Mapping[str, ArrayLike],
    *,
    title: str = "Images that may be used at a noise level",
    theme: Theme = LIGHT,
) -> bytes:
    """Draw, per source, the share of images that are usable at each noise level.

    Args:
        sigma_min_by_source: source to sigma_min (N,); 0 = usable everywhere, NaN = never. The
            curves start at the share of zeros and end short of 100 % by the share of NaN.
        title: above the plot.
        theme: colours.

    Returns:
        PNG bytes.
    """
    levels = {name: np.asarray(v, np.float64) for name, v in sigma_min_by_source.items()}
    figure, axes = panel(theme, title=title, xlabel=SIGMA_LABEL, ylabel="share of the source")
    axes.set_ylim(0, 1.02)
    percent_axis(axes)
    lowest, highest = _level_range(levels.values())
    log_sigma_axis(axes, lowest, highest)
    names, labels = list(levels), []
    for name, values in levels.items():
        if not len(values):
            continue
        crossing = np.sort(values[(values > 0) & np.isfinite(values)])
        at_zero = (values == 0).mean()
        x = np.concatenate([[lowest], crossing, [highest]])
        y = at_zero + np.arange(len(crossing) + 1) / len(values)
        colour = source_colour(name, names, theme)
        axes.step(x, [*y, y[-1]], where="post", color=colour, linewidth=1.8)
        labels.append((float(y[-1]), name, colour))
    label_right(axes, labels, theme)
    return png(figure)


def _level_range(all_levels: Iterable[NDArray[np.float64]]) -> tuple[float, float]:
    values = np.concatenate([np.empty(0), *all_levels])
    crossing = values[np.isfinite(values) & (values > 0)]
    if not len(crossing):
        return 0.01, 10.0
    return float(crossing.min()) / 1.5, float(crossing.max()) * 1.5


def effective_samples(
    counts_by_arm: Mapping[str, ArrayLike],
    bands: ArrayLike,
    prior_share: ArrayLike | None = None,
    *,
    title: str = "Images that each noise band can draw from",
    theme: Theme = LIGHT,
) -> bytes:
    """Draw how many images are usable in each noise band, with the training prior behind.

    Args:
        counts_by_arm: arm to counts (B,).
        bands: ascending edges (B + 1,).
        prior_share: share of the training draws in each band (B,); none leaves it out.
        title: above the plot.
        theme: colours.

    Returns:
        PNG bytes.
    """
    edges = np.asarray(bands, np.float64)
    figure, axes = panel(theme, title=title, xlabel=SIGMA_LABEL, ylabel="images")
    log_sigma_axis(axes, edges[0], edges[-1])
    counts = {name: np.asarray(values, np.float64) for name, values in counts_by_arm.items()}
    top = max([float(c.max()) for c in counts.values()] or [1.0]) * 1.2
    axes.set_ylim(0, max(top, 1.0))
    if prior_share is not None:
        _draw_prior(axes, edges, np.asarray(prior_share, np.float64), theme)
    labels = []
    for name, values in counts.items():
        colour = arm_colour(name, list(counts), theme)
        axes.stairs(values, edges, color=colour, linewidth=1.8, baseline=None)
        labels.append((float(values[-1]), words(name), colour))
    if not counts:
        note(axes, "no arm was trained", theme)
    label_right(axes, labels, theme)
    return png(figure)


def _draw_prior(
    axes: Axes, edges: NDArray[np.float64], share: NDArray[np.float64], theme: Theme
) -> None:
    # The area has no unit of its own here: its shape says where the trainer spends its draws.
    height = 0.45 * axes.get_ylim()[1] * share / max(float(share.max()), 1e-12)
    axes.stairs(height, edges, fill=True, color=theme.fill, zorder=0.5)
    small = {"fontsize": 8, "color": theme.muted, "va": "top"}
    axes.text(0.01, 0.985, "grey: where the training draws fall", small, transform=axes.transAxes)


def severity_medians(
    medians_by_kind: Mapping[str, Sequence[tuple[float, float]]],
    *,
    top: float,
    title: str,
    theme: Theme = LIGHT,
) -> bytes:
    """Draw the median sigma_min against the rank of the true severity, a line per kind.

    Args:
        medians_by_kind: kind to (severity, median sigma_min), severities ascending; an infinite
            median ("never") is drawn at the upper edge.
        top: largest finite level there is.
        title: above the plot.
        theme: colours.

    Returns:
        PNG bytes.
    """
    figure, axes = panel(
        theme, title=title, xlabel="step of true severity", ylabel="median sigma_min (σ)"
    )
    kinds = list(medians_by_kind)
    positive = [m for rows in medians_by_kind.values() for _, m in rows if 0 < m < np.inf]
    floor = min(positive, default=0.01) / 2
    never = top * 2
    axes.set_yscale("log")
    axes.set_ylim(floor * 0.8, never * 1.25)
    labels = []
    for kind, rows in medians_by_kind.items():
        colour = source_colour(kind, kinds, theme)
        y = np.clip([m for _, m in rows], floor, never)
        axes.plot(np.arange(1, len(rows) + 1), y, "o-", color=colour, linewidth=1.6, markersize=4)
        labels.append((float(y[-1]), words(kind), colour))
    steps = max((len(rows) for rows in medians_by_kind.values()), default=1)
    axes.set_xticks(range(1, steps + 1))
    axes.set_xlim(0.8, steps + 0.2)
    ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if floor < t < top * 1.3]
    ticks = ticks[:: max(1, len(ticks) // 5)]
    axes.set_yticks([floor, *ticks, never], ["0", *[f"{t:g}" for t in ticks], "never"])
    axes.minorticks_off()
    label_right(axes, labels, theme)
    return png(figure)
