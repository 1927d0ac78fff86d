"""Training runs with their parents."""

import pyarrow as pa

from schemas.columns import NOISE_SPACE
from schemas.contract import Column, Contract

CONTRACT = Contract(
    name="training_runs",
    version=1,
    one_row_is="one training run",
    key=("run_id",),
    columns=(
        Column("run_id", pa.string(), "hash of the configuration and of the data it reads"),
        Column("name", pa.string(), "what people call it"),
        Column("policy_id", pa.string(), "the annotation policy it obeyed"),
        Column("ingest_batches", pa.list_(pa.string()), "the batches it trained on"),
        Column("table_versions", pa.string(), "JSON: table name to the version it pinned"),
        NOISE_SPACE,
        Column("config", pa.string(), "JSON of the resolved configuration"),
        Column("code_version", pa.string(), "version of the code"),
        Column(
            "status",
            pa.string(),
            "where it stands",
            allowed=("running", "interrupted", "finished", "failed"),
        ),
        Column("num_images_seen", pa.int64(), "images drawn so far", unit="images", minimum=0),
        Column(
            "checkpoint",
            pa.string(),
            "the selected checkpoint, relative to the root",
            nullable=True,
            null_meaning="none yet",
        ),
        Column("metrics", pa.string(), "JSON of the figures at the selected checkpoint"),
        Column("audit", pa.string(), "JSON: how the run obeyed the annotations"),
    ),
)
