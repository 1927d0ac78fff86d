"""Plots as PNG bytes from plain arrays: the report's, and the orchestrator's metadata previews."""

from pipelines.report.drawing.classifier import mean_curves, probability_curve, tv_bound
from pipelines.report.drawing.levels import effective_samples, severity_medians, sigma_min_cdf
from pipelines.report.drawing.mosaic import encode, mosaic
from pipelines.report.drawing.scores import score_against_level, score_histogram
from pipelines.report.drawing.style import LIGHT, Theme
from pipelines.report.drawing.training import heldout_difference, training_curves
from pipelines.report.drawing.windows import needed_context, window_shares

__all__ = [
    "LIGHT",
    "Theme",
    "effective_samples",
    "encode",
    "heldout_difference",
    "mean_curves",
    "mosaic",
    "needed_context",
    "probability_curve",
    "score_against_level",
    "score_histogram",
    "severity_medians",
    "sigma_min_cdf",
    "training_curves",
    "tv_bound",
    "window_shares",
]
