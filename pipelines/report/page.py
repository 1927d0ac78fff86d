"""The report: one self-contained HTML file, and its figures as JSON beside it."""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from ambient_omni.data.packs import PackSet
from pipelines.report import pictures
from pipelines.report.classifier_section import classifier_section
from pipelines.report.comparison import Comparison, read_comparison, with_error
from pipelines.report.drawing.style import words
from pipelines.report.figures import figures
from pipelines.report.gallery import gallery, level_words
from pipelines.report.inputs import ReportInputs
from pipelines.report.origins import Run, levels_by_arm, provenance, runs_of, what_came_in
from pipelines.report.pool import Pool, read_pool, read_scores, shares
from pipelines.report.truth import Truth, read_truth
from schemas.root import Root

FIGURES_FILE = "report.json"
NUM_SCORES_SHOWN = 3


def build_report(root: Root, inputs: ReportInputs) -> Path:
    """Write the report and `report.json` beside it; return the page's path.

    The page needs no network. It is the same, byte for byte, as long as the root is.

    Args:
        root: the project.
        inputs: what the report is about. Without arms it shows the pool and its levels alone; an
            arm that has no held-out loss is named and left out of the comparison.

    Raises:
        BadInput: an arm has no run, arms were evaluated on different images, or the truth file
            cannot be read.
        AnnotationMissing: a pool sample has no level.
        PackMissing: a pool batch has no complete pack.
        TableMissing: the classifier is not there.
    """
    runs = runs_of(root, inputs.arms)
    comparison = read_comparison(root, inputs.arms, inputs.evaluation_set)
    pool = read_pool(root, inputs.main_policy_id, inputs.pool_batches)
    truth = None if inputs.truth is None else read_truth(inputs.truth, pool)
    scores = read_scores(root, pool, inputs.pool_batches, inputs.reference_batch)
    main_arm = _main_arm(runs, inputs.main_policy_id)
    found = figures(comparison, main_arm, pool, scores, truth, _references_at_zero(root, inputs))
    page = _environment().get_template("page.html")
    path = inputs.output or root.reports / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    html = page.render(
        title=inputs.title,
        evaluation_set=inputs.evaluation_set,
        comparison=comparison,
        main_arm=main_arm,
        pool=pool,
        truth=truth,
        figures=found,
        came_in=what_came_in(root),
        provenance=provenance(root, inputs, runs, comparison),
        scores=[(score, pictures.score_pictures(score, pool)) for score in scores],
        **_trained(root, inputs, runs, comparison),
        **_pictured(root, inputs, pool, truth),
    )
    _write(path, html)
    _write(path.with_name(FIGURES_FILE), json.dumps(found, indent=1, allow_nan=False) + "\n")
    return path


def _pictured(root: Root, inputs: ReportInputs, pool: Pool, truth: Truth | None) -> dict[str, Any]:
    pack = PackSet.open(root.packs, inputs.transform, inputs.pool_batches)
    words = truth.words if truth else None
    classifier = None
    if inputs.classifier_id is not None:
        classifier = classifier_section(
            root, inputs.classifier_id, inputs.main_policy_id, pool, pack, words
        )
    return {
        "gallery": gallery(pool, pack, words),
        "level_plot": pictures.level_plot(pool),
        "severity_plot": None if truth is None else pictures.severity_plot(truth, pool),
        "classifier": classifier,
    }


def _trained(
    root: Root, inputs: ReportInputs, runs: Mapping[str, Run], comparison: Comparison | None
) -> dict[str, Any]:
    configs = [json.loads(run["config"]) for run in runs.values()]
    effective = pictures.effective_plot(levels_by_arm(root, runs), configs[0]) if configs else None
    return {
        "training_plots": pictures.training_plots(root, inputs.arms, comparison),
        "heldout_plot": comparison and pictures.heldout_plot(comparison, inputs.baseline_arm),
        "sample_grids": pictures.sample_grids(root, inputs.arms),
        "effective_plot": effective,
    }


def _main_arm(runs: Mapping[str, Run], policy_id: str) -> str | None:
    """Return the arm that obeyed the policy whose levels are shown."""
    return next((arm for arm, run in runs.items() if run["policy_id"] == policy_id), None)


def _references_at_zero(root: Root, inputs: ReportInputs) -> float | None:
    """Return the share of the trusted batch that may be used everywhere: 1, or all is wrong."""
    where = {"policy_id": inputs.main_policy_id, "ingest_batch": inputs.reference_batch}
    if inputs.reference_batch is None:
        return None
    levels = root.tables.read("noise_annotations", ["sigma_min"], where)
    if not levels.num_rows:
        return None
    return shares(levels["sigma_min"].to_numpy(zero_copy_only=False))["everywhere"]


def _environment() -> Environment:
    files = resources.files("pipelines.report")
    environment = Environment(
        # Captions, file names and sources come from anybody: everything is escaped.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(lambda name: (files / name).read_text(encoding="utf-8")),
    )
    environment.filters["percent"] = lambda share: f"{share:.0%}"
    environment.globals.update(
        words=words,
        level_words=level_words,
        with_error=with_error,
        shares=shares,
        num_scores_shown=NUM_SCORES_SHOWN,
    )
    return environment


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
