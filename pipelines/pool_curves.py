"""The curve of a whole batch: what a noise classifier says of its sources, level by level.

Shapes: N samples, L levels.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ambient_omni.noise.crossing import find_crossings
from pipelines.measures import classifier_row, read_curves
from pipelines.policies.by_sample_size import evidence
from schemas.root import Root

EVERY_SOURCE = "*"

SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("sigma", pa.float64(), nullable=False),
        pa.field("num_images", pa.int64(), nullable=False),
        pa.field("mean_logit", pa.float64(), nullable=False),
        pa.field("standard_error", pa.float64(), nullable=False),
        pa.field("tv", pa.float64(), nullable=False),
    ]
)


def pool_curves(root: Root, batch: str, classifier_id: str) -> pa.Table:
    """Return the mean curve of a batch and of each of its sources.

    Columns: source ("*" for all), sigma, num_images, mean_logit of P(trusted), its standard_error
    over images, and tv, the mean evidence (1 - e^logit)+: an estimate of the total variation
    between the source and the trusted images at that level. Images without a curve do not count.

    Raises:
        TableMissing: there is no such classifier, or it has not graded the batch.
    """
    sigmas = np.array(classifier_row(root, classifier_id)["sigmas"], np.float64)
    measured = read_curves(root, batch, classifier_id)
    samples = root.tables.read("samples", ["sample_row", "source"], {"ingest_batch": batch})
    logits = measured.of(samples["sample_row"].to_numpy())[:, 0]
    sources = np.array(samples["source"].to_pylist(), object)
    known = np.isfinite(logits).all(axis=1)
    groups = {EVERY_SOURCE: known} | {
        str(name): known & (sources == name) for name in sorted(set(sources[known]))
    }
    parts = [_rows(name, logits[here], sigmas) for name, here in groups.items() if here.any()]
    return pa.concat_tables([SCHEMA.empty_table(), *parts])


def dataset_level(
    mean_logit_L: NDArray[np.floating], sigmas_L: NDArray[np.floating], tau: float = 0.45
) -> float | None:
    """Return from which level on the mean curve of a source passes tau; None where it never does.

    One level for a whole source. With the best classifier it bounds the total variation of the
    source as a whole, and says nothing of one image.
    """
    found = find_crossings(np.asarray(mean_logit_L)[None], sigmas_L, tau).sigma_min[0]
    return None if np.isnan(found) else float(found)


def _rows(source: str, logits_NL: NDArray[np.float64], sigmas_L: NDArray[np.float64]) -> pa.Table:
    count = len(logits_NL)
    spread = logits_NL.std(axis=0, ddof=1) if count > 1 else np.zeros(len(sigmas_L))
    columns = {
        "source": [source] * len(sigmas_L),
        "sigma": sigmas_L,
        "num_images": [count] * len(sigmas_L),
        "mean_logit": logits_NL.mean(axis=0),
        "standard_error": spread / np.sqrt(count),
        "tv": evidence(logits_NL).mean(axis=0),
    }
    return pa.table(columns, schema=SCHEMA)
