"""How much a classifier can tell, and whether it tells what it must.

An untrained classifier says 1/2 everywhere, so that every image would be usable at every level.
Hence the control: damage is planted in held-out references, and it must be found at low levels.

Legend: N images, L levels, K noisings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ambient_omni import rng
from ambient_omni.classifier.config import ControlConfig
from ambient_omni.classifier.good_share import resample_groups
from ambient_omni.damage import damage
from schemas.errors import ClassifierRefused

Floats = NDArray[np.float64]

_NUM_RESAMPLES = 200
_BAND = (0.05, 0.95)


@dataclass(frozen=True)
class Separation:
    """How well two sets are told apart, per level; each field is (L,).

    tv_lower_bound = 2 x balanced accuracy - 1 is a lower bound of the total variation between the
    noised sets, because no classifier reaches more: it errs on the unsafe side.
    """

    balanced_accuracy: Floats
    tv_lower_bound: Floats
    tv_standard_error: Floats


def separation(trusted_NLK: NDArray[np.floating], other_NLK: NDArray[np.floating]) -> Separation:
    """Measure how often single noisings fall on the right side of P = 1/2.

    The standard error counts images, not noisings: those of one image go together.
    """
    right_trusted = (trusted_NLK > 0).mean(axis=2)
    right_other = (other_NLK <= 0).mean(axis=2)
    accuracy = (right_trusted.mean(axis=0) + right_other.mean(axis=0)) / 2
    variance = sum(_variance_of_mean(side) for side in (right_trusted, right_other))
    # TV = 2 x mean of both sides - 1 = their sum - 1.
    return Separation(accuracy, 2 * accuracy - 1, np.sqrt(variance))


def plant(
    images_BHWC: NDArray[np.uint8], sample_ids: Sequence[str], kind: str, severity: float, seed: int
) -> NDArray[np.uint8]:
    """Return damaged copies of images; the damage of each is addressed by its sample_id."""
    return np.stack(
        [
            damage(kind, severity, image, rng.generator(seed, "positive-control", kind, sample_id))
            for image, sample_id in zip(images_BHWC, sample_ids, strict=True)
        ]
    )


@dataclass(frozen=True)
class Band:
    """90 % band of the lower bound of TV, per level; groups, not images, are resampled."""

    tv_low: Floats
    tv_high: Floats


def separation_band(
    trusted_NLK: NDArray[np.floating],
    other_NLK: NDArray[np.floating],
    *,
    trusted_groups: Sequence[str],
    other_groups: Sequence[str],
    seed: int,
) -> Band:
    """Return the band of `separation(...).tv_lower_bound`."""
    right = [(trusted_NLK > 0).mean(axis=2), (other_NLK <= 0).mean(axis=2)]
    groups = (trusted_groups, other_groups)
    bounds = []
    for number in range(_NUM_RESAMPLES):
        draw = rng.generator(seed, "separation-band", number)
        means = [
            side[resample_groups(g, draw)].mean(axis=0)
            for side, g in zip(right, groups, strict=True)
        ]
        bounds.append(means[0] + means[1] - 1)
    low, high = np.quantile(bounds, _BAND, axis=0)
    return Band(low, high)


def separation_at_best(
    undamaged_NLK: NDArray[np.floating], other_NLK: NDArray[np.floating]
) -> Separation:
    """Measure how well two sets are told apart by the best threshold of each level.

    The threshold, half way between the medians, comes of every other image and is measured on the
    rest. So it does not matter how the logits are calibrated: only what the network sees.
    """
    halves = []
    for start in (0, 1):
        seen = [np.median(side[start::2], axis=(0, 2)) for side in (undamaged_NLK, other_NLK)]
        middle = (seen[0] + seen[1])[None, :, None] / 2
        halves.append(
            separation(undamaged_NLK[1 - start :: 2] - middle, other_NLK[1 - start :: 2] - middle)
        )
    return Separation(
        (halves[0].balanced_accuracy + halves[1].balanced_accuracy) / 2,
        (halves[0].tv_lower_bound + halves[1].tv_lower_bound) / 2,
        np.hypot(halves[0].tv_standard_error, halves[1].tv_standard_error) / 2,
    )


def judge_control(
    undamaged_NLK: NDArray[np.floating],
    planted_NLK: Mapping[str, NDArray[np.floating]],
    config: ControlConfig,
) -> dict[str, dict[str, float | bool]]:
    """Return, per kind, how well planted damage is found at the lowest levels.

    Args:
        undamaged_NLK: logits of held-out references; raw ones do.
        planted_NLK: those of the same references after damage, by kind.
        config: the bar, and how many levels count.
    """
    num_low = max(1, round(config.level_fraction * undamaged_NLK.shape[1]))
    findings: dict[str, dict[str, float | bool]] = {}
    for kind, logits in planted_NLK.items():
        found = separation_at_best(undamaged_NLK[:, :num_low], logits[:, :num_low])
        # The median level: one lucky level proves nothing.
        bound = float(np.median(found.tv_lower_bound))
        error = float(np.median(found.tv_standard_error))
        findings[kind] = {
            "severity": config.severities[kind],
            "tv_lower_bound": bound,
            "tv_standard_error": error,
            "found": bool(bound - 2 * error > config.bar),
        }
    return findings


def require_found(
    findings: Mapping[str, Mapping[str, float | bool]], config: ControlConfig
) -> None:
    """Refuse a classifier that finds none of the planted kinds.

    One kind is enough: a pool that is only blurred teaches nothing about noise.

    Raises:
        ClassifierRefused: none was found.
    """
    if any(finding["found"] for finding in findings.values()):
        return
    told = ", ".join(
        f"{kind} {finding['tv_lower_bound']:.2f}±{finding['tv_standard_error']:.2f}"
        for kind, finding in findings.items()
    )
    raise ClassifierRefused(
        f"the noise classifier does not find damage planted in references (lower bound of the "
        f"total variation: {told}; needed: above {config.bar} by two standard errors): train it "
        "longer (num_images), give more references, or use a fixed policy"
    )


def require_told_apart(told: Separation, config: ControlConfig) -> None:
    """Refuse a classifier of domains that does not tell them apart at low levels.

    Raises:
        ClassifierRefused: total variation is not above the bar by two standard errors.
    """
    num_low = max(1, round(config.level_fraction * len(told.tv_lower_bound)))
    bound = float(np.median(told.tv_lower_bound[:num_low]))
    error = float(np.median(told.tv_standard_error[:num_low]))
    if bound - 2 * error <= config.bar:
        raise ClassifierRefused(
            f"the classifier does not tell the domains apart (lower bound of the total variation "
            f"{bound:.2f}±{error:.2f}; needed: above {config.bar} by two standard errors): train "
            "it longer (num_images), or use the foreign images as if they were the domain's own"
        )


def _variance_of_mean(right_NL: NDArray[np.floating]) -> Floats:
    """Return (L,) variances; one wrong image is the least that is assumed (Laplace)."""
    count = len(right_NL)
    mean = (right_NL.sum(axis=0) + 1) / (count + 2)
    # Between 0 and 1 no variance exceeds mean (1 - mean): noisings of one image count as one.
    variance: Floats = mean * (1 - mean) / count
    return variance
