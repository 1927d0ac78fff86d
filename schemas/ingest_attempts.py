"""Every listed item that was tried, stored or not."""

import pyarrow as pa
import pyarrow.compute as pc

from schemas.columns import INGEST_BATCH, SHA256_PATTERN
from schemas.contract import Column, Contract, RowConstraint

STATUSES = ("stored", "duplicate", "rejected")

CONTRACT = Contract(
    name="ingest_attempts",
    version=1,
    one_row_is="one listed item that was tried, with what became of it",
    key=("ingest_batch", "attempt_key"),
    partition_by=("ingest_batch",),
    columns=(
        INGEST_BATCH,
        Column(
            "attempt_key",
            pa.string(),
            "the item's place in the listing: relative path, shard#member, or line:url",
        ),
        Column("source", pa.string(), "name of the source, the unit of per-source policies"),
        Column("source_uri", pa.string(), "where the bytes came from"),
        Column(
            "status",
            pa.string(),
            "stored; duplicate (same bytes as an item stored before it in this batch); rejected",
            allowed=STATUSES,
        ),
        Column(
            "reason",
            pa.string(),
            "reason code of a rejection",
            nullable=True,
            null_meaning="not rejected",
        ),
        Column(
            "detail",
            pa.string(),
            "the decoder's or downloader's own words",
            nullable=True,
            null_meaning="nothing more to say",
        ),
        Column(
            "caption", pa.string(), "caption as found", nullable=True, null_meaning="none found"
        ),
        Column(
            "label",
            pa.string(),
            "class label as found",
            nullable=True,
            null_meaning="none found or not asked for",
        ),
        Column(
            "num_bytes",
            pa.int64(),
            "size of the item's bytes",
            unit="bytes",
            nullable=True,
            null_meaning="no bytes were had",
            minimum=0,
        ),
        Column(
            "sample_id",
            pa.string(),
            "SHA-256 of the bytes, hex",
            nullable=True,
            null_meaning="no bytes were had",
            pattern=SHA256_PATTERN,
        ),
        Column(
            "sample_row",
            pa.int64(),
            "the sample that holds these bytes",
            nullable=True,
            null_meaning="rejected",
            minimum=0,
        ),
    ),
    constraints=(
        RowConstraint(
            "a rejected item has a reason and no sample_row, any other the reverse",
            lambda t: pc.or_(
                pc.not_equal(pc.equal(t["status"], "rejected"), pc.is_valid(t["reason"])),
                pc.equal(pc.equal(t["status"], "rejected"), pc.is_valid(t["sample_row"])),
            ),
        ),
    ),
)
