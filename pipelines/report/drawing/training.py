"""Plots of training runs. Shapes: L noise levels, T moments of a run."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from pipelines.report.drawing.levels import SIGMA_LABEL
from pipelines.report.drawing.style import (
    LIGHT,
    TEXT_POINTS,
    Theme,
    arm_colour,
    label_right,
    log_sigma_axis,
    note,
    panel,
    png,
    words,
)

BAND = 2.0


def training_curves(
    curves_by_arm: Mapping[str, tuple[ArrayLike, ArrayLike]],
    best_by_arm: Mapping[str, float] | None = None,
    *,
    title: str,
    ylabel: str,
    theme: Theme = LIGHT,
) -> bytes:
    """Draw a quantity over training, a line per arm; a ring marks the selected checkpoint.

    Args:
        curves_by_arm: arm to (images seen (T,), values (T,)).
        best_by_arm: arm to the images seen at its selected checkpoint.
        title: above the plot.
        ylabel: the quantity.
        theme: colours.

    Returns:
        PNG bytes.
    """
    figure, axes = panel(theme, title=title, xlabel="thousand images seen", ylabel=ylabel)
    labels, all_values = [], [np.empty(0)]
    for name, (seen, values) in curves_by_arm.items():
        x, y = np.asarray(seen, np.float64) / 1000, np.asarray(values, np.float64)
        if not len(x):
            continue
        colour = arm_colour(name, list(curves_by_arm), theme)
        axes.plot(x, y, "-" if len(x) > 1 else "o", color=colour, linewidth=1.6)
        best = (best_by_arm or {}).get(name)
        if best is not None:
            place = int(np.abs(x - best / 1000).argmin())
            axes.plot(
                x[place], y[place], "o", mec=colour, mfc=theme.background, mew=1.8, markersize=7
            )
        labels.append((float(y[-1]), words(name), colour))
        all_values.append(y)
    values = np.concatenate(all_values)
    if not len(values):
        note(axes, "nothing was logged", theme)
        return png(figure)
    axes.set_xlim(left=0)
    axes.margins(x=0)
    # The first moments are far above the rest and would flatten it.
    low, high = float(values.min()), float(np.quantile(values, 0.97))
    axes.set_ylim(low - 0.06 * (high - low + 1e-9), high + 0.12 * (high - low + 1e-9))
    label_right(axes, labels, theme)
    return png(figure)


def heldout_difference(
    sigmas: ArrayLike,
    difference_by_arm: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    baseline: str,
    arm_names: list[str] | None = None,
    title: str = "Held-out loss per noise level",
    theme: Theme = LIGHT,
) -> bytes:
    """Draw each arm's held-out loss per level relative to the baseline arm's.

    Args:
        sigmas: levels (L,), ascending.
        difference_by_arm: arm to (relative difference (L,), its standard error (L,)), both
            fractions of the baseline's loss; below 0 is better.
        baseline: name of the arm at 0.
        arm_names: all arms of the report, which decide the colours.
        title: above the plot.
        theme: colours.

    Returns:
        PNG bytes.
    """
    x = np.asarray(sigmas, np.float64)
    names = arm_names or [baseline, *difference_by_arm]
    figure, axes = panel(
        theme, title=title, xlabel=SIGMA_LABEL, ylabel=f"loss relative to {words(baseline)}"
    )
    log_sigma_axis(axes, x[0], x[-1])
    labels = [(0.0, words(baseline), arm_colour(baseline, names, theme))]
    axes.axhline(0, color=labels[0][2], linewidth=1.8)
    extent = 0.01
    for name, (difference, error) in difference_by_arm.items():
        y, e = np.asarray(difference, np.float64), np.asarray(error, np.float64)
        colour = arm_colour(name, names, theme)
        axes.fill_between(x, y - BAND * e, y + BAND * e, color=colour, alpha=0.16, lw=0)
        axes.plot(x, y, "o-", color=colour, linewidth=1.8, markersize=3.5)
        labels.append((float(y[-1]), words(name), colour))
        extent = max(extent, float(np.abs(y).max()) * 1.15)
    axes.set_ylim(-_lower(difference_by_arm, extent), extent)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:+g} %" if value else "0")
    axes.text(
        0.01,
        0.03,
        "below the line is better",
        transform=axes.transAxes,
        fontsize=TEXT_POINTS - 1,
        color=theme.muted,
    )
    label_right(axes, labels, theme)
    return png(figure)


def _lower(difference_by_arm: Mapping[str, tuple[ArrayLike, ArrayLike]], extent: float) -> float:
    lowest = min((float(np.min(np.asarray(d))) for d, _ in difference_by_arm.values()), default=0)
    return max(-lowest * 1.25, 0.25 * extent)
