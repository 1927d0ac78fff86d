"""Plots of the noise classifier. Shape: L noise levels."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from pipelines.report.drawing.levels import SIGMA_LABEL
from pipelines.report.drawing.style import (
    LIGHT,
    TEXT_POINTS,
    Theme,
    log_sigma_axis,
    panel,
    percent_axis,
    png,
)

# Two standard errors each way: about 95 %.
BAND = 2.0


def tv_bound(
    sigmas: ArrayLike,
    lower_bound: ArrayLike,
    standard_error: ArrayLike,
    *,
    title: str = "How well reference and pool can be told apart",
    theme: Theme = LIGHT,
) -> bytes:
    """Draw the classifier's lower bound of the total variation per level with its 95 % band.

    Args:
        sigmas: levels (L,), ascending.
        lower_bound: 2 x balanced accuracy - 1 (L,).
        standard_error: of it (L,).
        title: above the plot.
        theme: colours.

    Returns:
        PNG bytes.
    """
    x, y, e = (np.asarray(v, np.float64) for v in (sigmas, lower_bound, standard_error))
    figure, axes = panel(
        theme, title=title, xlabel=SIGMA_LABEL, ylabel="total variation, lower bound"
    )
    log_sigma_axis(axes, x[0], x[-1])
    axes.fill_between(x, y - BAND * e, y + BAND * e, color=theme.series[0], alpha=0.18, lw=0)
    axes.plot(x, y, "o-", color=theme.series[0], linewidth=1.8, markersize=3.5)
    axes.axhline(0, color=theme.muted, linewidth=1)
    axes.set_ylim(min(-0.1, float((y - BAND * e).min())), 1.0)
    axes.text(
        x[0] * 1.05,
        -0.02,
        "0: cannot be told apart",
        ha="left",
        va="top",
        fontsize=8,
        color=theme.muted,
    )
    return png(figure)


def probability_curve(
    sigmas: ArrayLike,
    logits: ArrayLike,
    standard_error: ArrayLike,
    *,
    tau: float | None,
    sigma_min: float | None,
    title: str,
    theme: Theme = LIGHT,
) -> bytes:
    """Draw P(trusted) of one image over noise levels with its band, tau and the level.

    Args:
        sigmas: levels (L,), ascending.
        logits: mean logit of P(trusted) (L,).
        standard_error: of the logits (L,).
        tau: the threshold; none draws no line.
        sigma_min: the level that was decided; 0 and none (never) draw no marker.
        title: above the plot.
        theme: colours.

    Returns:
        PNG bytes.
    """
    x, y, e = (np.asarray(v, np.float64) for v in (sigmas, logits, standard_error))
    figure, axes = panel(
        theme,
        title=title,
        xlabel="noise level σ",
        ylabel="P(trusted)",
        width=3.4,
        height=2.3,
    )
    log_sigma_axis(axes, x[0], x[-1])
    axes.set_ylim(0, 1)
    percent_axis(axes)
    colour = theme.series[0]
    axes.fill_between(
        x, _sigmoid(y - BAND * e), _sigmoid(y + BAND * e), color=colour, alpha=0.2, lw=0
    )
    axes.plot(x, _sigmoid(y), color=colour, linewidth=1.8)
    if tau is not None:
        axes.axhline(tau, color=theme.text, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(
            x[-1], tau - 0.03, f"τ = {tau:g}", ha="right", va="top", fontsize=8, color=theme.text
        )
    if sigma_min is not None and sigma_min > 0:
        _mark_level(axes, sigma_min, theme)
    return png(figure)


def mean_curves(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    *,
    tau: float | None,
    title: str = "What it says of each source as a whole",
    theme: Theme = LIGHT,
) -> bytes:
    """Draw P(trusted) at the mean logit of each source over noise levels, with its 95 % band.

    Args:
        curves: by source (sigmas, mean logits, standard errors over images), each (L,).
        tau: the threshold; none draws no line.
        title: above the plot.
        theme: colours.

    Returns:
        PNG bytes.
    """
    figure, axes = panel(theme, title=title, xlabel=SIGMA_LABEL, ylabel="P(trusted)")
    for place, (name, values) in enumerate(curves.items()):
        x, y, e = (np.asarray(v, np.float64) for v in values)
        colour = theme.series[place % len(theme.series)]
        band = (_sigmoid(y - BAND * e), _sigmoid(y + BAND * e))
        axes.fill_between(x, *band, color=colour, alpha=0.18, lw=0)
        axes.plot(x, _sigmoid(y), color=colour, linewidth=1.8, label=name)
        log_sigma_axis(axes, x[0], x[-1])
    axes.set_ylim(0, 1)
    percent_axis(axes)
    if tau is not None:
        axes.axhline(tau, color=theme.text, linewidth=1, linestyle=(0, (4, 3)))
    axes.legend(frameon=False, fontsize=TEXT_POINTS - 1, labelcolor=theme.text)
    return png(figure)


def _mark_level(axes: Axes, sigma_min: float, theme: Theme) -> None:
    axes.axvspan(sigma_min, axes.get_xlim()[1], color=theme.series[2], alpha=0.12, lw=0)
    axes.axvline(sigma_min, color=theme.series[2], linewidth=1.4)
    axes.annotate(
        "usable",
        xy=(sigma_min, 0.02),
        xytext=(4, 2),
        textcoords="offset points",
        fontsize=TEXT_POINTS - 1,
        color=theme.series[2],
    )


def _sigmoid(logit: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-np.clip(logit, -60, 60)))
