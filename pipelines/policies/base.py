"""What all policies share.

A policy is named by the hash of its parameters, with its thresholds in them, and not by table
versions: a new batch falls under the same policy, and what a rule decides of one image never
depends on which images happen to stand beside it.

Shapes: N samples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from schemas.ids import canonical_hash

REFERENCE = "reference"
UNSCORED = "unscored"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Decisions:
    """What a policy says of N samples; NaN stands for null, infinity in `low` and `high` too.

    Attributes:
        sigma_min: float64 (N,).
        slope: float64 (N,), of the decay through sigma_min; see `by_curve.decay_slope`.
        standard_error_octaves: float64 (N,).
        low: float64 (N,), lower end of the 90 % interval of sigma_min.
        high: float64 (N,), upper end.
        reason: N reasons of the contract.
        sigma_max: float64 (N,); 0 is no window. None: no sample has one.
    """

    sigma_min: Floats
    slope: Floats
    standard_error_octaves: Floats
    low: Floats
    high: Floats
    reason: NDArray[np.object_]
    sigma_max: Floats | None = None

    @classmethod
    def without_curve(cls, sigma_min: Floats, reason: NDArray[np.object_]) -> "Decisions":
        """Make decisions that have neither slope nor interval."""
        nothing = np.full(len(sigma_min), np.nan)
        return cls(sigma_min, nothing, nothing, nothing, nothing, reason)

    def __len__(self) -> int:
        return len(self.sigma_min)


class PolicyBase(BaseModel):
    """A rule: frozen values, a name for people, an id from everything else."""

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
