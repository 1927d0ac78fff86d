"""Plots of windows for foreign images. Shapes: L noise levels, S crop sizes, N images."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from pipelines.report.drawing.levels import SIGMA_LABEL
from pipelines.report.drawing.style import (
    LIGHT,
    TEXT_POINTS,
    Theme,
    label_right,
    log_sigma_axis,
    panel,
    percent_axis,
    plain,
    png,
    source_colour,
)


def needed_context(
    sigmas: ArrayLike,
    needed: ArrayLike,
    reach: Mapping[int, float],
    *,
    title: str = "Context that denoising needs",
    theme: Theme = LIGHT,
) -> bytes:
    """Draw the side of the window that each level needs, and how far each crop size reaches.

    Args:
        sigmas: levels (L,), ascending.
        needed: the side that each level needs (L,), positions of the noise space.
        reach: side of a crop to the level up to which it is context enough; 0: at no level.
        title: above the plot.
        theme: colours.

    Returns:
        PNG bytes.
    """
    x, y = np.asarray(sigmas, np.float64), np.asarray(needed, np.float64)
    figure, axes = panel(theme, title=title, xlabel=SIGMA_LABEL, ylabel="side of the window")
    log_sigma_axis(axes, x[0], x[-1])
    axes.set_ylim(0, max(float(y.max()), *map(float, reach), 1.0) * 1.1)
    axes.plot(x, y, "o-", color=theme.series[0], linewidth=1.8, markersize=3.5)
    labels = []
    for side, level in reach.items():
        colour = theme.series[2] if level > 0 else theme.muted
        axes.axhline(side, color=colour, linewidth=1, linestyle=(0, (4, 3)))
        if level > 0:
            axes.plot([level], [side], "o", mec=colour, mfc=theme.background, mew=1.8)
        labels.append(
            (float(side), f"{side}: σ < {level:.3g}" if level > 0 else f"{side}: none", colour)
        )
    label_right(axes, labels, theme)
    return png(figure)


def window_shares(
    sigma_max_by_source: Mapping[str, ArrayLike],
    *,
    title: str = "Windows of the images",
    theme: Theme = LIGHT,
) -> bytes:
    """Draw, per source, the share of images whose window ends at each level.

    Args:
        sigma_max_by_source: source to sigma_max (N,); 0: the image has no window.
        title: above the plot.
        theme: colours.

    Returns:
        PNG bytes.
    """
    values = {name: np.asarray(v, np.float64) for name, v in sigma_max_by_source.items()}
    ends = np.unique(np.concatenate([[0.0], *values.values()]))
    figure, axes = panel(
        theme, title=title, xlabel="usable below σ", ylabel="share of the source", height=2.3
    )
    width = 0.8 / max(len(values), 1)
    for place, (name, found) in enumerate(values.items()):
        shares = [(found == end).mean() if len(found) else 0.0 for end in ends]
        left = np.arange(len(ends)) + place * width - 0.4 + width / 2
        colour = source_colour(name, list(values), theme)
        axes.bar(left, shares, width, color=colour, label=plain(name))
    axes.set_xticks(np.arange(len(ends)), ["none", *[f"{end:.3g}" for end in ends[1:]]])
    axes.set_ylim(0, 1)
    percent_axis(axes)
    axes.legend(frameon=False, fontsize=TEXT_POINTS - 0.5, labelcolor="linecolor", handlelength=0)
    return png(figure)
