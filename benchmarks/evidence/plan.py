"""Which cells the study has, in the order in which they are computed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Literal

from ambient_omni.classifier.config import ClassifierConfig
from ambient_omni.generation.config import SampleConfig
from benchmarks.evidence.cells import FOREIGN, Arm, Cell, Form, Problem, Task
from benchmarks.evidence.images import MIXED, DataSet
from benchmarks.evidence.training import TrainingSettings
from schemas.errors import BadInput

Group = Literal[
    "headline", "mixed", "again", "severities", "arms", "damages", "shares", "openmoji", "foreign"
]

HEADLINE_ARMS: tuple[Arm, ...] = (
    "only_reference", "all_clean", "keep_everything", "classifier_hard", "classifier_soft",
    "one_level", "pilot",
)  # fmt: skip
HEADLINE: dict[str, float] = {"gaussian_blur": 1.0, "jpeg": 75.0, "motion_blur": 4.0}
"""Damage at middle severity."""

ALL_ARMS: tuple[Arm, ...] = (
    *HEADLINE_ARMS, "classifier_strict", "ambient", "sample_size", "fixed_level", "best_half",
    "quality_rank",
)  # fmt: skip
MIXED_ARMS: tuple[Arm, ...] = (
    *HEADLINE_ARMS, "best_half", "filter_by_level", "filter_oracle",
)  # fmt: skip
"""Where images differ in quality, filtering is what everybody does."""

FOREIGN_ARMS: tuple[Arm, ...] = (
    "only_reference", "all_clean", "keep_everything", "classifier_hard", "windows",
)  # fmt: skip
SIMPLE_ARMS: tuple[Arm, ...] = (
    "only_reference", "all_clean", "keep_everything", "classifier_hard", "one_level",
)  # fmt: skip
"""Where the question is how the answer changes, not by which policy: these need no pilots."""
SWEPT_ARMS: tuple[Arm, ...] = ("only_reference", "keep_everything", "classifier_hard", "one_level")
BLURS = (0.4, 0.6, 1.0, 1.6)
OTHER_DAMAGES: dict[str, float] = {"down_up": 2.0, "sensor_noise": 25.0, "colour_cast": 0.5}
MILD_BLUR = 0.6
SHARES = (0.01, 0.05, 0.1, 0.3, 0.5)
SEEDS = (0, 1, 2)
FRESH_SEEDS = (3, 4, 5)
"""`one_level` was thought of with the test distances of the others in sight; not of these."""

SHARE = 0.1
NUM_IMAGES = 500
"""Few enough that only-reference, a tenth of them, over-fits within the budget."""

SWEPT_IMAGES = 3_200
"""Of the sweep of shares: a hundredth is as few as a noise classifier accepts."""

_CLASSIFIER = ClassifierConfig.model_validate(
    {
        "num_images": 20_000,
        "sigma_low": 0.02,
        "sigma_high": 8.0,
        "num_levels": 16,
        "num_noises": 2,
        "augment": "geometry",
        "order": {"num_chains": 1_000},
    }
)
_SAMPLES = SampleConfig(num_images=1_000, num_steps=18, solver="dpm++2m", lowest=0.01, highest=20.0)

FULL = Form(name="full", classifier=_CLASSIFIER, samples=_SAMPLES)
QUICK = Form(
    name="quick",
    num_test=300,
    training=TrainingSettings(num_images=48_000),
    classifier=_CLASSIFIER.model_copy(update={"num_images": 10_000}),
    samples=_SAMPLES.model_copy(update={"num_images": 500}),
)

LONG = FULL.model_copy(
    update={
        "name": "long",
        # Looked at where the full form looks, so that both are one training up to its end.
        "training": TrainingSettings(num_images=216_000, num_checks=48),
        "pilots": FULL,
    }
)
"""Thrice the budget: samples go on getting better long after the loss has told the arms apart."""

FORMS: dict[str, Form] = {form.name: form for form in (FULL, QUICK, LONG)}
LONG_ARMS: tuple[Arm, ...] = (
    "all_clean", "keep_everything", "classifier_hard", "one_level", "pilot",
)  # fmt: skip
"""Only-reference is the full form's: its best checkpoint comes long before that form's end."""


def cells(form: Form) -> dict[Cell, list[Group]]:
    """Return the cells, without repetition, with the groups that want each."""
    found: dict[Cell, list[Group]] = {}
    wanted = {"quick": _quick, "long": _long}.get(form.name, _full)
    for group, cell in wanted():
        found.setdefault(cell, []).append(group)
    return found


def tasks(form: Form, only: Sequence[str] = (), finished: Collection[Cell] = ()) -> list[Task]:
    """Return all tasks in an order in which needs come first, but none of another form.

    Args:
        form: full, quick or long.
        only: groups, or parts of names, joined by "+" where all have to fit; a cell is taken if
            any of them fits. Empty: all.
        finished: cells whose results are known already; no task is for them alone.

    Raises:
        BadInput: one of `only` fits no cell of the form.
    """
    planned = cells(form)
    for wish in only:
        if not any(_fits(wish, group, cell) for cell in planned for group in planned[cell]):
            groups = sorted({group for found in planned.values() for group in found})
            raise BadInput(
                f"no cell of the {form.name} form fits {wish!r}: name a group "
                f"({', '.join(groups)}) or a part of a cell's name, such as "
                f"{next(iter(planned)).name}"
            )
    found: dict[Task, None] = {}
    for cell, groups in planned.items():
        wished = not only or any(_fits(wish, group, cell) for wish in only for group in groups)
        if wished and cell not in finished:
            _add(Task.of("nearest", cell), form, found)
    return list(found)


def pilot_tasks(form: Form, wanted: Iterable[Task]) -> list[Task]:
    """Return the tasks of `form.pilots` that some tasks of a form rest on, needs first."""
    found: dict[Task, None] = {}
    for task in wanted:
        for need in task.needs():
            if form.pilots and task.form_of(need, form) is form.pilots:
                _add(need, form.pilots, found)
    return list(found)


def _add(task: Task, form: Form, found: dict[Task, None]) -> None:
    for need in task.needs():
        if task.form_of(need, form) is form:
            _add(need, form, found)
    found.setdefault(task)


def _fits(wish: str, group: Group, cell: Cell) -> bool:
    return all(word == group or word in cell.name for word in wish.split("+"))


def headline_problems(data: DataSet = "landscapes") -> Iterator[Problem]:
    """Yield the problems of the headline, seed by seed."""
    for seed in SEEDS:
        for damage, severity in HEADLINE.items():
            yield _problem(damage, severity, seed=seed, data=data)


def again_problems() -> list[Problem]:
    """Return the first headline problem with seeds that no choice of method has seen."""
    return [_problem("gaussian_blur", HEADLINE["gaussian_blur"], seed=s) for s in FRESH_SEEDS]


def mixed_problems() -> list[Problem]:
    """Return the problem of a pool as the web has it, seed by seed."""
    return [_problem(MIXED, 0.0, seed=seed) for seed in SEEDS]


def long_problem() -> Problem:
    """Return the problem of the long form, with its first seed."""
    return _problem("gaussian_blur", HEADLINE["gaussian_blur"])


def blur_problems() -> list[Problem]:
    """Return the problems of blur at all widths."""
    return [_problem("gaussian_blur", width) for width in BLURS]


def other_problems() -> list[Problem]:
    """Return the problems of other damage, other images, and foreign images."""
    return [*(_problem(*other) for other in OTHER_DAMAGES.items()), _OPENMOJI, _FOREIGN]


def swept_problems() -> list[Problem]:
    """Return the problems from few to many references, mild and strong damage."""
    return [
        _problem("gaussian_blur", width, share=share, num_images=SWEPT_IMAGES)
        for share in SHARES
        for width in (MILD_BLUR, HEADLINE["gaussian_blur"])
    ]


def _problem(
    damage: str,
    severity: float,
    *,
    seed: int = 0,
    share: float = SHARE,
    data: DataSet = "landscapes",
    num_images: int = NUM_IMAGES,
) -> Problem:
    return Problem(
        data=data, damage=damage, severity=severity, reference_share=share, seed=seed,
        num_images=num_images,
    )  # fmt: skip


_OPENMOJI = _problem("gaussian_blur", HEADLINE["gaussian_blur"], data="openmoji")
_FOREIGN = _problem(FOREIGN, 0.0)


def _full() -> Iterator[tuple[Group, Cell]]:
    middle = HEADLINE["gaussian_blur"]
    wanted: list[tuple[Group, Iterable[Problem], tuple[Arm, ...]]] = [
        ("headline", headline_problems(), HEADLINE_ARMS),
        ("again", again_problems(), SIMPLE_ARMS),
        ("mixed", mixed_problems(), MIXED_ARMS),
        ("severities", blur_problems(), SIMPLE_ARMS),
        ("damages", [_problem(*other) for other in OTHER_DAMAGES.items()], HEADLINE_ARMS),
        ("arms", [_problem("gaussian_blur", middle)], ALL_ARMS),
        ("shares", swept_problems(), SWEPT_ARMS),
        ("openmoji", [_OPENMOJI], SIMPLE_ARMS),
        ("foreign", [_FOREIGN], FOREIGN_ARMS),
    ]
    for group, problems, arms in wanted:
        for problem in problems:
            for arm in arms:
                yield group, Cell.of(problem, arm)


def _long() -> Iterator[tuple[Group, Cell]]:
    for seed in SEEDS:
        for arm in LONG_ARMS:
            yield "headline", Cell.of(long_problem().model_copy(update={"seed": seed}), arm)


def _quick() -> Iterator[tuple[Group, Cell]]:
    for arm in HEADLINE_ARMS:
        yield "headline", Cell.of(long_problem(), arm)
