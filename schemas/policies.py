"""Rules that turn measurements into levels."""

import pyarrow as pa

from schemas.columns import NOISE_SPACE
from schemas.contract import PARTITION_VALUE_PATTERN, Column, Contract

KINDS = (
    "classifier_threshold",
    "fixed_per_source",
    "quality_rank",
    "sample_size",
    "pilot_calibrated",
    "crop_window",
    "external",
    "best_of_duplicates",
    "classifier_per_source",
)

CONTRACT = Contract(
    name="policies",
    version=4,
    one_row_is="one decision rule",
    key=("policy_id",),
    columns=(
        Column(
            "policy_id",
            pa.string(),
            "hash of the rule: kind, parameters, measures read, frozen thresholds; "
            "not of table versions, so that a new batch falls under the same policy",
            pattern=PARTITION_VALUE_PATTERN,
        ),
        Column("name", pa.string(), "what people call it"),
        Column("kind", pa.string(), "which rule", allowed=KINDS),
        Column("parameters", pa.string(), "JSON of the rule's parameters"),
        NOISE_SPACE,
    ),
)
