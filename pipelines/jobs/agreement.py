"""How far the levels of a batch's curves lie from those of the exhaustive search, on some images.

Any annotator is an approximation of the search; a head that met other images than it learned from
is one that can be far off without a word.
"""

import json
import time
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ambient_omni.classifier.annotators import ExhaustiveSearch, Reading
from ambient_omni.classifier.config import ExhaustiveConfig
from ambient_omni.classifier.head import octaves_apart
from ambient_omni.classifier.noise_classifier import load, space_of
from ambient_omni.data.packs import Pack, PackSet, to_x0
from ambient_omni.noise.crossing import find_crossings
from pipelines.measures import curves_slice, read_curves
from schemas.ids import canonical_hash, hash_fraction
from schemas.root import Root, write_json

_NUM_NAMED = 3


@dataclass(frozen=True)
class Agreement:
    """Levels read off the curves beside those of the search, on images drawn by their content.

    Attributes:
        num_images: that were compared; 0: the batch has none.
        median_octaves: of |log2 of the ratio|; levels below the lowest count as it, null as the
            highest.
        p95_octaves: 95th percentile of it.
        farthest: sample_rows of those that are furthest off.
        seconds: that the search took.
    """

    num_images: int
    median_octaves: float
    p95_octaves: float
    farthest: tuple[int, ...]
    seconds: float


def agreement(
    root: Root,
    batch: str,
    classifier_id: str,
    reading: Reading,
    *,
    num_images: int = 16,
    search: ExhaustiveConfig,
) -> Agreement:
    """Compare; what was compared before is not asked again.

    Args:
        root: where everything is.
        batch: whose curves.
        classifier_id: who graded.
        reading: how curves are read.
        num_images: at most; the same ones whatever else the batch holds.
        search: the yardstick.

    Raises:
        TableMissing: the classifier has not graded the batch.
        PackMissing, BadInput: the classifier or the batch's pack is not there.
    """
    made_from = {
        "curves": root.tables.fingerprint("noise_curves", curves_slice(classifier_id, batch)),
        "reading": asdict(reading),
        "search": search.model_dump(mode="json"),
        "num_images": num_images,
    }
    file = root.work / "agreement" / f"{batch}-{canonical_hash(made_from)}.json"
    if file.exists():
        kept = json.loads(file.read_text())
        return Agreement(**kept | {"farthest": tuple(kept["farthest"])})
    found = _compare(root, batch, classifier_id, reading, num_images, search)
    write_json(file, asdict(found))
    return found


def _compare(
    root: Root,
    batch: str,
    classifier_id: str,
    reading: Reading,
    num_images: int,
    search: ExhaustiveConfig,
) -> Agreement:
    began, curves = time.monotonic(), read_curves(root, batch, classifier_id)
    rows, ids = _some(root, batch, num_images)
    if not len(rows):
        return Agreement(0, 0.0, 0.0, (), 0.0)
    classifier = load(root, classifier_id)
    pack = Pack.open(root.packs, space_of(root, classifier_id).space.transform_id, batch)
    x0_BCHW = to_x0(pack.take(PackSet([pack]).index_of(rows)))
    oracle = ExhaustiveSearch(classifier, search, classifier.config.seed)
    truth = reading.crossings(oracle.curves(x0_BCHW, ids)).sigma_min
    kept = curves.of(rows)
    said = find_crossings(
        kept[:, 0],
        classifier.sigmas,
        reading.tau,
        standard_error_NL=kept[:, 1],
        smoothing_octaves=reading.smoothing_octaves,
        decay_exponent=reading.decay_exponent,
    ).sigma_min
    apart = np.abs(octaves_apart(said, truth, classifier.sigmas))
    worst = rows[np.argsort(-apart, kind="stable")[:_NUM_NAMED]]
    return Agreement(
        len(rows),
        float(np.median(apart)),
        float(np.quantile(apart, 0.95)),
        tuple(worst.tolist()),
        time.monotonic() - began,
    )


def _some(root: Root, batch: str, count: int) -> tuple[NDArray[np.int64], list[str]]:
    """Return sample_rows, ascending, and sample_ids of images drawn by their content."""
    samples = root.tables.read("samples", ["sample_row", "sample_id"], {"ingest_batch": batch})
    ids = samples["sample_id"].to_pylist()
    order = np.argsort([hash_fraction(name, "agreement") for name in ids], kind="stable")[:count]
    rows = samples["sample_row"].to_numpy()[order]
    ascending = np.argsort(rows)
    return rows[ascending], [ids[order[place]] for place in ascending]
