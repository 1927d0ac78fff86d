"""How much context denoising needs at each noise level."""

import pyarrow as pa

from schemas.columns import NOISE_SPACE
from schemas.contract import PARTITION_VALUE_PATTERN, Column, Contract

CONTRACT = Contract(
    name="receptive_fields",
    version=1,
    one_row_is="one measurement of the context that denoising needs, over levels",
    key=("receptive_field_id",),
    columns=(
        Column(
            "receptive_field_id",
            pa.string(),
            "hash of the images, pixels and settings it was made from; not of the code",
            pattern=PARTITION_VALUE_PATTERN,
        ),
        Column("reference_set", pa.string(), "the images that were denoised"),
        NOISE_SPACE,
        Column("sigmas", pa.list_(pa.float64()), "levels, ascending", unit="sigma", minimum=0),
        Column(
            "needed_context",
            pa.list_(pa.int32()),
            "per level, the smallest side of a window from which on the loss is within the "
            "tolerance of full context's; never falling",
            unit="positions of the noise space",
            minimum=1,
        ),
        Column(
            "losses",
            pa.string(),
            "JSON: contexts, unit-normalised loss and paired standard error of its excess over "
            "full context, each by context and level",
        ),
        Column("config", pa.string(), "JSON of the full configuration"),
        Column("code_version", pa.string(), "version of the code that measured it"),
    ),
)
