"""Plots of the report, as small PNGs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.evidence.cells import Arm

matplotlib.use("Agg")

COLOURS: Mapping[str, str] = {
    "only_reference": "#777777",
    "keep_everything": "#c0392b",
    "classifier_hard": "#2471a3",
    "classifier_soft": "#17a2b8",
    "one_level": "#8e44ad",
    "pilot": "#1e8449",
    "all_clean": "#000000",
}
_STYLE = {"all_clean": ":", "only_reference": "--"}


def losses(
    file: Path,
    sigmas: Sequence[float],
    panels: Mapping[str, Mapping[Arm, Sequence[float]]],
) -> None:
    """Draw held-out loss per level, relative to all-clean, a panel a problem."""
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(3.6 * len(panels), 3.5), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, (name, arms) in zip(axes[0], panels.items(), strict=True):
        clean = np.array(arms["all_clean"])
        for arm, loss in arms.items():
            _line(axis, sigmas, 100 * (np.array(loss) / clean - 1), arm)
        axis.set_xscale("log")
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("noise level σ")
    axes[0][0].set_ylabel("held-out loss above all-clean, %")
    # Below, for no corner is free of lines in every panel.
    lines, names = axes[0][0].get_legend_handles_labels()
    figure.legend(lines, names, fontsize=8, loc="outside lower center", ncols=len(names))
    _save(figure, file)


def curves(file: Path, arms: Mapping[Arm, Sequence[tuple[int, float]]]) -> None:
    """Draw validation loss against images seen."""
    figure, axis = pyplot.subplots(figsize=(6.0, 3.2), layout="constrained")
    for arm, points in arms.items():
        seen, loss = zip(*points, strict=True)
        _line(axis, np.array(seen) / 1000, np.array(loss), arm)
    axis.set_xlabel("thousand images seen")
    axis.set_ylabel("validation loss, summed over levels")
    best = min(loss for points in arms.values() for _, loss in points)
    axis.set_ylim(best * 0.98, best * 1.4)
    figure.legend(fontsize=8, loc="outside right center")
    _save(figure, file)


def sweep(
    file: Path, label: str, places: Sequence[float], arms: Mapping[Arm, Sequence[float]]
) -> None:
    """Draw the loss of each arm against what is swept; a place without one (NaN) is left out."""
    figure, axis = pyplot.subplots(figsize=(6.0, 3.2), layout="constrained")
    for arm, values in arms.items():
        _line(axis, np.array(places), np.array(values), arm, marker="o")
    axis.set_xscale("log")
    axis.set_xticks(list(places), [f"{place:g}" for place in places])
    axis.set_xticks([], minor=True)
    axis.set_xlabel(label)
    axis.set_ylabel("held-out loss, summed over levels")
    figure.legend(fontsize=8, loc="outside right center")
    _save(figure, file)


def contact_sheet(file: Path, rows: Mapping[str, np.ndarray], count: int = 16) -> None:
    """Put the first images of each arm side by side, four times as large; uint8 (N, H, W, 3)."""
    figure, axes = pyplot.subplots(len(rows), 1, figsize=(8, 0.72 * len(rows)), squeeze=False)
    for axis, (name, images) in zip(axes[:, 0], rows.items(), strict=True):
        axis.imshow(np.concatenate(list(images[:count]), axis=1), interpolation="nearest")
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)
        axis.set_xticks([])
        axis.set_yticks([])
    _save(figure, file)


def _line(axis: Axes, x: Sequence[float], y: np.ndarray, arm: str, marker: str = "") -> None:
    axis.plot(
        x, y, _STYLE.get(arm, "-"), color=COLOURS.get(arm), marker=marker, markersize=3,
        label=arm.replace("_", " "),
    )  # fmt: skip


def _save(figure: pyplot.Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    # No date and no version inside: the same results give the same bytes.
    figure.savefig(file, dpi=100, metadata={"Software": None})
    pyplot.close(figure)
