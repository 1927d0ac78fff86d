"""How far an image lies from a reference set."""

import pyarrow as pa

from schemas.columns import INGEST_BATCH, SAMPLE_ROW
from schemas.contract import PARTITION_VALUE_PATTERN, Column, Contract
from schemas.scores import SCORER_VERSION, score

CONTRACT = Contract(
    name="ood_scores",
    version=2,
    one_row_is="distances of one image to one reference set",
    key=("sample_row", "scorer_version", "reference_set"),
    partition_by=("scorer_version", "reference_set", "ingest_batch"),
    columns=(
        SAMPLE_ROW,
        INGEST_BATCH,
        SCORER_VERSION,
        Column(
            "reference_set",
            pa.string(),
            "the set measured against",
            pattern=PARTITION_VALUE_PATTERN,
        ),
        score(
            "mahalanobis",
            "Mahalanobis distance to the set's mean after PCA, covariance shrunk",
            "standard deviations",
            minimum=0,
        ),
        score("knn_distance", "mean distance to the k nearest members", "embedding", minimum=0),
        score(
            "relative_mahalanobis",
            "squared distance to the set's mean, minus that to the background's",
            "variance",
        ),
        *(
            score(
                f"{name}_percentile",
                f"share of held-out members of the set with a lower {meaning}",
                "fraction",
                minimum=0,
                maximum=1,
            )
            for name, meaning in (
                ("mahalanobis", "mahalanobis"),
                ("relative_mahalanobis", "relative_mahalanobis"),
                ("knn", "knn_distance"),
            )
        ),
        Column(
            "unscored_reason",
            pa.string(),
            "why a distance is null, as `column: reason` joined by `; `",
            nullable=True,
            null_meaning="every distance and percentile was had",
        ),
    ),
)
