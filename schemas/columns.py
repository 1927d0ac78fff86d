"""Columns that several tables share, declared once."""

import pyarrow as pa

from schemas.contract import PARTITION_VALUE_PATTERN, Column

SHA256_PATTERN = r"^[0-9a-f]{64}$"

SAMPLE_ROW = Column(
    "sample_row",
    pa.int64(),
    "join key of all facts: batch ordinal (upper 31 bits) and position in the batch (lower 32)",
    minimum=0,
)
SAMPLE_ID = Column(
    "sample_id", pa.string(), "SHA-256 of the source bytes, hex", pattern=SHA256_PATTERN
)
INGEST_BATCH = Column(
    "ingest_batch",
    pa.string(),
    "name of the ingest batch, the unit of every job",
    pattern=PARTITION_VALUE_PATTERN,
)
NOISE_SPACE = Column(
    "noise_space",
    pa.string(),
    "what levels are measured in: pixels or the latents of one VAE, resolution, transform, scale",
)
