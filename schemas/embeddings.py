"""One vector of one encoder for one image."""

import pyarrow as pa

from schemas.columns import INGEST_BATCH, SAMPLE_ROW
from schemas.contract import PARTITION_VALUE_PATTERN, Column, Contract

CONTRACT = Contract(
    name="embeddings",
    version=1,
    one_row_is="one vector of one encoder",
    key=("sample_row", "encoder_version"),
    partition_by=("encoder_version", "ingest_batch"),
    columns=(
        SAMPLE_ROW,
        INGEST_BATCH,
        Column(
            "encoder_version",
            pa.string(),
            "encoder name and hash of its weights, preprocessing and resolution",
            pattern=PARTITION_VALUE_PATTERN,
        ),
        # Delta has no fixed-size lists; the length is the encoder's, the same in a whole slice.
        Column("embedding", pa.list_(pa.float32()), "the encoder's pooled features"),
    ),
)
