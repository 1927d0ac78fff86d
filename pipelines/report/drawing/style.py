"""One look for all plots: themes, colours, panels, direct labels, PNG output.

Every function here draws on `matplotlib.figure.Figure` itself, never through pyplot: no global
state, so plots can be made in several threads and beside anybody's own matplotlib settings.
"""

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

# One matplotlib inch is 100 CSS pixels on the page; twice as many dots keep text sharp.
CSS_PIXELS_PER_INCH = 100
DOTS_PER_INCH = 2 * CSS_PIXELS_PER_INCH
TEXT_POINTS = 9.0
# Plots hold few colours; a palette halves the bytes and is not visible.
NUM_PALETTE_COLOURS = 128


@dataclass(frozen=True)
class Theme:
    """Colours of one theme. `series` are colour-blind safe (after Okabe and Ito)."""

    background: str
    text: str
    muted: str
    grid: str
    fill: str
    series: tuple[str, ...]
    sources: tuple[str, ...]


LIGHT = Theme(
    background="#ffffff",
    text="#1d2530",
    muted="#5b6674",
    grid="#e3e7ec",
    fill="#d5dbe3",
    series=("#0072b2", "#d55e00", "#009e73", "#8a5fb0", "#8c6d1f", "#555f6b"),
    sources=("#8a5fb0", "#c77f00", "#2b93c9", "#c2588f", "#6b7683", "#4f7d2c"),
)
# An arm keeps its colour in every plot of every report.
ARM_COLOURS = {"only_reference": 0, "everything": 1, "annotated": 2}


def arm_colour(name: str, names: Sequence[str], theme: Theme) -> str:
    """Return the colour of an arm: a known one has its own, others take what is left in order."""
    if name in ARM_COLOURS:
        return theme.series[ARM_COLOURS[name]]
    others = [n for n in names if n not in ARM_COLOURS]
    free = theme.series[len(ARM_COLOURS) :]
    return free[others.index(name) % len(free)]


def source_colour(name: str, names: Sequence[str], theme: Theme) -> str:
    """Return the colour of an image source, by its place among all of them."""
    return theme.sources[list(names).index(name) % len(theme.sources)]


def panel(
    theme: Theme,
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    width: float = 4.6,
    height: float = 2.9,
) -> tuple[Figure, Axes]:
    """Return a figure of one panel, sizes in hundreds of CSS pixels, title at the left."""
    figure = Figure(
        figsize=(width, height),
        dpi=DOTS_PER_INCH,
        facecolor=theme.background,
        layout=ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.08),
    )
    axes = figure.add_subplot()
    dress(axes, theme)
    axes.set_title(plain(title), loc="left", fontsize=TEXT_POINTS + 1, color=theme.text, pad=8)
    axes.set_xlabel(plain(xlabel), fontsize=TEXT_POINTS, color=theme.muted)
    axes.set_ylabel(plain(ylabel), fontsize=TEXT_POINTS, color=theme.muted)
    return figure, axes


def dress(axes: Axes, theme: Theme) -> None:
    """Take away what carries no data: box, ticks' marks, all but faint horizontal lines."""
    axes.set_facecolor(theme.background)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.muted)
    axes.tick_params(colors=theme.muted, labelsize=TEXT_POINTS - 0.5, length=0, which="both")
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)


def words(name: str) -> str:
    """Return an identifier as words."""
    return name.replace("_", " ")


def plain(text: str) -> str:
    """Return text that matplotlib takes as it stands: a dollar sign would start mathematics."""
    return text.replace("$", r"\$")


# The wider the axis, the fewer numbers in each decade.
_SUBS = ((60, (1.0, 2.0, 5.0)), (3000, (1.0, 3.0)), (float("inf"), (1.0,)))


def log_sigma_axis(axes: Axes, lowest: float, highest: float) -> None:
    """Make x a logarithmic axis of noise levels with plain numbers."""
    log_axis(axes.xaxis, lowest, highest)
    axes.set_xlim(lowest, highest)


def log_axis(axis: XAxis | YAxis, lowest: float, highest: float) -> None:
    """Make an axis logarithmic with plain numbers, few enough for its range."""
    set_scale = axis.axes.set_xscale if isinstance(axis, XAxis) else axis.axes.set_yscale
    set_scale("log")
    subs = next(subs for ratio, subs in _SUBS if highest / lowest < ratio)
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def percent_axis(axes: Axes) -> None:
    """Write the y axis' fractions as percentages."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Move values apart to at least `gap`, keeping their order and about their middle."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = list(wanted)
    for _ in range(50):
        for below, above in itertools.pairwise(order):
            lack = gap - (placed[above] - placed[below])
            if lack > 1e-9:
                placed[below] -= lack / 2
                placed[above] += lack / 2
    return placed


def label_right(axes: Axes, labels: Sequence[tuple[float, str, str]], theme: Theme) -> None:
    """Write (y in data units, text, colour) at the right end of lines, without overlap."""
    if not labels:
        return
    to_axes = axes.transData + axes.transAxes.inverted()
    x = axes.get_xlim()[1]
    heights = [float(to_axes.transform((x, y))[1]) for y, _, _ in labels]
    heights = [min(max(height, 0.0), 1.0) for height in heights]
    for height, (_, text, colour) in zip(spread(heights, 0.085), labels, strict=True):
        axes.annotate(
            plain(text),
            xy=(1.015, height),
            xycoords="axes fraction",
            va="center",
            fontsize=TEXT_POINTS,
            color=colour,
            annotation_clip=False,
        )


def note(axes: Axes, text: str, theme: Theme) -> None:
    """Say in the middle of an empty panel why it is empty."""
    axes.text(
        0.5,
        0.5,
        plain(text),
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=theme.muted,
        fontsize=TEXT_POINTS,
    )


def png(figure: Figure, *, photographs: bool = False) -> bytes:
    """Return the figure as PNG bytes; one with photographs keeps all of its colours."""
    # Not savefig: it lays the figure out and draws it twice, half a second in all.
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    rgba = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    image = Image.fromarray(rgba).convert("RGB")
    if not photographs:
        image = image.quantize(NUM_PALETTE_COLOURS, dither=Image.Dither.NONE)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()
