"""Trained crop classifiers: which crops of foreign images look like the domain's."""

import pyarrow as pa

from schemas.columns import NOISE_SPACE, SHA256_PATTERN
from schemas.contract import PARTITION_VALUE_PATTERN, Column, Contract

CONTRACT = Contract(
    name="crop_classifiers",
    version=1,
    one_row_is="one trained crop classifier",
    key=("crop_classifier_id",),
    columns=(
        Column(
            "crop_classifier_id",
            pa.string(),
            "hash of the images, pixels and settings it was made from; not of the code",
            pattern=PARTITION_VALUE_PATTERN,
        ),
        Column("reference_set", pa.string(), "the domain's images"),
        Column("foreign_batches", pa.list_(pa.string()), "the ingest batches of the other domain"),
        NOISE_SPACE,
        Column("num_folds", pa.int32(), "networks, each grading what it did not see", minimum=1),
        Column(
            "sizes",
            pa.list_(pa.int32()),
            "sides of the crops, ascending",
            unit="positions of the noise space",
            minimum=1,
        ),
        Column(
            "tv_lower_bound",
            pa.list_(pa.float64()),
            "per size, 2 x balanced accuracy - 1 of domain against foreign crops",
            minimum=-1,
            maximum=1,
        ),
        Column(
            "tv_standard_error", pa.list_(pa.float64()), "per size, of tv_lower_bound", minimum=0
        ),
        Column(
            "control",
            pa.string(),
            "JSON of the positive control: shuffled crops of held-out references, per size",
        ),
        Column("config", pa.string(), "JSON of the full configuration"),
        Column("weights_sha256", pa.string(), "over all folds' weights", pattern=SHA256_PATTERN),
        Column("code_version", pa.string(), "version of the code that trained it"),
    ),
)
