"""``docs/evidence.md`` from stored results; the only place that looks at test numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.evidence import plan, plots
from benchmarks.evidence.cells import Arm, Cell, Form
from benchmarks.evidence.goals import MARGIN, record_goals, record_longer
from benchmarks.evidence.groups import (
    BASELINES,
    POLICIES,
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
from benchmarks.evidence.images import MIX
from benchmarks.evidence.results import (
    LEAST_RISE,
    Row,
    Study,
    paired_by_photo,
    path_of,
    read,
    samples_of,
    with_longer,
)

DOCS = Path(__file__).parents[2] / "docs"
READING = Path(__file__).parent / "reading.md"
_PUBLISHED = {0.4: 93, 0.6: 51, 0.8: 41, 1.0: 39}


def write(form: Form, folder: Path) -> None:
    """Write the document and its plots; the quick form's go beside the cache.

    Raises:
        SystemExit: nothing was exported yet.
    """
    source = path_of(form, folder)
    if not source.exists():
        raise SystemExit(f"{source} is not there: run `python -m benchmarks.evidence run` first")
    study = read(source)
    if not study.rows:
        raise SystemExit("no cell is finished yet: run `python -m benchmarks.evidence run` first")
    longer = _longer_study(study, folder) if form.name == "full" else None
    target = DOCS / "evidence.md" if form.name == "full" else folder / f"{form.name}.md"
    images = target.parent / "images"
    parts = [
        _head(study),
        READING.read_text() if form.name == "full" else "",
        "\n".join(_glance(study)),
        "\n".join(_all_goals(study)),
        "\n".join(_headline(study)),
        "\n".join(_longer(longer)) if longer else "",
        "\n".join(_severities(study)),
        "\n".join(_shares(study, images)),
        "\n".join(_arms(study)),
        "\n".join(_others(study)),
        "\n".join(_speed(study)),
        "\n".join(_plots(study, images, folder)),
        _how(study),
    ]
    target.write_text("\n".join(part for part in parts if part.strip()).rstrip() + "\n")
    print(target)
    if form.name == "full":
        record_goals(study)
        if longer:
            record_longer(longer)


def _longer_study(study: Study, folder: Path) -> Study | None:
    source = path_of(plan.LONG, folder)
    return with_longer(study, read(source)) if source.exists() else None


def _head(study: Study) -> str:
    form, wanted = study.form, len(plan.cells(study.form))
    return f"""# Evidence: does bad data make a better model?

{len(study.rows)} of {wanted} cells of the {form.name} form are computed. The tables below are
made from `{form.name}.jsonl`; the guide before them is written by hand from these tables.
Real images at 16 × 16: tiles of 273 landscape photographs, split by photograph. {plan.NUM_IMAGES}
images a run unless stated, one tenth of them clean, the rest damaged alike; in the *mixed* pool
each image in one of these ways: {_mix_told()}.
Every arm has the same network, sees {form.training.num_images:,} images, and keeps its best
checkpoint by the loss of {form.num_validation} clean validation tiles. By the same tiles
classifiers are calibrated, pilots judged and policies chosen by loss (by distance: by all tiles of
the validation photographs); no arm trains on them, only reference neither. Losses are of
{form.num_test} test tiles, distances to all of them, of photographs that no training, annotation or
choice of threshold or policy has seen. Photographs of one series (`beach0`, `beach1`) may stand in
different splits. One choice of *method* has: `one level` was thought of when the test
distances of blur 1 with seeds 0 to 2 were in sight; seeds 3 to 5 below are of after that.

*Loss*: EDM-weighted denoising loss of clean test tiles, summed over {len(form.test_sigmas)}
levels. *FD*: Fréchet distance of {form.samples.num_images} samples on features of
EfficientNet-Lite0; it is no FID, and only differences mean something. *Gap closed*: (only
reference − arm) / (only reference − all clean), of the means over seeds, and of each seed in
brackets; 100 % is as good as if the whole pool were clean, – where all-clean is no better.
Only few seeds tell the gap in FD from none: its interval stands below each table.
*Nearest*: median distance of a sample / of a test tile to the nearest image that the arm trains on
(or its mirror image), root mean square over pixels, grey levels of 255.
*Copies*: samples nearer to an image that the arm trains on than 99 % of the test tiles are; by
chance it is 1 %. ± is the 95 % interval
over seeds (Student's t); a number without ± is of one seed. *Paired over photographs*: there ± is
over the test's photographs, for these two trainings; a classifier that is trained again on another
machine moves its arms' loss by some 0.03 too.
"""


def _mix_told() -> str:
    ways = Counter("not at all" if way is None else f"{way[0]} {way[1]:g}" for way in MIX)
    return ", ".join(f"{way} ({count / len(MIX):.0%})" for way, count in ways.items())


def _glance(study: Study) -> Iterator[str]:
    """Yield one line a problem: what the policy of the lowest validation loss does there."""
    yield "## Every problem at a glance\n"
    yield (
        "The policy has the lowest validation loss. *Better simple way* is that of the lower mean "
        "loss, in the mixed pool of two filters as well. *Against* is the policy's test loss "
        f"against that of each seed's better one; above {100 * MARGIN:+.0f} % it would be worse by "
        "the margin set in advance.\n"
    )
    yield "| problem | seeds | better simple way | policy | against | gap in loss | gap in FD |"
    yield "|---|---|---|---|---|---|---|"
    groups = [group for group in groups_of(study, study.problems()) if group.chosen()]
    groups += groups_of(study, plan.again_problems(), plan.FRESH_SEEDS)
    for group in sorted(groups, key=_place):
        chosen = group.chosen()
        if chosen is None:
            continue
        simple = group.baselines
        together = group.together(*simple, chosen)
        if not together:
            continue  # not in one seed yet
        totals = {
            arm: np.mean([rows[place].total for rows in together])
            for place, arm in enumerate(simple)
        }
        better = min(totals, key=lambda arm: totals[arm])
        yield (
            f"| {title(group.problem)}{_fresh(group)} | {len(together)} "
            f"| {name_of(better)} | {name_of(chosen)} "
            f"| {told([100 * e for e in group.excess(chosen)], '+.1f')} % "
            f"| {gap_told(group, chosen, 'loss')} | {gap_told(group, chosen, 'fd')} |"
        )


def _all_goals(study: Study) -> Iterator[str]:
    """Yield one line a problem and policy: every goal for one and the same policy."""
    groups = [*groups_of(study, list(plan.headline_problems()))]
    groups += groups_of(study, plan.again_problems(), plan.FRESH_SEEDS)
    groups += groups_of(study, plan.mixed_problems())
    groups = [group for group in groups if group.rows("all_clean") and group.chosen()]
    if not groups:
        return
    yield "\n## One policy, all goals\n"
    yield (
        "What the study aims at, for each policy alone: 65 % of the gap in FD; 85 % of the gap in "
        "loss at levels above the pool's median σ_min; no loss below it against the better one of "
        "only reference and keep everything; in all at most +2 % against the better simple way. "
        "**✓**: the mean of the seeds is there; in brackets the worst seed.\n"
    )
    yield "| problem | policy | gap in FD | gap in loss above | loss below | loss in all |"
    yield "|---|---|---|---|---|---|"
    for group in groups:
        most = max(len(group.rows(arm)) for arm in POLICIES)
        for arm in (arm for arm in POLICIES if len(group.rows(arm)) == most):
            above, below = above_and_below(group, arm)
            excess, fd = group.excess(arm), group.gap_of_means(arm, "fd")
            yield (
                f"| {title(group.problem)}{_fresh(group)} | {name_of(arm)} "
                f"| {_aimed(fd, min(group.gaps(arm, 'fd')), 0.65)} "
                f"| {_aimed(float(np.mean(above)), min(above), 0.85)} "
                f"| {_aimed(float(np.mean(below)), max(below), 0.0, lower=True)} "
                f"| {_aimed(float(np.mean(excess)), max(excess), MARGIN, lower=True)} |"
            )


def _aimed(mean: float, worst: float, goal: float, *, lower: bool = False) -> str:
    digits = "+.1f" if lower else ".0f"
    mark = " ✓" if (mean <= goal if lower else mean >= goal) else ""
    return f"{100 * mean:{digits}} % ({100 * worst:{digits}}){mark}"


def _fresh(group: Group) -> str:
    return ", fresh seeds" if group.problem.seed in plan.FRESH_SEEDS else ""


def _place(group: Group) -> tuple[int, str, str, float, int, int]:
    problem = group.problem
    return (
        problem.num_images, problem.data, problem.damage, problem.severity, problem.num_reference,
        problem.seed,
    )  # fmt: skip


def _headline(study: Study) -> Iterator[str]:
    yield "## Middle severity, all seeds\n"
    for group in groups_of(study, list(plan.headline_problems())):
        yield from _table(group, plan.HEADLINE_ARMS)
    again = list(groups_of(study, plan.again_problems(), plan.FRESH_SEEDS))
    if again:
        yield "\n## The same with seeds that no choice of method has seen\n"
    for group in again:
        yield from _table(group, plan.SIMPLE_ARMS)
    mixed = list(groups_of(study, plan.mixed_problems()))
    if mixed:
        yield "\n## A pool as the web has it: good and bad, damaged in many ways\n"
        yield (
            "`filter by level` keeps the fifth of the lowest levels, `best half` the sharper half, "
            "`filter oracle` what really is undamaged. `one level` takes the pool for one source."
        )
    for group in mixed:
        yield from _table(group, plan.MIXED_ARMS)


def _longer(study: Study) -> Iterator[str]:
    arms: tuple[Arm, ...] = ("only_reference", *plan.LONG_ARMS)
    for group in groups_of(study, [plan.long_problem()]):
        budget = study.form.training.num_images
        yield f"\n## The same with {budget:,} images seen\n"
        yield (
            "Samples go on getting better long after the loss has told the arms apart, so this is "
            "one problem with thrice the budget. Only reference is that of above: its validation "
            f"loss rose again by more than {LEAST_RISE:.0%} before, so that a longer training "
            "keeps the same checkpoint, unless the loss came down once more."
        )
        yield from _table(group, arms)
        for row in [row for arm in plan.LONG_ARMS for row in group.rows(arm)]:
            yield (
                f"* {name_of(row.cell.arm)}, seed {row.cell.problem.seed}: best at "
                f"{row.train['selected_at']:,} images"
            )


def _table(group: Group, arms: Sequence[Arm]) -> Iterator[str]:
    seeds = len(group.together(*group.baselines))
    yield f"\n### {title(group.problem)}{_fresh(group)}, {seeds} seed{'s' if seeds > 1 else ''}\n"
    yield (
        "| arm | loss | gap closed | FD | gap closed | KID × 1000 | precision | recall | nearest "
        "| copies |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for arm in arms:
        rows = group.rows(arm)
        if rows:
            yield (
                f"| {name_of(arm)} | {told([row.total for row in rows])} "
                f"| {gap_told(group, arm, 'loss')} "
                f"| {told([row.test['fd'] for row in rows], '.0f')} "
                f"| {gap_told(group, arm, 'fd')} "
                f"| {told([1000 * row.test['kid'] for row in rows], '.1f')} "
                f"| {told([row.test['precision'] for row in rows], '.2f')} "
                f"| {told([row.test['recall'] for row in rows], '.2f')} "
                f"| {_nearest(rows)} | {percent([row.copies for row in rows])} % |"
            )
    chosen = group.chosen([arm for arm in POLICIES if arm in arms])
    if chosen:
        yield ""
        yield from _of_distance(group)
        yield from _of_chosen(group, chosen, arms)
        yield from _of_classifier(group)


def _nearest(rows: Sequence[Row]) -> str:
    """Write how far samples, and test tiles, are from the nearest image that was trained on."""
    made, unseen = (
        float(np.mean([row.nearest[name] for row in rows]))
        for name in ("samples_to_training", "test_to_training")
    )
    return f"{made:.1f} / {unseen:.1f}"


def _of_distance(group: Group) -> Iterator[str]:
    gap, half = group.fd_gap
    if math.isfinite(half):
        told_apart = "" if abs(gap) > half else ": these seeds do not tell it from none"
        yield f"The gap in FD is {gap:.0f} ± {half:.0f}{told_apart}."


def _of_chosen(group: Group, chosen: Arm, arms: Sequence[Arm]) -> Iterator[str]:
    for arm in group.baselines:
        pairs = [paired_by_photo(row, other) for row, other in group.together(chosen, arm)]
        figures = ", ".join(f"{mean:+.4f} ± {half:.4f}" for mean, half in pairs)
        yield (
            f"{name_of(chosen)} (lowest validation loss) − {name_of(arm)}, paired over the test's "
            f"photographs, one figure a seed: {figures}."
        )
    nearest = group.chosen_by_distance([arm for arm in POLICIES if arm in arms])
    if nearest:
        yield (
            f"Chosen by distance to validation images instead of by loss: {name_of(nearest)}, "
            f"which closes {gap_told(group, nearest, 'fd')} of the gap in FD to test images. (The "
            "samples that are compared with either are the same.)"
        )
    above, below = above_and_below(group, chosen)
    yield (
        f"Above the pool's median σ_min by the classifier {name_of(chosen)} closes "
        f"{percent(above)} % of the gap in loss; below it, its loss against the better one of "
        f"only reference and keep everything is {told([100 * b for b in below], '+.1f')} %."
    )


def _of_classifier(group: Group) -> Iterator[str]:
    known = [row for row in group.rows("classifier_hard") if row.train["classifier"]]
    refused = [row for row in known if row.train["classifier"]["refused"]]
    if refused:
        yield (
            f"The classifier's positive control refused it for {len(refused)} of {len(known)} "
            "seeds; the product would stop there."
        )
    for row in known[:1]:
        levels = row.train["levels"]
        quantiles = ", ".join("null" if q is None else f"{q:.2g}" for q in levels["quantiles"])
        yield (
            f"σ_min of the pool (seed {row.cell.problem.seed}): {levels['share_everywhere']:.0%} "
            f"are 0, {levels['share_never']:.0%} null, quantiles 10, 50 and 90 %: {quantiles}."
        )


def _severities(study: Study) -> Iterator[str]:
    groups = list(groups_of(study, plan.blur_problems(), plan.SEEDS[:1]))
    if len(groups) < 2:
        return
    yield f"\n## Severities of blur, seed {plan.SEEDS[0]}\n"
    yield (
        "Published: share of the gap in FID on CIFAR-10, whose images are 32 × 32, so that a width "
        "in pixels is half as much of the image as here.\n"
    )
    yield (
        "| width | only reference | keep everything | all clean | policy | gap in loss | gap in FD "
        "| published |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for group in sorted(groups, key=lambda g: g.problem.severity):
        chosen = group.chosen([arm for arm in POLICIES if arm in plan.SIMPLE_ARMS])
        if chosen:
            losses = " | ".join(_loss_and_distance(group, arm) for arm in (*BASELINES, "all_clean"))
            yield (
                f"| {group.problem.severity:g} | {losses} | {name_of(chosen)} "
                f"| {gap_told(group, chosen, 'loss')} "
                f"| {gap_told(group, chosen, 'fd')} "
                f"| {_PUBLISHED.get(group.problem.severity, '–')} % |"
            )
    yield "\nCells are loss / FD."


def _shares(study: Study, images: Path) -> Iterator[str]:
    known = groups_of(study, plan.swept_problems())
    groups = [group for group in known if group.chosen()]
    if not groups:
        return
    yield "\n## Few and many references\n"
    yield (
        f"{plan.SWEPT_IMAGES} images a run. Cells are loss / FD; the last column is the policy's "
        "loss against that of the better baseline.\n"
    )
    yield "| blur | clean images | only reference | keep everything | policy | | against |"
    yield "|---|---|---|---|---|---|---|"
    for group in sorted(groups, key=lambda g: (g.problem.severity, g.problem.reference_share)):
        if chosen := group.chosen():
            both = " | ".join(_loss_and_distance(group, arm) for arm in BASELINES)
            yield (
                f"| {group.problem.severity:g} | {group.problem.num_reference} | {both} "
                f"| {name_of(chosen)} | {_loss_and_distance(group, chosen)} "
                f"| {told([100 * e for e in group.excess(chosen)], '+.1f')} % |"
            )
    yield ""
    for severity in sorted({group.problem.severity for group in groups}):
        name = f"evidence_shares_{severity:g}.png"
        swept = [group for group in groups if group.problem.severity == severity]
        if len(swept) < 2:
            continue  # one point shows nothing that the table does not
        _share_plot(images / name, swept)
        yield f"![loss by number of clean images, blur {severity:g}](images/{name})"


def _share_plot(file: Path, groups: Sequence[Group]) -> None:
    groups = sorted(groups, key=lambda group: group.problem.num_reference)
    arms: dict[Arm, list[float]] = {
        arm: [
            float(np.mean([row.total for row in group.rows(arm)])) if group.rows(arm) else np.nan
            for group in groups
        ]
        for arm in plan.SWEPT_ARMS
        if any(group.rows(arm) for group in groups)
    }
    label = f"clean images of {plan.SWEPT_IMAGES}"
    plots.sweep(file, label, [group.problem.num_reference for group in groups], arms)


def _loss_and_distance(group: Group, arm: Arm) -> str:
    rows = group.rows(arm)
    distance = told([row.test["fd"] for row in rows], ".1f")
    return f"{told([row.total for row in rows])} / {distance}"


def _arms(study: Study) -> Iterator[str]:
    first = next(iter(plan.headline_problems()))
    for group in groups_of(study, [first], plan.SEEDS[:1]):
        if any(group.rows(arm) for arm in plan.ALL_ARMS[len(plan.HEADLINE_ARMS) :]):
            yield f"\n## All arms on one problem, seed {plan.SEEDS[0]}\n"
            yield from _table(group, plan.ALL_ARMS)


def _others(study: Study) -> Iterator[str]:
    found = list(groups_of(study, plan.other_problems()))
    if not found:
        return
    yield "\n## Other damage, other images\n"
    for group in found:
        yield from _table(group, (*plan.HEADLINE_ARMS, "windows"))


def _speed(study: Study) -> Iterator[str]:
    yield "\n## How soon, and is only-reference limited by its data?\n"
    rows = [row for row in study.rows if row.cell.arm == "only_reference"]
    for row in sorted(rows, key=lambda r: r.cell.name):
        curve = row.train["curve"]
        yield (
            f"* {row.cell.problem.num_reference} references of {row.cell.problem.data}, seed "
            f"{row.cell.problem.seed}: best at {row.train['selected_at']:,} of {curve[-1][0]:,} "
            f"images, {_turned(row)}"
        )
    yield ""
    for group in groups_of(study, list(plan.headline_problems())):
        chosen = group.chosen()
        if chosen:
            yield (
                f"* {title(group.problem)}: {name_of(chosen)} reaches only-reference's best "
                f"validation loss with {percent(images_needed(group, chosen))} % of the images "
                f"that only-reference took; all clean with "
                f"{percent(images_needed(group, 'all_clean'))} %."
            )


def _turned(row: Row) -> str:
    return f"then the validation loss rises by {100 * row.rise:.1f} %"


def _plots(study: Study, folder: Path, cache: Path) -> Iterator[str]:
    known = groups_of(study, list(plan.headline_problems()))
    groups = [group for group in known if group.rows("all_clean")]
    if not groups:
        return
    arms: tuple[Arm, ...] = (
        "only_reference", "keep_everything", "classifier_hard", "classifier_soft",
        "one_level", "pilot", "all_clean",
    )  # fmt: skip
    panels: dict[str, Mapping[Arm, Sequence[float]]] = {
        title(group.problem): {
            arm: np.mean([row.loss for row in group.rows(arm)], axis=0).tolist()
            for arm in arms
            if group.rows(arm)
        }
        for group in groups
    }
    plots.losses(folder / "evidence_levels.png", study.form.test_sigmas, panels)
    first = groups[0]
    plots.curves(
        folder / "evidence_curves.png",
        {arm: first.rows(arm)[0].train["curve"] for arm in arms if first.rows(arm)},
    )
    yield "\n## Pictures\n"
    yield "![held-out loss per level](images/evidence_levels.png)\n"
    yield f"![validation loss of {title(first.problem)}](images/evidence_curves.png)\n"
    sheet = _sheet(first, arms, cache)
    if sheet:
        plots.contact_sheet(folder / "evidence_samples.png", sheet)
        yield f"![samples of {title(first.problem)}](images/evidence_samples.png)"


def _sheet(group: Group, arms: Sequence[Arm], cache: Path) -> dict[str, np.ndarray]:
    """Return the exported samples of each arm; one without any is left out."""
    form = group.study.form
    found = {arm: samples_of(form, cache, Cell.of(group.problem, arm)) for arm in arms}
    return {name_of(arm): samples for arm, samples in found.items() if samples is not None}


def _how(study: Study) -> str:
    seconds = [row.train["cpu_seconds"] for row in study.rows]
    spent = sum(seconds) + sum(row.train["measure_cpu_seconds"] for row in study.rows)
    versions = ", ".join(f"{name} {value}" for name, value in study.versions.items())
    codes = sorted({row.train.get("code_version", "unknown") for row in study.rows})
    return f"""
## How it was made

`python -m benchmarks.evidence run [--form quick|long] [--only GROUP...] [--workers N]`, then \
`python -m benchmarks.evidence report`. Cells are cached by the hash of their inputs; stopped, it \
goes on.
A training takes {np.median(seconds):.0f} CPU seconds in the median; all cells here \
{spent / 3600:.1f} CPU hours without the classifiers. {study.machine}; {versions}; trained by code \
{", ".join(codes)}; {study.date}.
"""
