"""The decision: from which noise level on a sample may be used."""

import pyarrow as pa
import pyarrow.compute as pc

from schemas.columns import INGEST_BATCH, NOISE_SPACE, SAMPLE_ROW
from schemas.contract import PARTITION_VALUE_PATTERN, Column, Contract, RowConstraint

REASONS = (
    "reference",
    "usable_everywhere",
    "crossing",
    "never_crosses",
    "fixed_per_source",
    "level_of_source",
    "rank_good",
    "rank_rest",
    "unscored",
    "external",
    "duplicate",
)

_NULL_REASONS = (
    "never_crosses", "fixed_per_source", "level_of_source", "rank_rest", "unscored", "duplicate",
)  # fmt: skip

CONTRACT = Contract(
    name="noise_annotations",
    version=4,
    one_row_is="the levels at which one sample may be used under one policy",
    key=("sample_row", "policy_id"),
    partition_by=("policy_id", "ingest_batch"),
    columns=(
        SAMPLE_ROW,
        INGEST_BATCH,
        Column(
            "policy_id",
            pa.string(),
            "the rule that decided",
            pattern=PARTITION_VALUE_PATTERN,
        ),
        Column(
            "sigma_min",
            pa.float64(),
            "usable at sigma >= sigma_min; 0 = at every level",
            unit="sigma in noise_space",
            nullable=True,
            null_meaning="usable at no high level",
            minimum=0,
        ),
        Column(
            "sigma_max",
            pa.float64(),
            "also usable at sigma <= sigma_max; 0 = no such window",
            unit="sigma in noise_space",
            minimum=0,
        ),
        NOISE_SPACE,
        Column(
            "slope",
            pa.float64(),
            "how soft the floor is: d logit / d ln sigma at sigma_min of the decay "
            "logit(sigma) = -t (sigma / sigma_min)^(-slope / t), -t = logit of the rule's tau",
            unit="1 / ln sigma",
            nullable=True,
            null_meaning="the rule has no curve, or the curve does not cross: a hard floor",
            minimum=0,
        ),
        Column(
            "sigma_min_standard_error_octaves",
            pa.float64(),
            "standard error of log2 sigma_min",
            unit="octaves",
            nullable=True,
            null_meaning="the rule gives none",
            minimum=0,
        ),
        Column(
            "sigma_min_low",
            pa.float64(),
            "lower end of the 90 % interval of sigma_min; 0 = at every level",
            unit="sigma in noise_space",
            nullable=True,
            null_meaning="the rule gives no interval, or even the lower end is at no high level",
            minimum=0,
        ),
        Column(
            "sigma_min_high",
            pa.float64(),
            "upper end of the 90 % interval of sigma_min",
            unit="sigma in noise_space",
            nullable=True,
            null_meaning="the rule gives no interval, or the upper end is at no high level",
            minimum=0,
        ),
        Column("reason", pa.string(), "why the level is what it is", allowed=REASONS),
    ),
    constraints=(
        RowConstraint(
            "a null sigma_min comes of never_crosses, fixed_per_source, level_of_source, "
            "rank_rest, unscored or duplicate",
            lambda t: pc.and_(
                pc.is_null(t["sigma_min"]),
                pc.invert(
                    pc.is_in(
                        t["reason"],
                        pa.array(_NULL_REASONS),
                    )
                ),
            ),
        ),
        RowConstraint(
            "an unscored sample has no sigma_min",
            lambda t: pc.and_(pc.equal(t["reason"], "unscored"), pc.is_valid(t["sigma_min"])),
        ),
        RowConstraint(
            "the interval holds sigma_min",
            lambda t: pc.or_(
                pc.fill_null(pc.greater(t["sigma_min_low"], t["sigma_min"]), False),
                pc.fill_null(pc.less(t["sigma_min_high"], t["sigma_min"]), False),
            ),
        ),
    ),
)
