"""The register of ingest batches, which gives each batch its ordinal."""

import pyarrow as pa
import pyarrow.compute as pc

from schemas.columns import INGEST_BATCH
from schemas.contract import Column, Contract, RowConstraint
from schemas.ids import MAX_BATCH_ORDINAL

ROLES = ("pool", "reference", "evaluation")


def _repeated_ordinals(table: pa.Table) -> pa.ChunkedArray:
    counts = pc.value_counts(table["batch_ordinal"].combine_chunks())
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    return pc.is_in(table["batch_ordinal"], value_set=repeated)


CONTRACT = Contract(
    name="ingest_batches",
    version=3,
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
    # Two machines without a common lock may register at once: the later one is refused.
    constraints=(RowConstraint("batch_ordinal stands once", _repeated_ordinals),),
)
