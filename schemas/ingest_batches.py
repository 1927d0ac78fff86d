"""The register of ingest batches, which gives each batch its ordinal."""

import pyarrow as pa

from schemas.columns import INGEST_BATCH
from schemas.contract import Column, Contract
from schemas.ids import MAX_BATCH_ORDINAL

ROLES = ("pool", "reference", "evaluation")

CONTRACT = Contract(
    name="ingest_batches",
    version=2,
    one_row_is="one ingest batch and the ordinal that its sample rows carry",
    key=("ingest_batch",),
    columns=(
        INGEST_BATCH,
        Column(
            "batch_ordinal",
            pa.int64(),
            "upper part of sample_row; given once, in order of registration, never reused",
            minimum=0,
            maximum=MAX_BATCH_ORDINAL,
        ),
        Column("role", pa.string(), "what the batch was brought in as", allowed=ROLES),
        Column(
            "source_kind",
            pa.string(),
            "how the items were listed",
            allowed=("folder", "tar", "parquet", "url_list"),
        ),
        Column(
            "source_uri",
            pa.string(),
            "the folder, tar shards, Parquet files or URL list that was ingested",
        ),
    ),
)
