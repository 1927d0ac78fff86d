"""The distinct images of a batch and where their bytes lie."""

import pyarrow as pa

from schemas.columns import INGEST_BATCH, SAMPLE_ID, SAMPLE_ROW, SHA256_PATTERN
from schemas.contract import Column, Contract

FORMATS = ("jpeg", "png", "webp")
FIRST_PHASH_VERSION = 1  # what stands for null in `phash_version`

CONTRACT = Contract(
    name="samples",
    version=4,
    one_row_is="one distinct image of a batch",
    key=("sample_row",),
    partition_by=("ingest_batch",),
    columns=(
        SAMPLE_ROW,
        SAMPLE_ID,
        INGEST_BATCH,
        Column(
            "shard",
            pa.string(),
            "tar shard that holds the bytes, relative to <root>/shards; the absolute path or the "
            "address (s3://...) of one that was registered where it lies",
        ),
        Column(
            "byte_offset", pa.int64(), "where the bytes begin in the shard", unit="bytes", minimum=0
        ),
        Column("num_bytes", pa.int64(), "length of the bytes", unit="bytes", minimum=1),
        Column("width", pa.int32(), "after EXIF orientation", unit="pixels", minimum=1),
        Column("height", pa.int32(), "after EXIF orientation", unit="pixels", minimum=1),
        Column("format", pa.string(), "encoding of the bytes", allowed=FORMATS),
        Column(
            "caption", pa.string(), "caption as found", nullable=True, null_meaning="none found"
        ),
        Column(
            "label",
            pa.string(),
            "class label",
            nullable=True,
            null_meaning="none found or not asked for",
        ),
        Column("source", pa.string(), "name of the source, the unit of per-source policies"),
        Column(
            "phash",
            pa.int64(),
            "64-bit perceptual hash (DCT) of the decoded image, as a signed integer",
        ),
        Column(
            "phash_version",
            pa.int32(),
            "how `phash` was made; hashes of two versions are not to be compared",
            nullable=True,
            null_meaning="1: from before hashes had versions",
            minimum=FIRST_PHASH_VERSION,
        ),
        Column(
            "parent_sample_id",
            pa.string(),
            "the sample that this one restores",
            nullable=True,
            null_meaning="an original",
            pattern=SHA256_PATTERN,
        ),
        Column("loop_number", pa.int32(), "0 for an original, n for the n-th data loop", minimum=0),
    ),
)
