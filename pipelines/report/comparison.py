"""Which arm is best on held-out images, with the error of that statement.

Shapes: N held-out images, L noise levels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ambient_omni.evaluation import HeldOutLoss, read_heldout
from pipelines.report.drawing.style import words
from schemas.errors import BadInput
from schemas.root import Root

Floats = NDArray[np.float64]

# A difference of fewer paired standard errors is called a tie: about 95 %.
CLEAR_STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Difference:
    """Mean over images of one arm's loss minus another's, with its standard error."""

    mean: float
    standard_error: float

    @property
    def is_clear(self) -> bool:
        """Whether the two can be told apart."""
        return abs(self.mean) > CLEAR_STANDARD_ERRORS * self.standard_error

    def __str__(self) -> str:
        return with_error(self.mean, self.standard_error)


@dataclass(frozen=True)
class Comparison:
    """Held-out losses of at least one arm, all on the same images, levels and noise.

    `not_evaluated` names the arms that have no held-out loss.
    """

    losses: Mapping[str, HeldOutLoss]
    not_evaluated: tuple[str, ...] = ()

    @property
    def ranking(self) -> list[str]:
        """Arms from the lowest total loss to the highest."""
        return sorted(self.losses, key=lambda arm: self.losses[arm].total)

    @property
    def best(self) -> HeldOutLoss:
        """The lowest loss."""
        return self.losses[self.ranking[0]]

    @property
    def sigmas(self) -> Floats:
        """The levels (L,), ascending."""
        return np.sort(np.array(self.best.sigmas))

    def per_image(self, arm: str) -> Floats:
        """Return an arm's losses (N, L), levels ascending."""
        loss = self.losses[arm]
        return np.array(loss.per_image)[:, np.argsort(loss.sigmas)]

    def total_difference(self, arm: str, other: str) -> Difference:
        """Return the paired difference of the losses summed over levels."""
        mean, error = _mean_and_error(
            (self.per_image(arm) - self.per_image(other)).sum(axis=1, keepdims=True)
        )
        return Difference(float(mean[0]), float(error[0]))

    def level_difference(self, arm: str, other: str) -> tuple[Floats, Floats]:
        """Return the paired relative difference per level (L,) and its standard error (L,)."""
        base = self.per_image(other).mean(axis=0)
        mean, error = _mean_and_error(self.per_image(arm) - self.per_image(other))
        return mean / base, error / base

    def headline(self) -> str:
        """Say in plain words which arm is best, and how sure that is."""
        first, *others = self.ranking
        total = with_error(self.best.total, self.best.total_standard_error)
        where = (
            f"summed over {len(self.best.sigmas)} noise levels, on {self.best.num_images} "
            f"{self.best.reference_set} images that no arm was trained on"
        )
        if not others:
            return f"Only “{words(first)}” was evaluated: held-out loss {total}, {where}."
        ties = [arm for arm in others if not self.total_difference(arm, first).is_clear]
        gaps = _listed([f"“{words(a)}” {self.total_difference(a, first)}" for a in others])
        measured = f"held-out loss {total}, {where}. Image by image, the others lie higher: {gaps}."
        if not ties:
            return f"“{words(first).capitalize()}” is best: {measured}"
        tied = _listed([f"“{words(arm)}”" for arm in ties])
        return (
            f"Too close to call: “{words(first)}” has the lowest {measured} "
            f"The difference to {tied} is within its error."
        )

    def verdict_on(self, arm: str) -> str:
        """Say how one arm stands to each other one; empty where there is none."""
        others = [name for name in self.losses if name != arm]
        if arm not in self.losses or not others:
            return ""
        told = []
        for other in others:
            gap = self.total_difference(arm, other)
            word = "not told apart from" if not gap.is_clear else "worse than"
            word = "better than" if gap.is_clear and gap.mean < 0 else word
            told.append(f"{word} “{words(other)}” ({gap.mean / self._total(other):+.1%})")
        return f"“{words(arm).capitalize()}” is {_listed(told)}."

    def _total(self, arm: str) -> float:
        return self.losses[arm].total


def read_comparison(root: Root, arms: Mapping[str, str], evaluation_set: str) -> Comparison | None:
    """Read the held-out losses of all arms that have one; None if no arm has.

    Raises:
        BadInput: arms were evaluated on other images, levels or noise than others.
    """
    losses = {}
    for arm, run_id in arms.items():
        found = read_heldout(root.runs / run_id)
        if evaluation_set in found:
            losses[arm] = found[evaluation_set]
    asked = {
        # The weight of a level depends on the deviation of the data, which latents' packs measure.
        (tuple(x.sample_rows), tuple(x.sigmas), x.num_noises, f"{x.sigma_data:.4g}")
        for x in losses.values()
    }
    if len(asked) > 1:
        raise BadInput(
            f"the arms {', '.join(losses)} were evaluated on different images, levels or scales, "
            "so they cannot be compared: evaluate them anew with `python -m ambient_omni evaluate`"
        )
    left_out = tuple(arm for arm in arms if arm not in losses)
    return Comparison(losses, left_out) if losses else None


def with_error(mean: float, error: float) -> str:
    """Write a figure with two digits of its standard error, e.g. 10.283 ± 0.015."""
    if not math.isfinite(error):
        return f"{mean:.4g} (no error: one image)"
    places = 3 if error <= 0 else min(8, max(0, 1 - math.floor(math.log10(error))))
    return f"{mean:.{places}f} ± {error:.{places}f}"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _mean_and_error(values: Floats) -> tuple[Floats, Floats]:
    if len(values) < 2:
        return values.mean(axis=0), np.full(values.shape[1], np.inf)
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))
