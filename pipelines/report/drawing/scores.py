"""Plots of measurements: histograms, and how a score goes with the level. Shape: N images."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from pipelines.report.drawing.style import (
    LIGHT,
    TEXT_POINTS,
    Theme,
    log_axis,
    note,
    panel,
    percent_axis,
    plain,
    png,
    source_colour,
)

NUM_BINS = 40
# Above this ratio of the largest to the smallest value only a logarithmic axis shows the shape.
LOG_RATIO = 25


def score_histogram(
    values_by_source: Mapping[str, ArrayLike],
    *,
    name: str,
    unit: str = "",
    thresholds: Sequence[float] = (),
    theme: Theme = LIGHT,
) -> bytes:
    """Draw the distribution of one score, a line per source, each in shares of its source.

    Args:
        values_by_source: source to scores (N,); NaN (not scored) is left out and counted.
        name: the score.
        unit: its unit, for the axis.
        thresholds: drawn as vertical lines.
        theme: colours.

    Returns:
        PNG bytes.
    """
    values = {source: _finite(v) for source, v in values_by_source.items()}
    label = f"{name} ({unit})" if unit else name
    figure, axes = panel(
        theme, title=name, xlabel=label, ylabel="share per bin", width=3.8, height=2.3
    )
    together = np.concatenate([np.empty(0), *values.values()])
    if not len(together):
        note(axes, "no image has this score", theme)
        return png(figure)
    bins = _bins(together)
    if _is_wide(bins[0], bins[-1]):
        log_axis(axes.xaxis, float(bins[0]), float(bins[-1]))
        axes.set_xlabel(f"{plain(label)}, log scale")
    sources = list(values)
    for source, found in values.items():
        if len(found):
            share = np.histogram(found, bins)[0] / len(found)
            colour = source_colour(source, sources, theme)
            axes.stairs(share, bins, color=colour, linewidth=1.6, label=plain(source))
            axes.stairs(share, bins, color=colour, alpha=0.12, fill=True)
    for threshold in thresholds:
        axes.axvline(threshold, color=theme.text, linewidth=1, linestyle=(0, (4, 3)))
    percent_axis(axes)
    axes.set_ylim(bottom=0)
    _legend(axes, theme)
    return png(figure)


def score_against_level(
    score: ArrayLike,
    sigma_min: ArrayLike,
    *,
    name: str,
    unit: str = "",
    theme: Theme = LIGHT,
) -> bytes:
    """Draw one score against sigma_min: a dot per image, 0 at the left edge, never at the right.

    Args:
        score: (N,); NaN is left out.
        sigma_min: (N,); 0 = usable everywhere, NaN = never.
        name: the score.
        unit: its unit.
        theme: colours.

    Returns:
        PNG bytes.
    """
    scores, levels = np.asarray(score, np.float64), np.asarray(sigma_min, np.float64)
    label = f"{name} ({unit})" if unit else name
    figure, axes = panel(
        theme,
        title=f"{name} and the level",
        xlabel="sigma_min (σ)",
        ylabel=label,
        width=3.8,
        height=2.3,
    )
    known = np.isfinite(scores)
    scores, levels = scores[known], levels[known]
    crossing = levels[np.isfinite(levels) & (levels > 0)]
    low = float(crossing.min()) if len(crossing) else 0.1
    high = float(crossing.max()) if len(crossing) else 1.0
    # The two special values get places of their own beside the logarithmic axis.
    zero, never = low / 2.5, high * 2.5
    x = np.where(np.isnan(levels), never, np.where(levels == 0, zero, levels))
    jitter = 1.12 ** np.sin(1e3 * np.arange(len(x)))
    x = np.where((levels > 0) & np.isfinite(levels), x, x * jitter)
    axes.set_xscale("log")
    alpha = float(np.clip(300 / max(len(x), 1), 0.12, 0.6))
    axes.scatter(x, scores, s=7, color=theme.series[0], alpha=alpha, linewidths=0)
    if len(scores) and _is_wide(scores.min(), scores.max()):
        log_axis(axes.yaxis, float(scores.min()), float(scores.max()))
    _level_ticks(axes, low, high, zero, never)
    return png(figure)


def _level_ticks(axes: Axes, low: float, high: float, zero: float, never: float) -> None:
    candidates = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
    ticks = [t for t in candidates if low * 0.95 <= t <= high * 1.05]
    ticks = ticks[:: max(1, (len(ticks) + 3) // 4)]
    axes.set_xticks([zero, *ticks, never], ["0", *[f"{t:g}" for t in ticks], "never"])
    axes.minorticks_off()
    axes.set_xlim(zero / 1.4, never * 1.4)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    return array[np.isfinite(array)]


def _is_wide(low: float, high: float) -> bool:
    return low > 0 and high / low > LOG_RATIO


def _bins(values: NDArray[np.float64]) -> NDArray[np.float64]:
    # A few extreme images must not squeeze all others into one bin.
    low, high = np.quantile(values, [0.002, 0.998])
    if high <= low:
        return np.linspace(low - 0.5, low + 0.5, 12)
    if _is_wide(low, high):
        return np.geomspace(low, high, NUM_BINS + 1)
    return np.linspace(low, high, NUM_BINS + 1)


def _legend(axes: Axes, theme: Theme) -> None:
    axes.legend(
        frameon=False,
        fontsize=TEXT_POINTS - 0.5,
        labelcolor="linecolor",
        handlelength=0,
        handletextpad=0,
        loc="best",
    )
