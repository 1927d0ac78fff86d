"""What a noise classifier says of an image at each level."""

import pyarrow as pa

from schemas.columns import INGEST_BATCH, SAMPLE_ROW
from schemas.contract import PARTITION_VALUE_PATTERN, Column, Contract

CONTRACT = Contract(
    name="noise_curves",
    version=3,
    one_row_is="what one classifier says of one image over levels",
    key=("sample_row", "classifier_id"),
    partition_by=("classifier_id", "ingest_batch"),
    columns=(
        SAMPLE_ROW,
        INGEST_BATCH,
        Column(
            "classifier_id",
            pa.string(),
            "the classifier, with its grid of levels",
            pattern=PARTITION_VALUE_PATTERN,
        ),
        Column("fold", pa.int32(), "the fold that graded, which did not train on it", minimum=0),
        Column(
            "logits",
            pa.list_(pa.float32()),
            "mean over noisings of logit P(trusted), one a level of the classifier; less what "
            "noises that images share do to all of them alike",
        ),
        Column(
            "logit_standard_error",
            pa.list_(pa.float32()),
            "standard error of that mean, one a level",
            minimum=0,
        ),
        Column(
            "evaluations",
            pa.int32(),
            "network evaluations spent on this image",
            nullable=True,
            null_meaning="graded before they were counted",
            minimum=1,
        ),
        Column(
            "annotator_id",
            pa.string(),
            "how the classifier was asked: kind of annotator and hash of its settings",
            nullable=True,
            null_meaning="graded before there was a choice: the classifier's own grid",
        ),
    ),
)
