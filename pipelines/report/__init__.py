"""The report: one self-contained page about a pool, its levels and the models trained on it."""

from pathlib import Path

from pipelines.report.inputs import ReportInputs
from schemas.root import Root

__all__ = ["ReportInputs", "build_report"]


def build_report(root: Root, inputs: ReportInputs) -> Path:
    """Write the report and `report.json` beside it; see `pipelines.report.page.build_report`."""
    # Late, because previews use `plots` alone, and the page's imports bring torch along.
    from pipelines.report import page

    return page.build_report(root, inputs)
