"""The report: one self-contained page about a pool, its levels and the models trained on it."""

from pipelines.report.inputs import ReportInputs
from pipelines.report.page import build_report

__all__ = ["ReportInputs", "build_report"]
