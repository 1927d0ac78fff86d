"""The study's goals as results of the benchmarks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.common import record, withdraw
from benchmarks.evidence import plan
from benchmarks.evidence.cells import NO_DAMAGE, Arm, Problem
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

_DEFAULT: Arm = "classifier_hard"

MARGIN = 0.02
"""How much worse than the better of the two baselines counts as worse; set before any result."""


def record_goals(study: Study) -> None:
    """Write the results of what is computed so far; withdraw those that are none any more."""
    in_sight = "seeds and test distances that were in sight when one_level was made"
    _record_gaps(study, list(plan.headline_problems()), in_sight)
    fresh = "seeds that no choice of method has seen"
    _record_gaps(study, plan.again_problems(), fresh, "_fresh_seeds", plan.FRESH_SEEDS)
    _record_gaps(study, plan.mixed_problems(), "made after all choices of method")
    _record_worst(study)
    _record_images(study)


def record_longer(study: Study) -> None:
    """Write the result of the long form."""
    told_of = "thrice the budget, seeds as of the shorter"
    _record_gaps(study, [plan.long_problem()], told_of, "_long")


def _record_gaps(
    study: Study,
    problems: Sequence[Problem],
    seen: str,
    suffix: str = "",
    seeds: Sequence[int] = plan.SEEDS,
) -> None:
    planned = {_name_of_gap(problem, suffix) for problem in problems}
    recorded = {_record_gap(group, seen, suffix) for group in groups_of(study, problems, seeds)}
    for name in sorted(planned - recorded):
        withdraw(name)


def _record_worst(study: Study) -> None:
    planned = {
        problem.model_copy(update={"seed": int(problem.seed in plan.FRESH_SEEDS)})
        for cell in plan.cells(study.form)
        if (problem := cell.problem).damage != NO_DAMAGE
    }
    worst: dict[str, list[tuple[float, str]]] = {"chosen": [], "default": []}
    groups = [*groups_of(study, study.problems())]
    groups += groups_of(study, plan.again_problems(), plan.FRESH_SEEDS)
    for group in groups:
        for kind, arm in (("chosen", group.chosen()), ("default", _DEFAULT)):
            if arm and (found := group.excess(arm)):
                excess, seeds = float(np.mean(found)), len(found)
                fresh = " fresh" if group.problem.seed in plan.FRESH_SEEDS else ""
                text = f"{title(group.problem)}{fresh}: {100 * excess:+.1f} % ({seeds})"
                worst[kind].append((excess, text))
    if not worst["chosen"] or not worst["default"]:
        withdraw("never_worse")
        return
    listed = "; ".join(text for _, text in sorted(worst["chosen"], reverse=True))
    at_default, where = max(worst["default"])
    record(
        "never_worse", 100 * max(worst["chosen"])[0],
        unit="% of held-out loss above the better baseline",
        goal=100 * MARGIN, better="lower",
        compared_with="the better of only-reference and keep-everything (in the mixed pool, of "
        "two filters as well), worst problem",
        spread=f"{len(worst['chosen'])} of {len(planned)} problems (seeds): {listed}",
        note="policy chosen by validation loss among those that were trained, which are up to "
        "five; margin set in advance. Without a choice, the classifier's threshold by its "
        f"defaults: {100 * at_default:+.1f} % at worst, {where}",
    )  # fmt: skip


def _record_images(study: Study) -> None:
    needed: list[float] = []
    budgets: list[float] = []
    never = 0
    for group in groups_of(study, list(plan.headline_problems())):
        chosen = group.chosen()
        if chosen:
            found = images_needed(group, chosen)
            lost = [value for value in found if not math.isfinite(value)]
            needed, never = needed + found, never + len(lost)
            budgets += [
                row.train["curve"][-1][0] / row.train["selected_at"]
                for row in group.rows("only_reference")
            ]
    if not needed:
        withdraw("images_to_reference_best")
        return
    known = [value for value in needed if math.isfinite(value)]
    # One that never gets there needed more than the whole budget.
    ends = [*known, *([max(budgets)] if never else [])]
    record(
        "images_to_reference_best", max(ends),
        unit="share of only-reference's images", goal=0.5, better="lower",
        compared_with="images until only-reference's best checkpoint",
        spread=f"{len(needed)} runs, {min(ends):.2f} .. {max(ends):.2f}"
        + (f", {never} never within the budget" if never else ""),
        note=f"validation loss, looked at {study.form.training.num_checks} times a run; an "
        f"all-clean pool needs {_all_clean(study)}",
    )  # fmt: skip


def _all_clean(study: Study) -> str:
    first = next(iter(groups_of(study, list(plan.headline_problems()))))
    found = images_needed(first, "all_clean") if first.rows("all_clean") else []
    return f"{min(found):.2f} .. {max(found):.2f}" if found else "what is not computed yet"


def _name_of_gap(problem: Problem, suffix: str) -> str:
    kind = f"{problem.damage}_{problem.severity:g}" if problem.severity else problem.damage
    return f"gap_closed_{kind}{suffix}"


def _record_gap(group: Group, seen: str, suffix: str) -> str | None:
    """Record one and return its name; None: there is none to record."""
    nearest, chosen = group.chosen_by_distance(), group.chosen()
    name = _name_of_gap(group.problem, suffix)
    if nearest is None or chosen is None or not group.rows("all_clean"):
        return None
    if not math.isfinite(group.gap_of_means(nearest, "fd")):
        print(f"{name}: all-clean is not ahead in FD-Lite0; no gap to close")
        return None
    above, below = above_and_below(group, chosen)
    gap, half = group.fd_gap
    told_apart = f"{gap:.0f} ± {half:.0f}"
    if not math.isfinite(half):
        told_apart = f"{gap:.0f}, of one seed"
    elif abs(gap) <= half:
        told_apart += ", which these seeds do not tell from none"
    record(
        name,
        100 * group.gap_of_means(nearest, "fd"),
        unit="% of the gap in FD-Lite0", goal=65, better="higher",
        compared_with="only-reference 0 %, all-clean 100 %",
        spread=f"{len(group.gaps(nearest, 'fd'))} seeds: {gap_told(group, nearest, 'fd')}; the gap "
        f"itself is {told_apart}",
        note=f"{name_of(nearest)}, by validation distance; {name_of(chosen)}, by validation loss: "
        f"{gap_told(group, chosen, 'fd')}, in loss {gap_told(group, chosen, 'loss')}, "
        f"above the median sigma_min {percent(above)} % (goal 85), below it "
        f"{told([100 * b for b in below], '+.1f')} % against the better baseline (goal 0); {seen}",
        packages=("torch", "numpy", "torch-fidelity"),
    )  # fmt: skip
    return name
