"""Samples taken down; every reader leaves them out."""

import pyarrow as pa

from schemas.columns import SAMPLE_ID
from schemas.contract import Column, Contract

CONTRACT = Contract(
    name="exclusions",
    version=1,
    one_row_is="one sample taken down",
    key=("sample_id",),
    columns=(
        SAMPLE_ID,
        Column("excluded_at", pa.timestamp("us", tz="UTC"), "when", unit="UTC"),
        Column("why", pa.string(), "the request or finding behind it"),
    ),
)
