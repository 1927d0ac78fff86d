"""Policies: rules that turn measurements into noise levels. Pure functions and frozen values."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from pipelines.policies.base import REFERENCE, UNSCORED, Decisions
from pipelines.policies.by_curve import (
    ClassifierThreshold,
    CurvePolicy,
    decide_by_curve,
    own_levels,
    reading_of,
)
from pipelines.policies.by_duplicates import BestOfDuplicates, without_duplicates
from pipelines.policies.by_pilot import PilotCalibrated, decide_by_pilot
from pipelines.policies.by_rank import QualityRank, decide_by_rank, rank_border, tie_breaks
from pipelines.policies.by_sample_size import SampleSizeAware, decide_by_sample_size
from pipelines.policies.by_source import (
    ANY_SOURCE,
    ClassifierPerSource,
    FixedPerSource,
    decide_by_source,
    levels_of_sources,
)
from pipelines.policies.by_window import CropWindow, decide_windows, with_windows
from pipelines.policies.external import External, decide_external
from schemas.errors import TableMissing
from schemas.ids import canonical_json
from schemas.registry import contract
from schemas.root import Root

__all__ = [
    "ANY_SOURCE",
    "REFERENCE",
    "UNSCORED",
    "AnyPolicy",
    "BestOfDuplicates",
    "ClassifierPerSource",
    "ClassifierThreshold",
    "CropWindow",
    "CurvePolicy",
    "Decisions",
    "External",
    "FixedPerSource",
    "PilotCalibrated",
    "Policy",
    "QualityRank",
    "SampleSizeAware",
    "decide_by_curve",
    "decide_by_pilot",
    "decide_by_rank",
    "decide_by_sample_size",
    "decide_by_source",
    "decide_external",
    "decide_windows",
    "from_values",
    "levels_of_sources",
    "load",
    "own_levels",
    "rank_border",
    "reading_of",
    "register",
    "tie_breaks",
    "with_windows",
    "without_duplicates",
]

AnyPolicy = (
    ClassifierThreshold
    | FixedPerSource
    | QualityRank
    | SampleSizeAware
    | PilotCalibrated
    | CropWindow
    | External
    | BestOfDuplicates
    | ClassifierPerSource
)
Policy = Annotated[AnyPolicy, Field(discriminator="kind")]
_adapter: TypeAdapter[AnyPolicy] = TypeAdapter(Policy)


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
