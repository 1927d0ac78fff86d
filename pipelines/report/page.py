"""The report: one self-contained HTML file, and its figures as JSON beside it."""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from ambient_omni.code_version import code_version
from ambient_omni.config import TrainConfig
from ambient_omni.packs import PackSet
from pipelines.report import pictures
from pipelines.report.comparison import Comparison, display, read_comparison
from pipelines.report.inputs import ReportInputs
from pipelines.report.pool import Pool, Truth, read_pool, read_truth
from schemas.errors import BadInput, TableMissing
from schemas.root import Root

FIGURES_FILE = "report.json"
_SCORE_TABLES = ("scores/classical", "ood_scores")


def build_report(root: Root, inputs: ReportInputs) -> Path:
    """Write the report and `report.json` beside it; return the page's path.

    Raises:
        BadInput: an arm has no run, no held-out loss, or the truth file is none.
        AnnotationMissing: a pool sample has no level.
        PackMissing: a pool batch has no complete pack.
        TableMissing: the classifier is not there.
    """
    runs = _runs(root, inputs)
    comparison = read_comparison(root, inputs.arms, inputs.evaluation_set)
    pool = read_pool(root, inputs.main_policy_id, inputs.pool_batches)
    truth = None if inputs.truth is None else read_truth(inputs.truth, pool)
    figures = _figures(comparison, pool, truth)
    parts = {
        "title": inputs.title,
        "display": display,
        "level_words": pictures.level_words,
        "comparison": comparison,
        "pool": pool,
        "truth": truth,
        "attempts": _attempts(root),
        "provenance": _provenance(root, inputs, runs),
        **_drawn(root, inputs, runs, comparison, pool, truth),
    }
    path = inputs.output or root.reports / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, _template().render(parts))
    _write(path.with_name(FIGURES_FILE), json.dumps(figures, indent=1) + "\n")
    return path


def _drawn(
    root: Root,
    inputs: ReportInputs,
    runs: Mapping[str, dict[str, Any]],
    comparison: Comparison,
    pool: Pool,
    truth: Truth | None,
) -> dict[str, Any]:
    pack = PackSet.open(root.packs, inputs.transform, inputs.pool_batches)
    first = TrainConfig.model_validate_json(next(iter(runs.values()))["config"])
    drawn = {
        "gallery": pictures.gallery(pool, pack),
        "level_plot": pictures.level_plot(pool),
        "score_plots": pictures.score_plots(root, pool, _SCORE_TABLES),
        "effective_plot": pictures.effective_plot(_levels_by_arm(root, runs), first),
        "training_plots": pictures.training_plots(root, inputs.arms, comparison),
        "heldout_plot": pictures.heldout_plot(comparison, inputs.baseline_arm),
        "sample_grids": pictures.sample_grids(root, inputs.arms),
        "severity_plot": None if truth is None else pictures.severity_plot(truth, pool),
        "classifier": None,
    }
    if inputs.classifier_id is not None:
        row = _classifier(root, inputs.classifier_id)
        tau = _tau(root, inputs.main_policy_id)
        drawn["classifier"] = {
            "question": row["question"].replace("_", " "),
            "num_folds": row["num_folds"],
            "control": _control_lines(json.loads(row["control"])),
            "plot": pictures.classifier_plot(row),
            "tau": tau,
            "curves": pictures.curve_plots(
                root, inputs.classifier_id, row["sigmas"], tau, pool, pack
            ),
        }
    return drawn


def _runs(root: Root, inputs: ReportInputs) -> dict[str, dict[str, Any]]:
    if not inputs.arms:
        raise BadInput("a report needs at least one trained arm")
    wanted = list(inputs.arms.values())
    rows = root.tables.read("training_runs", where={"run_id": wanted}).to_pylist()
    found = {row["run_id"]: row for row in rows}
    for arm, run_id in inputs.arms.items():
        if run_id not in found:
            raise BadInput(f"arm {arm} has no training run {run_id}: train it first")
    return {arm: found[run_id] for arm, run_id in inputs.arms.items()}


def _levels_by_arm(
    root: Root, runs: Mapping[str, dict[str, Any]]
) -> dict[str, tuple[pictures.Floats, pictures.Floats]]:
    levels = {}
    for arm, run in runs.items():
        found = root.tables.read(
            "noise_annotations",
            ["sigma_min", "sigma_max"],
            {"policy_id": run["policy_id"], "ingest_batch": run["ingest_batches"]},
        )
        sigma_min, sigma_max = (c.to_numpy() for c in found.columns)
        levels[arm] = (sigma_min, sigma_max)
    return levels


def _classifier(root: Root, classifier_id: str) -> dict[str, Any]:
    rows = root.tables.read("noise_classifiers", where={"classifier_id": classifier_id})
    if not rows.num_rows:
        raise TableMissing(f"there is no noise classifier {classifier_id}: train it first")
    row: dict[str, Any] = rows.to_pylist()[0]
    return row


def _tau(root: Root, policy_id: str) -> float:
    rows = root.tables.read("policies", where={"policy_id": policy_id}).to_pylist()
    return float(json.loads(rows[0]["parameters"])["tau"])


def _control_lines(control: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Flatten the control's JSON into lines of name and value; lists of levels are left out."""
    lines = []
    for name, value in control.items():
        if isinstance(value, Mapping):
            lines += [(f"{name}: {n}", v) for n, v in _control_lines(value)]
        elif not isinstance(value, list):
            text = f"{value:.3g}" if isinstance(value, float) else str(value)
            lines.append((name.replace("_", " "), text))
    return lines


def _attempts(root: Root) -> list[tuple[str, str, str, str, int]]:
    """Count listed items by batch, source, status and reason."""
    keys = ["ingest_batch", "source", "status", "reason"]
    rows = root.tables.read("ingest_attempts", keys)
    counts = rows.group_by(keys).aggregate([([], "count_all")])
    counts = counts.sort_by([(key, "ascending") for key in keys])
    return [
        (r["ingest_batch"], r["source"], r["status"], r["reason"] or "", r["count_all"])
        for r in counts.to_pylist()
    ]


def _provenance(
    root: Root, inputs: ReportInputs, runs: Mapping[str, dict[str, Any]]
) -> list[tuple[str, str]]:
    lines = [
        ("noise space", inputs.transform.noise_space),
        ("main policy", inputs.main_policy_id),
        ("noise classifier", inputs.classifier_id or "none"),
        ("code version", code_version()),
        ("pool batches", ", ".join(inputs.pool_batches)),
    ]
    for arm, run in runs.items():
        versions = ", ".join(f"{k}@{v}" for k, v in json.loads(run["table_versions"]).items())
        lines.append(
            (f"run: {display(arm)}", f"{run['run_id']} (policy {run['policy_id']}; {versions})")
        )
        audit = json.loads(run["audit"])
        below = {k: v for k, v in audit.items() if isinstance(v, int | float)}
        lines.append(
            (
                f"audit: {display(arm)}",
                ", ".join(f"{k.replace('_', ' ')} {v:,}" for k, v in below.items()) or "none",
            )
        )
    return lines


def _figures(comparison: Comparison, pool: Pool, truth: Truth | None) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "headline": comparison.headline(),
        "ranking": comparison.ranking,
        "held_out_total": {arm: loss.total for arm, loss in comparison.losses.items()},
        "num_held_out_images": next(iter(comparison.losses.values())).num_images,
        "paired_difference_to_best": {
            arm: vars(comparison.total_difference(arm, comparison.ranking[0]))
            for arm in comparison.ranking[1:]
        },
        "pool_shares": pool.shares,
    }
    if truth is not None:
        undamaged = truth.undamaged
        figures["truth"] = {
            "blur_like_rank_correlation": _number(truth.blur_like_rank_correlation),
            "kinds": {
                s.kind: {
                    "rank_correlation": _number(s.rank_correlation),
                    "medians_grow": s.medians_grow,
                    "median_sigma_min": [[v, _number(m)] for v, m in s.medians],
                }
                for s in truth.severities
            },
            "undamaged_usable_everywhere": float((undamaged == 0).mean())
            if len(undamaged)
            else None,
        }
    return figures


def _number(value: float) -> float | str | None:
    """JSON has neither infinity nor NaN."""
    if np.isnan(value):
        return None
    return "never" if np.isinf(value) else value


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    source = (resources.files("pipelines.report") / "page.html").read_text(encoding="utf-8")
    return environment.from_string(source)


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
