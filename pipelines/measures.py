"""Measurements of a batch as arrays in the order of its samples, and borders made from them.

Shapes: N samples, L levels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.policies import QualityRank, rank_border
from pipelines.scorers import PACKS
from schemas.errors import BadInput, TableMissing
from schemas.root import Root


@dataclass(frozen=True)
class Measured:
    """Numbers of some samples of one slice.

    Attributes:
        sample_rows: int64 (M,), ascending.
        values: float64 (M, ...), NaN for null.
    """

    sample_rows: NDArray[np.int64]
    values: NDArray[np.float64]

    def missing(self, wanted_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the wanted rows that were never measured: not null, but not there."""
        return np.setdiff1d(wanted_N, self.sample_rows)

    def of(self, wanted_N: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the values of the wanted rows, float64 (N, ...), NaN where there is none."""
        out = np.full((len(wanted_N), *self.values.shape[1:]), np.nan)
        if len(self.sample_rows):
            place = np.searchsorted(self.sample_rows, wanted_N)
            place = np.minimum(place, len(self.sample_rows) - 1)
            found = self.sample_rows[place] == wanted_N
            out[found] = self.values[place[found]]
        return out


def scores_slice(scorer_version: str, batch: str) -> dict[str, str]:
    """Return the slice of a batch in `scores/<pack>`."""
    return {"scorer_version": scorer_version, "ingest_batch": batch}


def curves_slice(classifier_id: str, batch: str) -> dict[str, str]:
    """Return the slice of a batch in `noise_curves`."""
    return {"classifier_id": classifier_id, "ingest_batch": batch}


def read_scores(root: Root, batch: str, pack: str, column: str, scorer_version: str) -> Measured:
    """Return one score of a batch, values float64 (M,).

    Raises:
        TableMissing: the batch was not scored by that version.
    """
    table, slice_ = f"scores/{pack}", scores_slice(scorer_version, batch)
    if root.tables.fingerprint(table, slice_) is None:
        raise TableMissing(
            f"batch {batch!r} has no {table} of version {scorer_version}; run score on it first"
        )
    found = root.tables.open(table).read(["sample_row", column], slice_)
    values = found[column].to_numpy(zero_copy_only=False).astype(np.float64)
    return Measured(found["sample_row"].to_numpy(), values)


def read_curves(root: Root, batch: str, classifier_id: str) -> Measured:
    """Return the curves of a batch: values float64 (M, 2, L), logits and their standard errors.

    Raises:
        TableMissing: the classifier has not graded the batch.
    """
    slice_ = curves_slice(classifier_id, batch)
    if root.tables.fingerprint("noise_curves", slice_) is None:
        raise TableMissing(
            f"batch {batch!r} has no noise_curves of classifier {classifier_id!r}; "
            "run curves on it first"
        )
    columns = ["logits", "logit_standard_error"]
    found = root.tables.open("noise_curves").read(["sample_row", *columns], slice_)
    count = found.num_rows
    parts = [found[c].combine_chunks().flatten().to_numpy() for c in columns]
    curves = [part.reshape(count, len(part) // max(count, 1)) for part in parts]
    return Measured(found["sample_row"].to_numpy(), np.stack(curves, axis=1).astype(np.float64))


def freeze_quality_rank(
    root: Root,
    batches: Sequence[str],
    *,
    column: str,
    good_fraction: float,
    sigma_min_rest: float | None,
    noise_space: str,
    pack: str = "classical",
    name: str = "",
) -> QualityRank:
    """Find the border on the scores of `batches` and return the policy with it.

    Raises:
        BadInput: the column cannot rank, or no image of the batches has the score.
        TableMissing: a batch has no scores of this code's version.
    """
    if pack not in PACKS or column not in {s.name for s in PACKS[pack].scorers}:
        raise BadInput(f"there is no score {column!r} in a pack {pack!r}")
    direction = PACKS[pack].scorer(column).direction
    if direction == "neither":
        raise BadInput(f"{column} is neither better high nor better low; rank by another score")
    version = PACKS[pack].version
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


def noise_space_of(root: Root, classifier_id: str) -> str:
    """Return the noise space of a trained classifier, for a policy that thresholds it.

    Raises:
        TableMissing: no such classifier.
    """
    return str(classifier_row(root, classifier_id)["noise_space"])


def classifier_row(root: Root, classifier_id: str) -> Mapping[str, object]:
    """Return the row of one classifier.

    Raises:
        TableMissing: no such classifier.
    """
    rows = root.tables.read("noise_classifiers", where={"classifier_id": classifier_id}).to_pylist()
    if not rows:
        raise TableMissing(f"there is no noise classifier {classifier_id!r}; train it first")
    found: Mapping[str, object] = rows[0]
    return found
