"""Policies whose thresholds are read off batches once, and frozen: later batches fall under them.

Shapes: N samples, L levels, S crop sizes.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, validate_call

from pipelines.measures import (
    classifier_row,
    crop_classifier_row,
    direction_of,
    read_curves,
    read_scores,
    table_row,
    the_version,
)
from pipelines.policies import (
    ClassifierPerSource,
    ClassifierThreshold,
    CropWindow,
    FixedPerSource,
    QualityRank,
    SampleSizeAware,
    levels_of_sources,
    own_levels,
    rank_border,
)
from pipelines.policies.by_sample_size import best_evidence, evidence, pool_moments, shrink
from pipelines.scorers.base import Direction
from schemas.errors import AnnotationMissing, BadInput, NotEnoughReferences
from schemas.reference_sets import TRUSTED
from schemas.root import Root

# Settings come from people's files: pydantic says which is wrong before anything is read.
_checked = validate_call(config=ConfigDict(arbitrary_types_allowed=True))


@_checked
def freeze_quality_rank(
    root: Root,
    batches: Sequence[str],
    *,
    column: str,
    good_fraction: Annotated[float, Field(ge=0, le=1)],
    sigma_min_rest: Annotated[float, Field(ge=0)] | None,
    noise_space: str,
    pack: str = "classical",
    scorer_version: str | None = None,
    direction: Direction | None = None,
    name: str = "",
) -> QualityRank:
    """Find the border on the scores of `batches` and return the policy with it.

    Args:
        root: where the tables are.
        batches: whose scores set the border.
        column: the score that ranks.
        good_fraction: share that is good.
        sigma_min_rest: level of the others; None: never.
        noise_space: what levels are measured in.
        pack: of the score; `external` for an imported one.
        scorer_version: which measurement; None: the one this code makes, or the only one there is.
        direction: which way is better; None: the scorer's own, which an imported one has not.
        name: what people call the policy.

    Raises:
        BadInput: the column cannot rank, no image of the batches has the score, or it was measured
            in several versions and none is named.
        TableMissing: a batch has no scores of that version.
    """
    direction = direction_of(pack, column, direction)
    version = scorer_version or the_version(root, batches, pack)
    scores, ids = _pooled(root, batches, pack, column, version)
    if not np.isfinite(scores).any():
        raise BadInput(f"no image of {list(batches)} has a {column} score; nothing can be ranked")
    cut_score, cut_tie = rank_border(scores, ids, direction, good_fraction)
    return QualityRank(
        pack=pack,
        column=column,
        scorer_version=version,
        direction=direction,
        good_fraction=good_fraction,
        cut_score=cut_score,
        cut_tie=cut_tie,
        sigma_min_rest=sigma_min_rest,
        noise_space=noise_space,
        name=name,
    )


def _pooled(
    root: Root, batches: Sequence[str], pack: str, column: str, version: str
) -> tuple[NDArray[np.float64], list[str]]:
    scores, ids = [np.empty(0)], []
    for batch in batches:
        samples = root.tables.read("samples", ["sample_row", "sample_id"], {"ingest_batch": batch})
        measured = read_scores(root, batch, pack, column, version)
        scores.append(measured.of(samples["sample_row"].to_numpy()))
        ids += samples["sample_id"].to_pylist()
    return np.concatenate(scores), ids


@_checked
def freeze_sample_size(
    root: Root,
    batches: Sequence[str],
    *,
    classifier_id: str,
    constant: Annotated[float, Field(gt=0)],
    smoothing_octaves: float = 0.25,
    name: str = "",
) -> SampleSizeAware:
    """Freeze the thresholds of the sample-size rule on the curves of pool batches.

    Raises:
        TableMissing: there is no such classifier, or it has not graded a batch.
        AnnotationMissing: no image of the batches has a curve.
        NotEnoughReferences: the trusted set is empty.
    """
    classifier = classifier_row(root, classifier_id)
    sigmas = np.array(classifier["sigmas"], np.float64)
    trusted = root.tables.read("reference_sets", ["sample_row"], {"reference_set": TRUSTED})
    if not trusted.num_rows:
        raise NotEnoughReferences("the trusted set is empty; run references first")
    curves = np.concatenate([read_curves(root, b, classifier_id).values for b in batches])
    curves = curves[np.isfinite(curves).all(axis=(1, 2))]
    if not len(curves):
        raise AnnotationMissing(f"no image of {list(batches)} has a noise curve; run curves first")
    mean, spread = pool_moments(curves[:, 0], curves[:, 1])
    against = evidence(shrink(curves[:, 0], curves[:, 1], mean, spread))
    bounds = [
        best_evidence(column, trusted.num_rows, float(sigma), constant)
        for column, sigma in zip(against.T, sigmas, strict=True)
    ]
    return SampleSizeAware(
        name=name,
        noise_space=str(classifier["noise_space"]),
        classifier_id=classifier_id,
        smoothing_octaves=smoothing_octaves,
        constant=constant,
        n_trusted=trusted.num_rows,
        n_pool=len(curves),
        sigmas=tuple(sigmas.tolist()),
        tv=tuple(against.mean(axis=0).tolist()),
        mean_logit=tuple(mean.tolist()),
        spread=tuple(spread.tolist()),
        max_evidence=tuple(bounds),
    )


@_checked
def freeze_source_levels(
    root: Root,
    batches: Sequence[str],
    *,
    threshold: ClassifierThreshold,
    quantile: Annotated[float, Field(gt=0, le=1)] = 0.9,
    name: str = "",
    known: Mapping[str, float | None] | None = None,
) -> ClassifierPerSource:
    """Read a level per source off the curves of pool batches; references do not count.

    Args:
        root: where the tables are.
        batches: whose curves set the levels.
        threshold: the rule of each image's own level.
        quantile: share of a source's images whose own level is passed.
        name: what people call the policy.
        known: sources that keep the level they have; batches of no other source are not read.

    Raises:
        TableMissing: the classifier has not graded a batch.
        AnnotationMissing: an image of the batches has no curve, or there is no pool image at all.
    """
    settled = dict(known or {})
    sigmas = np.array(classifier_row(root, threshold.classifier_id)["sigmas"], np.float64)
    trusted = root.tables.read("reference_sets", ["sample_row"])["sample_row"].to_numpy()
    own, sources = [np.empty(0)], [pa.chunked_array([], pa.string())]
    for batch in batches:
        samples = root.tables.read("samples", ["sample_row", "source"], {"ingest_batch": batch})
        wanted = ~np.isin(samples["sample_row"].to_numpy(), trusted)
        wanted &= ~pc.is_in(samples["source"], pa.array(settled, pa.string())).to_numpy()
        if not wanted.any():
            continue
        samples = samples.filter(pa.array(wanted))
        measured = read_curves(root, batch, threshold.classifier_id)
        rows = samples["sample_row"].to_numpy()
        curves = measured.all_of(rows, "noise curve", "curves")
        own.append(own_levels(threshold, curves[:, 0], curves[:, 1], sigmas))
        sources.append(samples["source"])
    names = pa.chunked_array([chunk for column in sources for chunk in column.chunks], pa.string())
    levels = levels_of_sources(np.concatenate(own), names.to_pylist(), quantile) | settled
    if not levels:
        raise AnnotationMissing(
            f"no pool image of {list(batches)} has a noise curve; run curves first"
        )
    return ClassifierPerSource(
        name=name,
        noise_space=threshold.noise_space,
        threshold=threshold,
        quantile=quantile,
        levels=levels,
    )


@_checked
def freeze_crop_window(
    root: Root,
    *,
    crop_classifier_id: str,
    receptive_field_id: str,
    floor: ClassifierThreshold | FixedPerSource,
    epsilon: float = 0.05,
    name: str = "",
) -> CropWindow:
    """Read off a measured receptive field up to which level each crop size is context enough.

    Raises:
        TableMissing: there is no such crop classifier or receptive field.
        BadInput: they, or the floor, speak of different noise spaces.
    """
    crops = crop_classifier_row(root, crop_classifier_id)
    field = table_row(root, "receptive_fields", "receptive_field_id", receptive_field_id)
    spaces = {str(crops["noise_space"]), str(field["noise_space"]), floor.noise_space}
    if len(spaces) > 1:
        raise BadInput(
            f"crop classifier, receptive field and floor measure in {sorted(spaces)}; levels do "
            "not carry over: make all three on packs of one noise space"
        )
    sizes = np.array(crops["sizes"], np.int64)
    levels = window_levels(
        np.array(field["sigmas"], np.float64), np.array(field["needed_context"], np.int64), sizes
    )
    return CropWindow(
        name=name,
        noise_space=floor.noise_space,
        floor=floor,
        crop_classifier_id=crop_classifier_id,
        receptive_field_id=receptive_field_id,
        epsilon=epsilon,
        sizes=tuple(sizes.tolist()),
        sigma_max=tuple(levels.tolist()),
    )


def window_levels(
    sigmas_L: NDArray[np.float64], needed_L: NDArray[np.int64], sizes_S: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return per size the largest level up to which no level needs more context, (S,); 0: none."""
    most_so_far = np.maximum.accumulate(needed_L)
    count = np.searchsorted(most_so_far, sizes_S, side="right")
    levels: NDArray[np.float64] = np.concatenate([[0.0], sigmas_L])[count]
    return levels
