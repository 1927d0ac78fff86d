"""Power-function averages of the weights: profiles, and any other average made from snapshots.

Source: Karras et al. 2024 (EDM2, arXiv 2312.02696), section 3 and appendix C. An average of width
σ_rel at time t weighs the weights of time τ ≤ t by

    p(τ) = (γ + 1) τ^γ / t^(γ + 1)                    σ_rel = sqrt(γ + 1) / ((γ + 2) sqrt(γ + 3))

and σ_rel is the standard deviation of that profile over t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def gamma_of_sigma_rel(sigma_rel: float) -> float:
    """Return the exponent γ of the profile of relative width σ_rel.

    It is the largest root of γ³ + 7γ² + (16 - σ_rel⁻²) γ + (12 - σ_rel⁻²) = 0.

    Raises:
        ValueError: σ_rel is not in (0, 0.2887): 1/√12 is the width of the uniform profile, γ = 0.
    """
    if not 0 < sigma_rel < 1 / math.sqrt(12):
        raise ValueError(
            f"sigma_rel must be above 0 and below 0.2887 (1/sqrt(12)), not {sigma_rel}"
        )
    narrow = sigma_rel**-2
    return float(np.roots([1, 7, 16 - narrow, 12 - narrow]).real.max())


def sigma_rel_of_gamma(gamma: float) -> float:
    """Return the relative width of the profile with exponent γ."""
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


def power_decay(gamma: float, images_seen: int, batch_size: int) -> float:
    """Return the weight of the old average in the step that brings it to `images_seen` images.

    β = (1 - Δt/t)^(γ + 1): the exact average when the weights are constant during a step. At the
    first step it is 0, so that the initial weights are forgotten at once.
    """
    return float((1 - batch_size / images_seen) ** (gamma + 1))


@dataclass(frozen=True)
class Profile:
    """An average: of exponent γ, over the images from 0 to `time`."""

    gamma: float
    time: float


def reconstruction(snapshots: Sequence[Profile], wanted: Profile) -> NDArray[np.float64]:
    """Return the coefficients (len(snapshots),) whose mix of snapshots is closest to `wanted`.

    How close that is says `mismatch`: a time between two snapshots, or a width far from those that
    are tracked, is not had from any mix.

    Least squares between the profiles over all times, in closed form: A x = b with the inner
    products ⟨p_i, p_j⟩ and ⟨p_i, p⟩ (EDM2, equation 3 and algorithm 3). The coefficients sum to
    about 1 and may be negative.

    Raises:
        ValueError: there is no snapshot, or none reaches as far as the wanted time.
    """
    if not snapshots or max(snapshot.time for snapshot in snapshots) < wanted.time:
        raise ValueError(f"no snapshot reaches {wanted.time:g} images")
    gram = np.array([[_inner(one, other) for other in snapshots] for one in snapshots])
    target = np.array([_inner(one, wanted) for one in snapshots])
    # Neighbouring snapshots are nearly alike: lstsq cuts what float64 cannot tell apart.
    coefficients: NDArray[np.float64] = np.linalg.lstsq(gram, target, rcond=1e-14)[0]
    return coefficients


def mismatch(
    snapshots: Sequence[Profile], coefficients: NDArray[np.float64], wanted: Profile
) -> float:
    """Return how far a mix of profiles is from the wanted one: ‖mix - p‖ / ‖p‖ over all times."""
    profiles, weights = [*snapshots, wanted], np.append(coefficients, -1.0)
    gram = np.array([[_inner(one, other) for other in profiles] for one in profiles])
    return math.sqrt(max(0.0, weights @ gram @ weights) / _inner(wanted, wanted))


def _inner(one: Profile, other: Profile) -> float:
    """⟨p_a, p_b⟩ = (γ_a+1)(γ_b+1) (t_a/t_b)^(γ_b) / ((γ_a+γ_b+1) t_b) for t_a ≤ t_b."""
    early, late = sorted((one, other), key=lambda profile: profile.time)
    factors = (early.gamma + 1) * (late.gamma + 1) / (early.gamma + late.gamma + 1)
    return float(factors * (early.time / late.time) ** late.gamma / late.time)
