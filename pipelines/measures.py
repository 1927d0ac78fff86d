"""Measurements of a batch as arrays in the order of its samples.

Shapes: N samples, L levels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.scorers import PACKS as SCORERS
from pipelines.scorers.base import Direction
from schemas.errors import AnnotationMissing, BadInput, TableMissing
from schemas.known import instead_of, require_batches
from schemas.root import Root
from schemas.scores import EXTERNAL


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

    def all_of(self, wanted_N: NDArray[np.int64], what: str, job: str) -> NDArray[np.float64]:
        """Return what `of` does, but of rows that were all measured.

        Args:
            wanted_N: the rows.
            what: was measured.
            job: that measures it.

        Raises:
            AnnotationMissing: some rows were never measured.
        """
        missing = self.missing(wanted_N)
        if len(missing):
            raise AnnotationMissing(
                f"{len(missing)} of {len(wanted_N)} samples have no {what} (first: sample_row "
                f"{missing[0]}); run {job} on the batch again. Absence is not read as clean"
            )
        return self.of(wanted_N)

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


def sources_of(root: Root, batch: str) -> frozenset[str]:
    """Return the sources of a batch; read once as long as its samples do not change."""
    made = root.tables.fingerprint("samples", {"ingest_batch": batch})
    return frozenset() if made is None else _sources(root.path, batch, made)


@lru_cache(maxsize=4096)
def _sources(root: Path, batch: str, fingerprint: str) -> frozenset[str]:
    column = Root(root).tables.open("samples").read(["source"], {"ingest_batch": batch})["source"]
    return frozenset(pc.unique(column).to_pylist())


def curves_slice(classifier_id: str, batch: str) -> dict[str, str]:
    """Return the slice of a batch in `noise_curves`."""
    return {"classifier_id": classifier_id, "ingest_batch": batch}


def crop_scores_slice(crop_classifier_id: str, batch: str) -> dict[str, str]:
    """Return the slice of a batch in `crop_scores`."""
    return {"crop_classifier_id": crop_classifier_id, "ingest_batch": batch}


def direction_of(
    pack: str, column: str, given: Direction | None
) -> Literal["higher_is_better", "lower_is_better"]:
    """Return which way a score is better.

    Raises:
        BadInput: there is no such score, or it is better neither way.
    """
    if pack != EXTERNAL and pack not in SCORERS:
        raise BadInput(f"there is no pack of scores {pack!r}{instead_of(pack, SCORERS)}")
    names = [] if pack == EXTERNAL else [s.name for s in SCORERS[pack].scorers]
    if pack != EXTERNAL and column not in names:
        raise BadInput(f"the pack {pack!r} has no score {column!r}{instead_of(column, names)}")
    own = None if pack == EXTERNAL else SCORERS[pack].scorer(column).direction
    direction = given or own
    if direction is None:
        raise BadInput(
            f"{column} of {pack} was imported: say whether it is higher_is_better or "
            "lower_is_better (direction)"
        )
    if direction == "neither":
        raise BadInput(f"{column} is neither better high nor better low; rank by another score")
    return direction


def the_version(root: Root, batches: Sequence[str], pack: str) -> str:
    """Return the version of a pack's scores to use where none is named.

    It is the one that this code makes under its default settings; where a batch has no such
    scores, as with `clip` under another network or imported ones, the only one that all have.

    Raises:
        BadInput: there is no such batch, or the batches share several versions.
        TableMissing: they share none.
    """
    require_batches(root.tables, batches)
    shared = set.intersection(*(_versions(root, pack, batch) for batch in batches))
    if pack != EXTERNAL and SCORERS[pack].version in shared:
        return SCORERS[pack].version
    if len(shared) > 1:
        raise BadInput(
            f"scores/{pack} of {list(batches)} has versions {sorted(shared)}; name one "
            "(scorer_version)"
        )
    if not shared:
        raise TableMissing(
            f"batches {list(batches)} share no version of scores/{pack}; run score on them, or "
            "import-scores"
        )
    return shared.pop()


def _versions(root: Root, pack: str, batch: str) -> set[str]:
    found = root.tables.read(f"scores/{pack}", ["scorer_version"], {"ingest_batch": batch})
    return set(pc.unique(found["scorer_version"]).to_pylist())


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
    return _lists(root, "noise_curves", slice_, ["logits", "logit_standard_error"])


def read_crop_scores(root: Root, batch: str, crop_classifier_id: str) -> Measured:
    """Return what a crop classifier says: values float64 (M, 2, S), means and standard errors.

    Raises:
        TableMissing: the classifier has not graded the batch.
    """
    slice_ = crop_scores_slice(crop_classifier_id, batch)
    if root.tables.fingerprint("crop_scores", slice_) is None:
        raise TableMissing(
            f"batch {batch!r} has no crop_scores of classifier {crop_classifier_id!r}; "
            "run crops on it first"
        )
    return _lists(root, "crop_scores", slice_, ["mean_probability", "standard_error"])


def _lists(root: Root, table: str, slice_: Mapping[str, str], columns: list[str]) -> Measured:
    """Read columns of lists of one length as (M, len(columns), length)."""
    found = root.tables.open(table).read(["sample_row", *columns], slice_)
    count = found.num_rows
    parts = [found[c].combine_chunks().flatten().to_numpy() for c in columns]
    values = [part.reshape(count, len(part) // max(count, 1)) for part in parts]
    return Measured(found["sample_row"].to_numpy(), np.stack(values, axis=1).astype(np.float64))


def noise_space_of(root: Root, classifier_id: str) -> str:
    """Return the noise space of a trained classifier, for a policy that thresholds it.

    Raises:
        TableMissing: no such classifier.
    """
    return str(classifier_row(root, classifier_id)["noise_space"])


def good_share_of(root: Root, classifier_id: str) -> float:
    """Return the share of the pool that is as good as the reference, as a classifier found it.

    Raises:
        TableMissing: no such classifier.
        BadInput: it did not estimate the share.
    """
    share = classifier_row(root, classifier_id).get("good_share")
    if share is None:
        raise BadInput(
            f"classifier {classifier_id!r} has no estimate of the pool's good share: give "
            "good_share as a number, or train it again"
        )
    return float(str(share))


def classifier_row(root: Root, classifier_id: str) -> Mapping[str, object]:
    """Return the row of one classifier.

    Raises:
        TableMissing: no such classifier.
    """
    rows = root.tables.read("noise_classifiers", where={"classifier_id": classifier_id}).to_pylist()
    if not rows:
        known = root.tables.read("noise_classifiers", ["classifier_id"])["classifier_id"]
        raise TableMissing(
            f"there is no noise classifier {classifier_id!r}"
            + instead_of(classifier_id, known.to_pylist())
        )
    found: Mapping[str, object] = rows[0]
    return found


def crop_classifier_row(root: Root, crop_classifier_id: str) -> Mapping[str, object]:
    """Return the row of one crop classifier.

    Raises:
        TableMissing: no such classifier.
    """
    return table_row(root, "crop_classifiers", "crop_classifier_id", crop_classifier_id)


def table_row(root: Root, table: str, key: str, value: str) -> Mapping[str, object]:
    """Return the row whose key has a value.

    Raises:
        TableMissing: there is none.
    """
    rows = root.tables.read(table, where={key: value}).to_pylist()
    if not rows:
        raise TableMissing(f"{table} has no {key} {value!r}; run the job that makes it first")
    found: Mapping[str, object] = rows[0]
    return found
