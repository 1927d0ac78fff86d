"""Policies: rules that turn measurements into noise levels. Pure functions and frozen values.

A policy is named by the hash of its parameters, with its thresholds in them, and not by table
versions: a new batch falls under the same policy, and what a rule decides of one image never
depends on which images happen to stand beside it.

Shapes: N samples, L levels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

from ambient_omni.noise.crossing import find_crossings
from pipelines.scorers.base import Direction
from schemas.errors import BadInput, TableMissing
from schemas.ids import canonical_hash, canonical_json, hash_fraction
from schemas.registry import contract
from schemas.root import Root

REFERENCE = "reference"
UNSCORED = "unscored"
ANY_SOURCE = "*"
_TIE_PURPOSE = "quality-rank-tie"


@dataclass(frozen=True)
class Decisions:
    """What a policy says of N samples; NaN stands for null.

    Attributes:
        sigma_min: float64 (N,).
        slope: float64 (N,).
        standard_error_octaves: float64 (N,).
        reason: N reasons of the contract.
    """

    sigma_min: NDArray[np.float64]
    slope: NDArray[np.float64]
    standard_error_octaves: NDArray[np.float64]
    reason: NDArray[np.object_]


class _Policy(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    noise_space: str = Field(min_length=1, description="what levels are measured in")
    name: str = Field(default="", description="what people call it; no part of the hash")

    @property
    def parameters(self) -> dict[str, object]:
        """All that decides, for the hash and the table."""
        return self.model_dump(mode="json", exclude={"name"})

    @property
    def policy_id(self) -> str:
        """Kind and hash of the parameters."""
        kind = str(self.parameters["kind"]).replace("_", "-")
        return f"{kind}-{canonical_hash(self.parameters)}"


class ClassifierThreshold(_Policy):
    """The level from which on a noise classifier cannot tell the image from trusted ones."""

    kind: Literal["classifier_threshold"] = "classifier_threshold"
    classifier_id: str
    tau: float = Field(default=0.45, gt=0, lt=1, description="P(trusted) that is good enough")
    smoothing_octaves: float = Field(
        default=0.25, ge=0, description="average of the curve over neighbouring levels"
    )
    decay_exponent: float | None = Field(
        default=2.0,
        gt=0,
        description="p of a logit that decays like sigma^-p: reads the level where the curve is "
        "clear, below its flat end; null, or tau >= 1/2, reads the threshold's crossing alone",
    )


class FixedPerSource(_Policy):
    """One level for every sample of a source; null keeps a source out of every high level."""

    kind: Literal["fixed_per_source"] = "fixed_per_source"
    levels: dict[str, float | None] = Field(
        min_length=1, description=f"sigma_min by source name; {ANY_SOURCE!r} for all others"
    )

    @field_validator("levels")
    @classmethod
    def _levels_are_levels(cls, levels: dict[str, float | None]) -> dict[str, float | None]:
        for source, level in levels.items():
            if level is not None and not (math.isfinite(level) and level >= 0):
                raise ValueError(f"level {level} of source {source!r} is no sigma: finite and >= 0")
        return levels


class QualityRank(_Policy):
    """The best by one score get level 0, the rest another; the border is frozen in the policy.

    Make one with `measures.freeze_quality_rank`, which finds the border on given batches.
    """

    kind: Literal["quality_rank"] = "quality_rank"
    pack: str
    column: str
    scorer_version: str
    direction: Literal["higher_is_better", "lower_is_better"]
    good_fraction: float = Field(ge=0, le=1, description="share that the border was made for")
    cut_score: float | None = Field(description="score of the last good sample; null: none is good")
    cut_tie: float = Field(default=1.0, description="tie-break of the last good sample")
    sigma_min_rest: float | None = Field(ge=0, description="level of the rest; null: never")


AnyPolicy = ClassifierThreshold | FixedPerSource | QualityRank
Policy = Annotated[AnyPolicy, Field(discriminator="kind")]
_adapter: TypeAdapter[AnyPolicy] = TypeAdapter(Policy)


def decide_by_curve(
    policy: ClassifierThreshold,
    logits_NL: NDArray[np.floating],
    standard_error_NL: NDArray[np.floating],
    sigmas_L: NDArray[np.floating],
) -> Decisions:
    """Decide from curves of logits; a curve with a number that is not finite is unscored."""
    found = find_crossings(
        logits_NL,
        sigmas_L,
        policy.tau,
        standard_error_NL=standard_error_NL,
        smoothing_octaves=policy.smoothing_octaves,
        decay_exponent=policy.decay_exponent if policy.tau < 0.5 else None,
    )
    is_measured = np.isfinite(logits_NL).all(axis=1)
    reason = np.where(found.sigma_min == 0, "usable_everywhere", "crossing")
    reason = np.where(found.is_null, "never_crosses", reason)
    reason = np.where(is_measured, reason, UNSCORED)
    return Decisions(
        sigma_min=np.where(found.is_null, np.nan, found.sigma_min),
        slope=found.slope,
        standard_error_octaves=found.standard_error_octaves,
        reason=reason.astype(object),
    )


def decide_by_source(policy: FixedPerSource, sources: Sequence[str]) -> Decisions:
    """Decide from source names.

    Raises:
        BadInput: a source has no level and there is no level for all others.
    """
    unknown = sorted(set(sources) - set(policy.levels))
    if unknown and ANY_SOURCE not in policy.levels:
        raise BadInput(
            f"policy {policy.policy_id} has no level for source {unknown[0]!r}; "
            f"name it or {ANY_SOURCE!r} in levels"
        )
    rest = policy.levels.get(ANY_SOURCE)
    levels = [policy.levels.get(source, rest) for source in sources]
    sigma_min = np.array([np.nan if level is None else level for level in levels], np.float64)
    return _without_curve(sigma_min, np.full(len(sigma_min), "fixed_per_source", object))


def decide_by_rank(
    policy: QualityRank, scores_N: NDArray[np.floating], sample_ids: Sequence[str]
) -> Decisions:
    """Decide from scores, NaN for null. A null score is not annotated, and never good.

    A sample is good if its score is better than the border's, or equal with a tie-break that is
    not above the border's: the same split whatever the order or the company.
    """
    scores = np.asarray(scores_N, np.float64)
    is_scored = np.isfinite(scores)
    good = np.zeros(len(scores), bool)
    if policy.cut_score is not None:
        badness = _badness(scores, policy.direction)
        cut = _badness(np.array(policy.cut_score), policy.direction)
        good = (badness < cut) | ((badness == cut) & (tie_breaks(sample_ids) <= policy.cut_tie))
    rest = np.nan if policy.sigma_min_rest is None else policy.sigma_min_rest
    sigma_min = np.where(good, 0.0, rest)
    sigma_min[~is_scored] = np.nan
    reason = np.where(good, "rank_good", "rank_rest")
    reason = np.where(is_scored, reason, UNSCORED)
    return _without_curve(sigma_min, reason.astype(object))


def rank_border(
    scores_N: NDArray[np.floating],
    sample_ids: Sequence[str],
    direction: Direction,
    good_fraction: float,
) -> tuple[float | None, float]:
    """Return (score, tie-break) of the last good sample, so that exactly the fraction is good.

    `round(good_fraction * number scored)` samples are good; ties are split by content hash.
    (None, 0) where that is no sample.
    """
    scores = np.asarray(scores_N, np.float64)
    scored = np.flatnonzero(np.isfinite(scores))
    num_good = round(good_fraction * len(scored))
    if num_good == 0:
        return None, 0.0
    ties = tie_breaks(sample_ids)[scored]
    order = np.lexsort((ties, _badness(scores[scored], direction)))
    last = order[num_good - 1]
    return float(scores[scored][last]), float(ties[last])


def tie_breaks(sample_ids: Sequence[str]) -> NDArray[np.float64]:
    """Return numbers in [0, 1) that order samples of one score, from their bytes alone."""
    return np.array([hash_fraction(i, _TIE_PURPOSE) for i in sample_ids], np.float64)


def register(root: Root, policy: AnyPolicy) -> str:
    """Write the policy into `policies` and return its id; twice equals once."""
    row = {
        "policy_id": policy.policy_id,
        "name": policy.name or policy.policy_id,
        "kind": policy.kind,
        "parameters": canonical_json(policy.parameters),
        "noise_space": policy.noise_space,
    }
    root.tables.upsert("policies", contract("policies").table([row]), job="register-policy")
    return policy.policy_id


def load(root: Root, policy_id: str) -> AnyPolicy:
    """Read a registered policy.

    Raises:
        TableMissing: no policy has that id.
    """
    rows = root.tables.read("policies", where={"policy_id": policy_id}).to_pylist()
    if not rows:
        known = root.tables.read("policies", ["policy_id"])["policy_id"].to_pylist()
        raise TableMissing(f"no policy {policy_id!r} is registered (there are: {known})")
    policy = _adapter.validate_json(rows[0]["parameters"])
    return policy.model_copy(update={"name": rows[0]["name"]})


def from_values(values: Mapping[str, Any]) -> AnyPolicy:
    """Build a policy from plain values; pydantic's ValidationError names what is wrong."""
    return _adapter.validate_python(dict(values))


def _badness(scores: NDArray[np.float64], direction: Direction) -> NDArray[np.float64]:
    return scores if direction == "lower_is_better" else -scores


def _without_curve(sigma_min: NDArray[np.float64], reason: NDArray[np.object_]) -> Decisions:
    nothing = np.full(len(sigma_min), np.nan)
    return Decisions(sigma_min, nothing, nothing, reason)
