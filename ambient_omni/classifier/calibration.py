"""Making a classifier's logits honest on images that it did not train on.

A network that has learned its few references by heart calls every other image foreign, also at
levels where nothing can be told. So its logits are mapped per level by `scale x logit + offset`,
fitted on held-out references and held-out pool images. Where it knows nothing the scale falls to
0 and the logit with it: P = 1/2, as it must be.

Legend: L levels, K noisings, N images.
Source: Platt, Probabilistic outputs for support vector machines, 1999.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Keeps the fit finite where the two sides do not overlap. A hundredth of an image is too little
# to be seen anywhere else.
_RIDGE = 1e-3
_NUM_NEWTON_STEPS = 50


@dataclass(frozen=True)
class Calibration:
    """`scale` and `offset`, each (L,): calibrated = scale x logit + offset."""

    scale: Floats
    offset: Floats

    def apply(self, logits_NLK: NDArray[np.floating]) -> Floats:
        """Return calibrated logits, shape as given: (N, L) or (N, L, K)."""
        shape = (-1, *[1] * (np.ndim(logits_NLK) - 2))
        return logits_NLK * self.scale.reshape(shape) + self.offset.reshape(shape)

    def at(self, sigmas_L: Floats, wanted: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Return (scale, offset) at any levels, shape as given; straight lines in ln sigma.

        Args:
            sigmas_L: the levels of this calibration.
            wanted: levels to read it at; beyond the ends it stays what it is there.
        """
        at, known = np.log(wanted), np.log(sigmas_L)
        return np.interp(at, known, self.scale), np.interp(at, known, self.offset)


def calibrate(
    trusted_NLK: NDArray[np.floating], pool_NLK: NDArray[np.floating], *, reach: int = 1
) -> Calibration:
    """Fit the map of each level on it and its `reach` neighbours on either side.

    Single noisings are fitted, not their means: P(trusted) speaks of one noised image, and many
    noisings of one image would tell more than the diffusion model ever sees.

    Args:
        trusted_NLK: logits of held-out trusted images.
        pool_NLK: logits of held-out pool images. Both sides weigh the same.
        reach: neighbouring levels that are used on either side.
    """
    num_levels = trusted_NLK.shape[1]
    fitted = np.empty((num_levels, 2))
    for level in range(num_levels):
        near = slice(max(0, level - reach), level + reach + 1)
        fitted[level] = _fit(trusted_NLK[:, near].ravel(), pool_NLK[:, near].ravel())
    return Calibration(fitted[:, 0], fitted[:, 1])


def _fit(trusted: NDArray[np.floating], pool: NDArray[np.floating]) -> tuple[float, float]:
    """Return (scale in 0..1, offset) of the largest balanced likelihood.

    The scale only tones down: a network that trained to the same likelihood is seldom too timid,
    and where it seems so, at high levels, noise would be enlarged.
    """
    logits = np.concatenate([trusted, pool]).astype(np.float64)
    is_trusted = np.arange(len(logits)) < len(trusted)
    weights = np.where(is_trusted, 0.5 / len(trusted), 0.5 / len(pool))
    scale, offset = _newton(logits, is_trusted, weights)
    if 0 <= scale <= 1:
        return scale, offset
    fixed = float(np.clip(scale, 0, 1))
    return fixed, _newton_offset(fixed * logits, is_trusted, weights)


def _newton(logits: Floats, is_trusted: NDArray[np.bool_], weights: Floats) -> tuple[float, float]:
    # In units of their spread, so that the ridge means the same for every network.
    unit = max(float(np.sqrt(weights @ logits**2)), 1e-9)
    features = np.stack([logits / unit, np.ones_like(logits)], axis=1)
    theta = np.zeros(2)
    for _ in range(_NUM_NEWTON_STEPS):
        probability = _sigmoid(features @ theta)
        gradient = features.T @ (weights * (probability - is_trusted)) + _RIDGE * theta
        curvature = (features.T * (weights * probability * (1 - probability))) @ features
        step = np.linalg.solve(curvature + _RIDGE * np.eye(2), gradient)
        # A long step overshoots where both sides are far apart.
        theta -= step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-8:
            break
    return float(theta[0] / unit), float(theta[1])


def _newton_offset(logits: Floats, is_trusted: NDArray[np.bool_], weights: Floats) -> float:
    offset = 0.0
    for _ in range(_NUM_NEWTON_STEPS):
        probability = _sigmoid(logits + offset)
        gradient = weights @ (probability - is_trusted) + _RIDGE * offset
        step = gradient / (weights @ (probability * (1 - probability)) + _RIDGE)
        offset -= float(np.clip(step, -2, 2))
        if abs(step) < 1e-8:
            break
    return offset


def _sigmoid(logits: Floats) -> Floats:
    result: Floats = 0.5 * (1 + np.tanh(0.5 * logits))
    return result
