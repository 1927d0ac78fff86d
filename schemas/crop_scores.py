"""What a crop classifier says of an image at each crop size."""

import pyarrow as pa

from schemas.columns import INGEST_BATCH, SAMPLE_ROW
from schemas.contract import PARTITION_VALUE_PATTERN, Column, Contract

CONTRACT = Contract(
    name="crop_scores",
    version=1,
    one_row_is="what one crop classifier says of one image over crop sizes",
    key=("sample_row", "crop_classifier_id"),
    partition_by=("crop_classifier_id", "ingest_batch"),
    columns=(
        SAMPLE_ROW,
        INGEST_BATCH,
        Column(
            "crop_classifier_id",
            pa.string(),
            "the classifier, with its crop sizes",
            pattern=PARTITION_VALUE_PATTERN,
        ),
        Column("fold", pa.int32(), "the fold that graded, which did not train on it", minimum=0),
        Column(
            "mean_probability",
            pa.list_(pa.float32()),
            "mean over the image's crops of P(in domain), one a size",
            minimum=0,
            maximum=1,
        ),
        Column(
            "standard_error",
            pa.list_(pa.float32()),
            "of that mean, over crops that do not overlap, one a size",
            minimum=0,
        ),
    ),
)
