"""Which samples are the same picture."""

import pyarrow as pa

from schemas.columns import SAMPLE_ROW
from schemas.contract import PARTITION_VALUE_PATTERN, Column, Contract

CONTRACT = Contract(
    name="duplicate_clusters",
    version=1,
    one_row_is="the cluster of one sample that has an equal; a sample that stands alone has no row",
    key=("kind", "sample_row"),
    partition_by=("kind",),
    columns=(
        Column(
            "kind",
            pa.string(),
            "exact (same bytes), perceptual (near hashes), semantic (near embeddings)",
            allowed=("exact", "perceptual", "semantic"),
            pattern=PARTITION_VALUE_PATTERN,
        ),
        SAMPLE_ROW,
        Column(
            "cluster_row", pa.int64(), "smallest sample_row of the cluster, its name", minimum=0
        ),
    ),
)
