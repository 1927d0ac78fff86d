"""Where an image lies, by the beginning of its hash; made from `samples`, batch by batch."""

import pyarrow as pa

from schemas.columns import INGEST_BATCH, SAMPLE_ROW
from schemas.contract import Column, Contract

PREFIX_DIGITS = 15  # 60 bits: what a signed 64-bit integer holds of a hash

CONTRACT = Contract(
    name="sample_index",
    version=1,
    one_row_is="one sample by the beginning of its sample_id; files are sorted by it",
    key=("sample_row",),
    partition_by=("ingest_batch",),
    columns=(
        Column(
            "hash_prefix",
            pa.int64(),
            f"the first {PREFIX_DIGITS} hex digits of sample_id as a number",
            minimum=0,
            maximum=16**PREFIX_DIGITS - 1,
        ),
        SAMPLE_ROW,
        INGEST_BATCH,
    ),
)
