"""What is compared in the study: one problem with all its seeds, and every arm on it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from benchmarks.evidence import plan
from benchmarks.evidence.cells import Arm, Problem
from benchmarks.evidence.images import MIXED
from benchmarks.evidence.results import Row, Study, gap_closed, interval

POLICIES: tuple[Arm, ...] = (
    "classifier_hard", "classifier_soft", "classifier_strict", "one_level", "pilot", "windows",
)  # fmt: skip
"""Among which validation loss chooses; windows are of the foreign images alone."""

BASELINES: tuple[Arm, ...] = ("only_reference", "keep_everything")
FILTERS: tuple[Arm, ...] = ("best_half", "filter_by_level")
"""Simple ways too, where images differ in quality."""


class Group:
    """One problem with those of some seeds of which any damaged arm is there.

    Only-reference and all-clean are of no damage and may have more seeds than those.
    """

    def __init__(self, study: Study, problem: Problem, seeds: Sequence[int] = plan.SEEDS) -> None:
        self.study, self.problem = study, problem
        known = {row.cell.problem for row in study.rows}
        all_seeds = (problem.model_copy(update={"seed": seed}) for seed in seeds)
        self._problems = [each for each in all_seeds if each in known]

    @property
    def baselines(self) -> tuple[Arm, ...]:
        """What everybody could do without levels: what a policy has to be better than."""
        return (*BASELINES, *FILTERS) if self.problem.damage == MIXED else BASELINES

    @property
    def fd_gap(self) -> tuple[float, float]:
        """The gap in FD between only-reference and all-clean: (mean, 95 % half-width) of seeds."""
        pairs = self.together("only_reference", "all_clean")
        return interval([float(a.test["fd"] - c.test["fd"]) for a, c in pairs])

    def rows(self, arm: Arm) -> list[Row]:
        """Return an arm's rows, by seed, of those seeds that have it."""
        found = (self.study.find(problem, arm) for problem in self._problems)
        return [row for row in found if row is not None]

    def together(self, *arms: Arm) -> list[tuple[Row, ...]]:
        """Return rows of several arms, of those seeds that have all of them."""
        by_arm = [{row.cell.problem.seed: row for row in self.rows(arm)} for arm in arms]
        seeds = sorted(set.intersection(*(set(rows) for rows in by_arm)))
        return [tuple(rows[seed] for rows in by_arm) for seed in seeds]

    def gaps(self, arm: Arm, measure: str) -> list[float]:
        """Return the share of the gap that an arm closes, one a seed."""
        return [
            gap_closed(_value(alone, measure), _value(row, measure), _value(clean, measure))
            for alone, row, clean in self.together("only_reference", arm, "all_clean")
        ]

    def gap_of_means(self, arm: Arm, measure: str) -> float:
        """Return the share of the gap between the seeds' means that an arm closes; NaN: no gap.

        A seed's own gap can be near 0, and its share then anything.
        """
        rows = self.together("only_reference", arm, "all_clean")
        if not rows:
            return math.nan
        means = np.mean([[_value(row, measure) for row in three] for three in rows], axis=0)
        return gap_closed(*(float(mean) for mean in means))

    def excess(self, arm: Arm) -> list[float]:
        """Return how much worse an arm's loss is than the best baseline's, as a share."""
        return [
            row.total / min(simple.total for simple in others) - 1
            for row, *others in self.together(arm, *self.baselines)
        ]

    def chosen(self, among: Sequence[Arm] = POLICIES) -> Arm | None:
        """Return the policy with the lowest validation loss, of those with the most seeds."""
        return self._chosen(among, lambda row: row.validation_total)

    def chosen_by_distance(self, among: Sequence[Arm] = POLICIES) -> Arm | None:
        """Return the policy with the lowest distance to validation images, as `chosen`."""
        return self._chosen(among, lambda row: row.validation["fd"])

    def _chosen(self, among: Sequence[Arm], score: Callable[[Row], float]) -> Arm | None:
        most = max(len(self.rows(arm)) for arm in among)
        known = [arm for arm in among if len(self.rows(arm)) == most > 0]
        if not known:
            return None
        rows = [list(rows) for rows in zip(*self.together(*known), strict=True)]
        if not rows:
            return None  # they have no seed in common yet
        best = min(rows, key=lambda each: float(np.mean([score(row) for row in each])))
        return best[0].cell.arm

    def is_complete(self) -> bool:
        """Say whether all baselines are there for some seed."""
        return bool(self.together(*self.baselines))


def _value(row: Row, measure: str) -> float:
    return row.total if measure == "loss" else float(row.test[measure])


def groups_of(
    study: Study, problems: Sequence[Problem], seeds: Sequence[int] = plan.SEEDS
) -> Iterator[Group]:
    """Yield each problem once that has all baselines for some of the seeds."""
    seen: set[str] = set()
    for problem in problems:
        first = problem.model_copy(update={"seed": seeds[0]})
        group = Group(study, first, seeds)
        if first.name not in seen and group.is_complete():
            seen.add(first.name)
            yield group


def above_and_below(group: Group, arm: Arm) -> tuple[list[float], list[float]]:
    """Return, a seed each: gap closed above the median level, relative excess loss below it.

    The level is that of the pool by the classifier's threshold, the same for all arms.
    """
    sigmas = np.array(group.study.form.test_sigmas)
    above, below = [], []
    wanted: tuple[Arm, ...] = (*BASELINES, arm, "all_clean", "classifier_hard")
    for alone, everything, row, clean, graded in group.together(*wanted):
        median = graded.train["levels"]["quantiles"][1]
        high = sigmas >= (math.inf if median is None else median)
        if high.any():
            sums = [float(part.loss[high].sum()) for part in (alone, row, clean)]
            above.append(gap_closed(*sums))
        if not high.all():
            best = min(float(part.loss[~high].sum()) for part in (alone, everything))
            below.append(float(row.loss[~high].sum()) / best - 1)
    return above, below


def images_needed(group: Group, arm: Arm) -> list[float]:
    """Return images until only-reference's best validation loss, over what it took itself.

    One number a seed, linear between two looks; infinite where an arm never gets there.
    """
    found = []
    for alone, row in group.together("only_reference", arm):
        goal = min(loss for _, loss in alone.train["curve"])
        found.append(_first_below(row.train["curve"], goal) / alone.train["selected_at"])
    return found


def _first_below(curve: Sequence[tuple[int, float]], goal: float) -> float:
    if curve[0][1] <= goal:
        return float(curve[0][0])
    for (seen, loss), (later, lower) in itertools.pairwise(curve):
        if lower <= goal:
            return seen + (later - seen) * (loss - goal) / (loss - lower)
    return math.inf


def told(values: Sequence[float], digits: str = ".3f") -> str:
    """Write mean and 95 % interval over seeds; one seed has none. Infinite or NaN: none there."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "–"
    mean, half = interval(known)
    unsigned, none = digits.removeprefix("+"), len(values) - len(known)
    text = f"{mean:{digits}}" + (f" ± {half:{unsigned}}" if math.isfinite(half) else "")
    return text + (f" (none in {none} of {len(values)})" if none else "")


def percent(values: Sequence[float]) -> str:
    """Write shares as whole percents."""
    return told([100 * value for value in values], ".0f")


def gap_told(group: Group, arm: Arm, measure: str) -> str:
    """Write the gap between the means in percent, and behind it that of each seed."""
    each = group.gaps(arm, measure)
    if not each:
        return "–"
    seeds = f" ({', '.join(_percent(gap) for gap in each)})" if len(each) > 1 else ""
    return f"{_percent(group.gap_of_means(arm, measure))} %{seeds}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if math.isfinite(share) else "–"


def title(problem: Problem) -> str:
    """Return what a problem is called in the document."""
    kind = problem.damage.replace("_", " ")
    severity = f" {problem.severity:g}" if problem.severity else ""
    whole = f", {problem.num_reference} clean of {problem.num_images}"
    share = "" if problem.num_images == plan.NUM_IMAGES else whole
    data = "" if problem.data == "landscapes" else f", {problem.data}"
    return f"{kind}{severity}{share}{data}"


def name_of(arm: str) -> str:
    """Return what an arm is called in the document."""
    return arm.replace("_", " ")
