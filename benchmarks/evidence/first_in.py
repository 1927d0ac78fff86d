"""``python -m benchmarks.evidence.first_in``: which images of a pool does a threshold let in first?

Of the headline's problems, from the study's cache: how much contrast the images let in at a level
had before the damage, and how much they lost by it, beside the whole pool. N images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.common import cache_folder
from benchmarks.evidence import plan
from benchmarks.evidence.cells import Cell, Problem, Task
from benchmarks.evidence.curves import NOISE_SPACE
from benchmarks.evidence.images import Pixels, damaged, draw
from benchmarks.evidence.store import Store
from benchmarks.photos import step_of
from pipelines.policies import ClassifierThreshold, own_levels

_LEVELS = (0.15, 0.25, 0.4)

Floats = NDArray[np.float64]


def first_in(problem: Problem, store: Store) -> str:
    """Return a row of the table: the problem, its pool, and what is let in at some levels."""
    arrays = store.arrays(Task.of("curves", Cell.of(problem, "classifier_hard")), plan.FULL)
    threshold = ClassifierThreshold(noise_space=NOISE_SPACE, classifier_id="evidence")
    own = own_levels(threshold, *(arrays[name] for name in ("logits", "errors", "sigmas")))
    clean = draw(problem.data, "pool", len(own), problem.seed)
    after = damaged(clean, problem.damage, problem.severity, problem.seed)
    contrast = np.array([step_of(image) for image in clean.pixels])
    lost = _rms(clean.pixels, after.pixels)
    cells = [_told(np.ones(len(own), bool), contrast, lost)]
    cells += [_told(own <= sigma, contrast, lost) for sigma in _LEVELS]
    order = spearmanr(own, lost)[0]
    return f"| {problem.name} | {' | '.join(cells)} | {order:+.2f} |"


def _told(chosen: NDArray[np.bool_], contrast: Floats, lost: Floats) -> str:
    if not chosen.any():
        return "–"
    return f"{chosen.mean():.0%}: {np.median(contrast[chosen]):.0f}, {np.median(lost[chosen]):.1f}"


def _rms(clean: Pixels, after: Pixels) -> Floats:
    difference = clean.astype(np.float64) - after
    found: Floats = np.sqrt(np.square(difference).mean(axis=(1, 2, 3)))
    return found


def main() -> None:
    store = Store(cache_folder("evidence"))
    print(
        "share of the pool: contrast (RMS step between neighbours), lost (RMS); grey levels of 255"
    )
    print(f"| problem | pool | {' | '.join(f'in at {s:g}' for s in _LEVELS)} | level with lost |")
    print("|---|---|" + "---|" * (len(_LEVELS) + 1))
    for problem in sorted(plan.headline_problems(), key=lambda p: (p.damage, p.seed)):
        print(first_in(problem, store), flush=True)


if __name__ == "__main__":
    main()
