"""Named sets of samples that others are measured against."""

import pyarrow as pa

from schemas.columns import SAMPLE_ROW
from schemas.contract import PARTITION_VALUE_PATTERN, Column, Contract

# The three sets that every root has are named as their role.
TRUSTED, VALIDATION, EVALUATION = "trusted", "validation", "evaluation"
HELD_OUT = (VALIDATION, EVALUATION)
ROLES = (TRUSTED, *HELD_OUT, "foreign")

CONTRACT = Contract(
    name="reference_sets",
    version=1,
    one_row_is="membership of one sample in one named reference set",
    key=("reference_set", "sample_row"),
    partition_by=("reference_set",),
    columns=(
        Column("reference_set", pa.string(), "name of the set", pattern=PARTITION_VALUE_PATTERN),
        SAMPLE_ROW,
        Column(
            "role",
            pa.string(),
            "trusted (trained on, the classifier's positives), validation (never trained on: "
            "checkpoint selection, positive control), evaluation (never trained on: reports), "
            "foreign (another domain)",
            allowed=ROLES,
        ),
    ),
)
