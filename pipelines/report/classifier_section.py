"""What the page shows of the noise classifier."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from ambient_omni.data.packs import PackSet
from pipelines.measures import curves_slice
from pipelines.pool_curves import EVERY_SOURCE, dataset_level, pool_curves
from pipelines.report import plots
from pipelines.report.gallery import GalleryImage, thumbnails
from pipelines.report.pictures import Picture, classifier_plot, picture
from pipelines.report.pool import Pool
from schemas.errors import TableMissing
from schemas.root import Root

NUM_CROSSING_CURVES = 4
DEFAULT_TAU = 0.45  # where the main policy reads no threshold


@dataclass(frozen=True)
class Curve:
    """One image and what the classifier says of it."""

    image: GalleryImage
    plot: Picture


@dataclass(frozen=True)
class Control:
    """One kind of planted damage: what was planted, and whether it was found."""

    kind: str
    severity: str
    bound: str
    found: bool


@dataclass(frozen=True)
class ClassifierSection:
    """Everything of one classifier. `tau` is None where the main policy reads no threshold.

    `sources` is one curve a source of the pool, and a sentence with the level of each; None where
    none was graded.
    """

    question: str
    num_folds: int
    plot: Picture
    sources: Picture | None
    tau: float | None
    curves: list[Curve]
    controls: list[Control]
    bar: float | None


def classifier_section(
    root: Root,
    classifier_id: str,
    policy_id: str,
    pool: Pool,
    pack: PackSet,
    truth_words: Sequence[str] | None,
) -> ClassifierSection:
    """Read a classifier, its positive control, and the curves of a few images.

    Raises:
        TableMissing: there is no such classifier.
    """
    found = root.tables.read("noise_classifiers", where={"classifier_id": classifier_id})
    if not found.num_rows:
        raise TableMissing(f"there is no noise classifier {classifier_id}: train it first")
    row = found.to_pylist()[0]
    tau = _tau(root, policy_id)
    control = json.loads(row["control"])
    return ClassifierSection(
        row["question"].replace("_", " "),
        row["num_folds"],
        classifier_plot(row),
        _sources(root, classifier_id, [p.batch for p in pack.packs], tau),
        tau,
        _curves(root, row, tau, pool, pack, truth_words),
        _controls(control),
        control.get("bar"),
    )


def _sources(
    root: Root, classifier_id: str, batches: Sequence[str], tau: float | None
) -> Picture | None:
    """Draw the mean curve of every source of the batches that were graded."""
    curves, levels = {}, []
    for batch in batches:
        where = curves_slice(classifier_id, batch)
        if root.tables.fingerprint("noise_curves", where) is None:
            continue
        table = pool_curves(root, batch, classifier_id)
        for source in pc.unique(table["source"]).to_pylist():
            rows = table.filter(pc.equal(table["source"], source))
            name = "all" if source == EVERY_SOURCE else str(source)
            name = name if len(batches) == 1 else f"{batch}: {name}"
            sigmas, logits, errors = (
                rows[c].to_numpy() for c in ("sigma", "mean_logit", "standard_error")
            )
            level = dataset_level(logits, sigmas, DEFAULT_TAU if tau is None else tau)
            curves[name] = (sigmas, logits, errors)
            levels.append(f"{name}: {'never' if level is None else f'{level:.2g}'}")
    if not curves:
        return None
    words = f"Level from which on the mean curve of a source passes τ: {'; '.join(levels)}"
    return picture(plots.mean_curves(curves, tau=tau), words)


def _tau(root: Root, policy_id: str) -> float | None:
    rows = root.tables.read("policies", where={"policy_id": policy_id}).to_pylist()
    tau = json.loads(rows[0]["parameters"]).get("tau") if rows else None
    return None if tau is None else float(tau)


def _controls(control: Mapping[str, Any]) -> list[Control]:
    return [
        Control(
            kind.replace("_", " "),
            f"{finding['severity']:g}",
            f"{finding['tv_lower_bound']:.2f} ± {finding['tv_standard_error']:.2f}",
            bool(finding["found"]),
        )
        for kind, finding in control.get("planted", {}).items()
    ]


def _curves(
    root: Root,
    row: Mapping[str, Any],
    tau: float | None,
    pool: Pool,
    pack: PackSet,
    truth_words: Sequence[str] | None,
) -> list[Curve]:
    places = _examples(pool)
    found = root.tables.read(
        "noise_curves",
        ["sample_row", "logits", "logit_standard_error"],
        {
            "classifier_id": row["classifier_id"],
            "sample_row": pool.sample_rows[places].tolist(),
        },
    ).to_pylist()
    curves = {curve["sample_row"]: curve for curve in found}
    places = np.array([p for p in places if int(pool.sample_rows[p]) in curves], np.int64)
    drawn = []
    for place, image in zip(places, thumbnails(places, pool, pack, truth_words), strict=True):
        curve, level = curves[int(pool.sample_rows[place])], float(pool.sigma_min[place])
        png = plots.probability_curve(
            row["sigmas"],
            curve["logits"],
            curve["logit_standard_error"],
            tau=tau,
            sigma_min=None if np.isnan(level) else level,
            title="",
        )
        drawn.append(Curve(image, picture(png, f"P(trusted) over noise levels: {image.level}")))
    return drawn


def _examples(pool: Pool) -> NDArray[np.int64]:
    """Choose one image that is usable everywhere, some from a level on, and one that never is."""
    order, levels = pool.by_level, pool.sigma_min[pool.by_level]
    crossing = order[levels > 0]
    shares = np.linspace(0.1, 0.9, NUM_CROSSING_CURVES)
    chosen = (
        order[levels == 0][:1],
        crossing[np.unique((shares * len(crossing)).astype(int))] if len(crossing) else crossing,
        order[np.isnan(levels)][:1],
    )
    return np.concatenate(chosen)
