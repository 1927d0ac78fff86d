"""Trained noise classifiers and how far they can be trusted."""

import pyarrow as pa

from schemas.columns import NOISE_SPACE, SHA256_PATTERN
from schemas.contract import Column, Contract

_OLDER = "trained before this was measured"

CONTRACT = Contract(
    name="noise_classifiers",
    version=3,
    one_row_is="one trained noise classifier",
    key=("classifier_id",),
    columns=(
        Column(
            "classifier_id",
            pa.string(),
            "hash of the images, pixels and settings it was made from, and of the version of how "
            "classifiers are made; not of the rest of the code",
        ),
        Column(
            "question",
            pa.string(),
            "what it tells apart",
            allowed=("reference_against_pool", "clean_against_damage", "domain_against_foreign"),
        ),
        Column("reference_set", pa.string(), "the trusted set"),
        Column("pool_batches", pa.list_(pa.string()), "the ingest batches it saw as pool"),
        NOISE_SPACE,
        Column("num_folds", pa.int32(), "networks, each grading what it did not see", minimum=1),
        Column(
            "sigmas",
            pa.list_(pa.float64()),
            "the levels of its curves, ascending",
            unit="sigma",
            minimum=0,
        ),
        Column(
            "balanced_accuracy",
            pa.list_(pa.float64()),
            "per level, on images that the grading fold did not train on",
            unit="fraction",
            minimum=0,
            maximum=1,
        ),
        Column(
            "tv_lower_bound",
            pa.list_(pa.float64()),
            "per level, 2 x balanced accuracy - 1: a lower bound of the total variation",
            minimum=-1,
            maximum=1,
        ),
        Column(
            "tv_standard_error", pa.list_(pa.float64()), "per level, of tv_lower_bound", minimum=0
        ),
        *(
            Column(
                f"tv_{end}",
                pa.list_(pa.float64()),
                f"per level, {end} end of the 90 % band of tv_lower_bound; groups of "
                "near-duplicates resampled",
                nullable=True,
                null_meaning=_OLDER,
                minimum=-1,
                maximum=1,
            )
            for end in ("low", "high")
        ),
        *(
            Column(
                name,
                pa.float64(),
                f"{meaning} of the pool that is as good as the reference",
                unit="fraction",
                nullable=True,
                null_meaning="not estimated",
                minimum=0,
                maximum=1,
            )
            for name, meaning in (
                ("good_share", "estimated share"),
                ("good_share_low", "low end of the 90 % band of the share"),
                ("good_share_high", "high end of the 90 % band of the share"),
            )
        ),
        Column(
            "warnings",
            pa.list_(pa.string()),
            "what to know before its curves are believed",
            nullable=True,
            null_meaning=_OLDER,
        ),
        Column(
            "control",
            pa.string(),
            "JSON of the positive control: damage planted in held-out references, and its finding",
        ),
        Column(
            "method_version",
            pa.int32(),
            "version of how classifiers are made; from one to the next, levels are not comparable",
            nullable=True,
            null_meaning="made before it was recorded here; its folder may say, else by version 1",
            minimum=1,
        ),
        Column("config", pa.string(), "JSON of the full configuration"),
        Column("weights_sha256", pa.string(), "over all folds' weights", pattern=SHA256_PATTERN),
        Column(
            "status",
            pa.string(),
            "candidate until promoted; retired classifiers stay readable",
            allowed=("candidate", "promoted", "retired"),
        ),
        Column("code_version", pa.string(), "version of the code that trained it"),
    ),
)
