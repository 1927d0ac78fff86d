"""The study's goals as results of the benchmarks."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.common import record
from benchmarks.evidence import plan
from benchmarks.evidence.groups import (
    Group,
    above_and_below,
    gap_told,
    groups_of,
    images_needed,
    name_of,
    percent,
    title,
    told,
)
from benchmarks.evidence.results import Study

MARGIN = 0.02
"""How much worse than the better of the two baselines counts as worse; set before any result."""


def record_goals(study: Study) -> None:
    """Write the results of what is computed so far."""
    worst: list[tuple[float, str]] = []
    needed: list[float] = []
    for group in groups_of(study, study.problems()):
        chosen = group.chosen()
        if chosen:
            excess = float(np.mean(group.excess(chosen)))
            worst.append((excess, f"{title(group.problem)}: {100 * excess:+.1f} %"))
    for group in groups_of(study, [*plan.headline_problems(), *plan.mixed_problems()]):
        chosen = group.chosen()
        if chosen:
            needed += images_needed(group, chosen)
        _record_gap(group)
    if worst:
        record(
            "never_worse", 100 * max(worst)[0], unit="% of held-out loss above the better baseline",
            goal=100 * MARGIN, better="lower",
            compared_with="the better of only-reference and keep-everything, worst problem",
            spread="; ".join(text for _, text in sorted(worst, reverse=True)),
            note="policy chosen by validation loss; margin set in advance",
        )  # fmt: skip
    if needed and all(math.isfinite(value) for value in needed):
        record(
            "images_to_reference_best", max(needed), unit="share of only-reference's images",
            goal=0.5, better="lower", compared_with="images until only-reference's best checkpoint",
            spread=f"{len(needed)} runs, {min(needed):.2f} .. {max(needed):.2f}",
            note=f"validation loss, looked at {study.form.training.num_checks} times a run",
        )  # fmt: skip


def record_longer(study: Study) -> None:
    """Write the result of the long form."""
    for group in groups_of(study, [plan.long_problem()]):
        _record_gap(group, "_long")


def _record_gap(group: Group, suffix: str = "") -> None:
    problem, nearest, chosen = group.problem, group.chosen_by_distance(), group.chosen()
    if nearest is None or chosen is None:
        return
    if not math.isfinite(group.gap_of_means(nearest, "fd")):
        print(f"{title(problem)}: all-clean is not ahead in FD-Lite0; no gap to close")
        return
    above, below = above_and_below(group, chosen)
    name = f"{problem.damage}_{problem.severity:g}" if problem.severity else problem.damage
    record(
        f"gap_closed_{name}{suffix}",
        100 * group.gap_of_means(nearest, "fd"),
        unit="% of the gap in FD-Lite0", goal=65, better="higher",
        compared_with="only-reference 0 %, all-clean 100 %",
        spread=f"{len(group.gaps(nearest, 'fd'))} seeds: {gap_told(group, nearest, 'fd')}",
        note=f"{name_of(nearest)}, by validation distance; {name_of(chosen)}, by validation loss: "
        f"{gap_told(group, chosen, 'fd')}, in loss {gap_told(group, chosen, 'loss')}, "
        f"above the median sigma_min {percent(above)} % (goal 85), below it "
        f"{told([100 * b for b in below], '+.1f')} % against the better baseline (goal 0)",
        packages=("torch", "numpy", "torch-fidelity"),
    )  # fmt: skip
