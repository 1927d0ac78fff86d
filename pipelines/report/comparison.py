"""Which arm is best on held-out images, with the error of that statement.

Shapes: A arms, N held-out images, L noise levels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ambient_omni.evaluation import HeldOutLoss, read_heldout
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


@dataclass(frozen=True)
class Comparison:
    """Held-out losses of several arms on the same images, levels and noise."""

    losses: Mapping[str, HeldOutLoss]

    @property
    def ranking(self) -> list[str]:
        """Arms from the lowest total loss to the highest."""
        return sorted(self.losses, key=lambda arm: self.losses[arm].total)

    @property
    def sigmas(self) -> Floats:
        """The levels (L,), ascending."""
        return np.sort(np.array(next(iter(self.losses.values())).sigmas))

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
        best = self.losses[first]
        where = (
            f"summed over {len(best.sigmas)} noise levels, on {best.num_images} "
            f"{best.reference_set} images that nobody trained on"
        )
        if not others:
            return f"Only {display(first)} was trained: held-out loss {best.total:.3f}, {where}."
        rest = " and ".join(f"{self.losses[a].total:.3f} ({display(a)})" for a in others)
        gap = self.total_difference(others[0], first)
        paired = f"{gap.mean:.3f} ± {gap.standard_error:.3f} above it image by image"
        if not gap.is_clear:
            return (
                f"Too close to call: {display(first)} has the lowest held-out loss, "
                f"{best.total:.3f} against {rest}, {where}, but the next arm, "
                f"{display(others[0])}, lies {paired}, within the error."
            )
        return (
            f"{display(first).capitalize()} is best: held-out loss {best.total:.3f} against "
            f"{rest}, {where}. The next arm, {display(others[0])}, lies {paired}."
        )


def read_comparison(root: Root, arms: Mapping[str, str], evaluation_set: str) -> Comparison:
    """Read the held-out losses of all arms.

    Raises:
        BadInput: an arm was not evaluated on the set, or arms were evaluated on other images or
            levels.
    """
    losses = {}
    for arm, run_id in arms.items():
        found = read_heldout(root.runs / run_id)
        if evaluation_set not in found:
            raise BadInput(
                f"arm {arm} (run {run_id}) has no held-out loss on {evaluation_set!r}: run "
                f"`python -m ambient_omni evaluate` on it first"
            )
        losses[arm] = found[evaluation_set]
    asked = {(tuple(x.sample_rows), tuple(x.sigmas), x.num_noises) for x in losses.values()}
    if len(asked) > 1:
        raise BadInput("the arms were evaluated on different images or levels: evaluate them anew")
    return Comparison(losses)


def display(arm: str) -> str:
    """Return an arm's name as words."""
    return {"only_reference": "only the reference"}.get(arm, arm.replace("_", " "))


def _mean_and_error(values: Floats) -> tuple[Floats, Floats]:
    if len(values) < 2:
        return values.mean(axis=0), np.full(values.shape[1], np.inf)
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))
