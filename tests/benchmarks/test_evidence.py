"""The framework of the study: what names a result, what is split from what, and the arithmetic."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from ambient_omni import rng
from benchmarks import common
from benchmarks.evidence import goals, images, plan, report, results, run, tasks
from benchmarks.evidence.arms import Known, levels_of
from benchmarks.evidence.cells import FOREIGN, PILOTS, Cell, Form, Problem, Task
from benchmarks.evidence.first_in import first_in
from benchmarks.evidence.groups import (
    Group,
    above_and_below,
    gap_told,
    groups_of,
    images_needed,
    told,
)
from benchmarks.evidence.levels import hard
from benchmarks.evidence.results import Row, Study, gap_closed, interval, paired_by_photo
from benchmarks.evidence.scenes import scene_of
from benchmarks.evidence.store import Store
from benchmarks.evidence.training import TrainingSettings, train
from pipelines.pilot.config import PilotConfig
from pipelines.policies import ClassifierPerSource, ClassifierThreshold
from schemas.errors import BadInput

PROBLEM = Problem(
    data="landscapes",
    damage="gaussian_blur",
    severity=0.6,
    reference_share=0.5,
    num_images=64,
    seed=0,
)
FORM = Form.model_validate(
    {
        "name": "test",
        "num_validation": 8,
        "num_test": 8,
        "test_sigmas": (0.1, 1.0),
        "training": {
            "network": {"patch": 4, "widths": (16,), "pixel_width": 4, "attention": False},
            "num_images": 64,
            "batch_size": 16,
            "num_checks": 2,
            "check_sigmas": (0.1, 1.0),
        },
        "classifier": {
            "num_images": 128,
            "num_levels": 4,
            "num_noises": 2,
            "max_graded_images": 8,
            "order": {"num_chains": 8},
            "network": {"widths": (8,), "hidden": 8},
        },
        "samples": {"num_images": 16, "num_steps": 2, "solver": "euler"},
        "feature_side": 32,
        "num_crops": 256,
    }
)


@pytest.fixture(scope="module", autouse=True)
def photographs(tmp_path_factory):
    """A few noisy photographs in place of the landscapes, and a cache of their own."""
    folder = tmp_path_factory.mktemp("land")
    for number in range(60):
        pixels = rng.generator(0, "photo", number).integers(0, 256, (96, 144, 3), dtype=np.uint8)
        Image.fromarray(np.kron(pixels[::3, ::3], np.ones((3, 3, 1), np.uint8))).save(
            folder / f"scene{number}.jpg", quality=95
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "landscapes", lambda: folder)
        patch.setattr(images, "_drawings", _drawings)
        cache = tmp_path_factory.mktemp("images")
        patch.setattr(images, "cache_folder", lambda _: cache)
        for cached in (images._all, images.split_of):
            cached.cache_clear()
        yield
        for cached in (images._all, images.split_of):
            cached.cache_clear()


def _drawings():
    for number in range(150):
        flat = rng.generator(0, "drawing", number).integers(0, 256, 3, dtype=np.uint8)
        yield f"drawing{number}", f"base{number // 2}", np.tile(flat, (16, 16, 1))


# -- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("train", {"num_validation": 9}),
        ("train", {"training": FORM.training.model_copy(update={"num_images": 80})}),
        ("train", {"fixed_level": 2.0}),
        ("measure", {"num_test": 9}),
        ("measure", {"test_sigmas": (0.1, 2.0)}),
        ("measure", {"feature_side": 48}),
        ("measure", {"samples": FORM.samples.model_copy(update={"num_steps": 3})}),
        ("curves", {"classifier": FORM.classifier.model_copy(update={"num_images": 130})}),
    ],
)
def test_every_setting_that_a_stage_reads_changes_its_key_and_those_of_what_rests_on_it(
    stage, change
):
    other = FORM.model_copy(update=change)
    task = Task.of(stage, Cell.of(PROBLEM, "pilot"))
    assert task.key(FORM) != task.key(other)
    assert Task.of("measure", task.cell).key(FORM) != Task.of("measure", task.cell).key(other)


@pytest.mark.parametrize(
    "change",
    [
        {"data": "openmoji"}, {"damage": "jpeg"}, {"severity": 0.7}, {"reference_share": 0.25},
        {"num_images": 66}, {"seed": 1},
    ],
)  # fmt: skip
def test_every_input_of_a_problem_changes_the_key(change):
    cells = [Cell.of(p, "pilot") for p in (PROBLEM, PROBLEM.model_copy(update=change))]
    assert len({Task.of("train", cell).key(FORM) for cell in cells}) == 2


def test_arms_that_see_no_damage_are_one_for_all_damages():
    other = PROBLEM.model_copy(update={"damage": "jpeg", "severity": 50.0})
    assert Cell.of(PROBLEM, "all_clean") == Cell.of(other, "all_clean")
    assert Cell.of(PROBLEM, "keep_everything") != Cell.of(other, "keep_everything")


def test_a_version_of_a_stage_changes_the_keys_of_all_that_rests_on_it(monkeypatch):
    task = Task.of("measure", Cell.of(PROBLEM, "classifier_hard"))
    alone = Task.of("measure", Cell.of(PROBLEM, "only_reference"))
    before, before_alone = task.key(FORM), alone.key(FORM)
    monkeypatch.setitem(plan.Task.key.__globals__["VERSIONS"], "curves", 99)
    assert task.key(FORM) != before
    assert alone.key(FORM) == before_alone


@pytest.mark.parametrize("form", list(plan.FORMS.values()))
def test_needs_come_first_and_no_task_comes_twice(form):
    tasks_ = plan.tasks(form)
    place = {task.key(form): number for number, task in enumerate(tasks_)}
    assert len(place) == len(tasks_)
    for task in tasks_:
        needs = [need for need in task.needs() if task.form_of(need, form) is form]
        assert all(place[need.key(form)] < place[task.key(form)] for need in needs)


def test_a_longer_run_reads_the_pilots_of_the_form_that_it_names(tmp_path):
    longer = FORM.model_copy(update={"fixed_level": 2.0, "pilots": FORM})
    task, store = Task.of("train", Cell.of(PROBLEM, "pilot")), Store(tmp_path)
    pilots = [need for need in task.needs() if need.stage == "train"]
    assert len(pilots) == 4
    assert all(task.form_of(need, longer) is FORM for need in pilots)
    assert all(task.form_of(need, FORM) is FORM for need in pilots)
    others = longer.model_copy(update={"pilots": FORM.model_copy(update={"fixed_level": 3.0})})
    assert task.key(longer) != task.key(others)
    first = plan.pilot_tasks(longer, [task])
    assert [need for need in first if need.stage == "train"] == pilots
    assert plan.pilot_tasks(FORM, [task]) == []
    for need in task.needs():
        store.keep(need, task.form_of(need, longer), {"seconds": 1.0}, {})
    assert run._next([task], longer, store) == task


def test_the_long_form_trains_no_pilots():
    assert {task.cell.arm for task in plan.tasks(plan.LONG)} == set(plan.LONG_ARMS)


def test_the_headline_is_seven_arms_of_three_damages_with_three_seeds():
    measured = [t.cell for t in plan.tasks(plan.FULL, ["headline"]) if t.stage == "measure"]
    assert len(measured) == 3 * (2 + 3 * 5)


def test_what_has_results_is_not_computed_again_but_for_what_rests_on_it():
    cells = list(plan.cells(plan.QUICK))
    pilot = next(cell for cell in cells if cell.arm == "pilot")
    left = plan.tasks(plan.QUICK, finished=[cell for cell in cells if cell != pilot])
    assert [task.cell for task in left if task.stage in ("measure", "nearest")] == [pilot, pilot]
    assert {task.cell.arm for task in left if task.stage == "train"} == {*PILOTS, "pilot"}
    assert plan.tasks(plan.QUICK, finished=cells) == []


def test_wishes_pick_groups_and_parts_of_names():
    wished = plan.tasks(plan.FULL, ["headline+keep_everything", "headline+none"])
    measured = [task.cell for task in wished if task.stage == "measure"]
    assert {cell.arm for cell in measured} == {"keep_everything", "only_reference", "all_clean"}
    assert len(measured) == 3 * (2 + 3)
    assert all(task.stage != "curves" for task in wished)


# -- images ------------------------------------------------------------------------------------


def test_no_photograph_has_tiles_in_two_splits():
    origins = [set(images.split_of("landscapes", split).origins) for split in images._SHARES]
    assert all(origins)
    assert sum(map(len, origins)) == len(set.union(*origins))


def test_seeds_draw_other_images_and_the_same_seed_the_same():
    first, again, other = (images.draw("landscapes", "pool", 20, seed) for seed in (0, 0, 1))
    assert first.names == again.names
    assert set(first.names) != set(other.names)


def test_a_colour_cast_keeps_every_edge_and_moves_the_means():
    grey = np.full((16, 16, 3), 100, np.uint8)
    cast = images.one_damaged("colour_cast", 0.5, grey, rng.generator(0, "cast"))
    assert cast[0, 0].tolist() == [round(100 * math.exp(0.25)), 100, round(100 * math.exp(-0.25))]
    assert (cast == cast[0, 0]).all()


def test_a_fifth_of_a_mixed_pool_is_undamaged_and_every_kind_of_damage_is_there():
    pool = images.draw("landscapes", "pool", 140, 0)
    mixed, again = (images.damaged(pool, images.MIXED, 0.0, 3) for _ in range(2))
    assert (mixed.pixels == again.pixels).all()
    assert 0.1 < (mixed.pixels == pool.pixels).all(axis=(1, 2, 3)).mean() < 0.3
    for kind, severity in [("gaussian_blur", 1.6), ("jpeg", 90.0), ("down_up", 2.0)]:
        alone = images.damaged(pool, kind, severity, 3)
        share = (mixed.pixels == alone.pixels).all(axis=(1, 2, 3)).mean()
        assert 0.02 < share < 0.2, kind


def test_a_perfect_filter_keeps_what_the_damage_left_alone_and_is_no_use_elsewhere():
    problem = PROBLEM.model_copy(update={"damage": images.MIXED, "severity": 0.0})
    for damage, some in ((problem, True), (PROBLEM, False)):
        scene = scene_of(Cell.of(damage, "filter_oracle"), FORM)
        clean = images.draw("landscapes", "pool", len(scene.pool), damage.seed)
        same = (scene.pool.pixels == clean.pixels).all(axis=(1, 2, 3))
        assert scene.is_undamaged.tolist() == same.tolist()
        assert scene.is_undamaged.any() == some
    levels = levels_of("filter_oracle", Known(scene, FORM, {}, None, {})).sigma_min
    assert levels[: PROBLEM.num_reference].tolist() == [0.0] * PROBLEM.num_reference


def test_filtering_by_level_keeps_as_many_as_are_undamaged_and_those_of_the_lowest_levels():
    scene = scene_of(Cell.of(PROBLEM, "filter_by_level"), FORM)
    strength = np.linspace(0.001, 3, len(scene.pool))[:, None]
    sigmas = np.geomspace(0.05, 10, 6)
    logits = -strength / sigmas
    curves = {"logits": logits, "errors": np.full_like(logits, 0.01), "sigmas": sigmas}
    found = levels_of("filter_by_level", Known(scene, FORM, curves, None, {})).sigma_min
    kept = np.isfinite(found[len(scene.reference) :])
    assert kept.sum() == round(0.2 * len(scene.pool))
    assert kept[: kept.sum()].all()


def test_another_mix_is_another_problem(monkeypatch):
    mixed = Cell.of(PROBLEM.model_copy(update={"damage": images.MIXED}), "keep_everything")
    alike = Cell.of(PROBLEM, "keep_everything")
    before = [Task.of("train", cell).key(FORM) for cell in (mixed, alike)]
    monkeypatch.setitem(Task.key.__globals__, "MIX", (None,))
    after = [Task.of("train", cell).key(FORM) for cell in (mixed, alike)]
    assert (after[0] != before[0], after[1] == before[1]) == (True, True)


def test_the_products_defaults_are_those_that_the_arms_were_computed_with():
    """A new default needs a new number in `cells._ARM_VERSIONS`, and then a change here."""
    threshold = ClassifierThreshold(noise_space="s", classifier_id="c")
    assert (threshold.tau, threshold.decay_exponent, threshold.smoothing_octaves) == (0.45, 2, 0.25)
    assert ClassifierPerSource.model_fields["quantile"].default == 0.9
    pilots = PilotConfig(classifier_id="c", batches=("b",))
    assert (pilots.thresholds, pilots.detail_tolerance) == ((0.0, 0.3, 0.45), 0.1)
    tried = tuple(f"above_{tau:g}" for tau in pilots.thresholds[1:])
    assert ("keep_everything", *tried, "only_reference") == PILOTS


def test_whom_a_threshold_lets_in_first_is_told_by_what_they_lost(tmp_path):
    pool = images.draw("landscapes", "pool", PROBLEM.num_images - PROBLEM.num_reference, 0)
    after = images.damaged(pool, PROBLEM.damage, PROBLEM.severity, 0)
    lost = np.sqrt(np.square(pool.pixels.astype(float) - after.pixels).mean(axis=(1, 2, 3)))
    sigmas, store = np.geomspace(0.02, 8, 8), Store(tmp_path)
    task = Task.of("curves", Cell.of(PROBLEM, "classifier_hard"))
    for sign, order in ((1, "+1.00"), (-1, "-1.00")):
        rank = np.argsort(np.argsort(sign * lost))
        logits = -(0.02 + 0.01 * rank[:, None]) / sigmas
        arrays = {"logits": logits, "errors": np.full_like(logits, 0.01), "sigmas": sigmas}
        store.keep(task, plan.FULL, {}, arrays)
        row = first_in(PROBLEM, store)
        assert row.startswith(f"| {PROBLEM.name} | 100%: ")
        assert row.endswith(f"| {order} |")


# -- running -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store with some real, tiny cells."""
    store = Store(tmp_path_factory.mktemp("cache"))
    for arm in ("only_reference", "all_clean", "keep_everything", "classifier_soft"):
        _compute(Task.of("nearest", Cell.of(PROBLEM, arm)), store)
    return store


def _compute(task: Task, store: Store) -> None:
    for need in task.needs():
        _compute(need, store)
    if not store.has(task, FORM):
        tasks.compute(task, FORM, store)


def test_a_cell_runs_from_images_to_measures(finished):
    cell = Cell.of(PROBLEM, "classifier_soft")
    trained = finished.facts(Task.of("train", cell), FORM)
    measured = finished.facts(Task.of("measure", cell), FORM)
    assert [seen for seen, _ in trained["curve"]] == [32, 64]
    assert trained["selected_at"] == min(trained["curve"], key=lambda c: sum(c[1]))[0]
    assert set(measured["test"]) == {"fd", "kid", "precision", "recall", "loss"}
    near = finished.facts(Task.of("nearest", cell), FORM)
    assert np.isfinite(list(near["nearest"].values())).all()
    arrays = finished.arrays(Task.of("measure", cell), FORM)
    by_photo = np.average(arrays["loss_of_photo"], axis=0, weights=arrays["images_of_photo"])
    assert by_photo == pytest.approx(np.array(measured["test"]["loss"]))
    assert arrays["samples"].shape == (16, 16, 16, 3)


def test_arms_of_a_seed_begin_alike_and_differ_by_their_levels_alone(finished):
    task = Task.of("train", Cell.of(PROBLEM, "keep_everything"))
    kept = finished.arrays(task, FORM)
    again = Store(finished.folder / "again")
    tasks.compute(task, FORM, again)
    for name, array in again.arrays(task, FORM).items():
        assert np.array_equal(array, kept[name]), name


def test_copies_are_of_images_that_the_arm_trained_on(finished):
    near = {
        arm: finished.facts(Task.of("nearest", Cell.of(PROBLEM, arm)), FORM)["nearest"]
        for arm in ("only_reference", "all_clean")
    }
    alone, clean = near["only_reference"], near["all_clean"]
    assert alone["test_to_training"] == alone["test_to_reference"]
    assert clean["test_to_training"] < clean["test_to_reference"] == alone["test_to_reference"]


def test_the_pilot_and_the_sample_size_rule_decide_from_what_is_stored(finished):
    for arm in ("pilot", "sample_size", "best_half", "quality_rank", "ambient"):
        _compute(Task.of("train", Cell.of(PROBLEM, arm)), finished)
    chosen = finished.facts(Task.of("train", Cell.of(PROBLEM, "pilot")), FORM)["levels"]["chosen"]
    assert len(chosen) == len(FORM.training.check_sigmas)
    half = finished.facts(Task.of("train", Cell.of(PROBLEM, "best_half")), FORM)["levels"]
    assert half["share_everywhere"] == half["share_never"] == 0.5


def test_foreign_images_get_windows_and_never_a_floor(finished):
    problem = PROBLEM.model_copy(update={"damage": FOREIGN, "severity": 0.0})
    task = Task.of("train", Cell.of(problem, "windows"))
    _compute(task, finished)
    found = finished.facts(task, FORM)["levels"]
    assert found["share_never"] == 1
    sigma_max = finished.arrays(Task.of("windows", task.cell), FORM)["sigma_max"]
    assert sigma_max.shape == (32,)
    assert found["share_with_window"] == (sigma_max > 0).mean()


def test_what_was_computed_is_not_computed_again(finished, monkeypatch):
    computed = []
    monkeypatch.setattr(tasks, "compute", lambda task, *_: computed.append(task))
    tasks_ = [
        task for task in (Task.of(s, Cell.of(PROBLEM, "all_clean")) for s in ("train", "measure"))
    ]
    run.work(tasks_, FORM, finished.folder)
    assert computed == []


def test_a_stopped_run_computes_the_rest_alone(tmp_path, monkeypatch):
    store, computed = Store(tmp_path), []
    wanted = [Task.of("train", Cell.of(PROBLEM, arm)) for arm in ("all_clean", "only_reference")]
    store.keep(wanted[0], FORM, {"seconds": 1.0}, {})

    def compute(task, form, store):
        computed.append(task)
        store.keep(task, form, {"seconds": 1.0}, {})

    monkeypatch.setattr(tasks, "compute", compute)
    run.work(wanted, FORM, tmp_path)
    assert computed == wanted[1:]


def test_a_task_that_fails_costs_what_rests_on_it_and_nothing_else(tmp_path, monkeypatch):
    store = Store(tmp_path)
    wanted = plan.tasks(plan.QUICK)

    def compute(task, form, store):
        if task.stage == "curves":
            raise RuntimeError("no luck")
        store.keep(task, form, {"seconds": 1.0}, {})

    monkeypatch.setattr(tasks, "compute", compute)
    with pytest.raises(SystemExit):
        run.work(wanted, plan.QUICK, tmp_path)
    done = {t.cell.arm for t in wanted if t.stage == "measure" and store.has(t, plan.QUICK)}
    assert done == {"only_reference", "all_clean", "keep_everything"}


def test_two_workers_never_compute_one_task(tmp_path):
    store, task = Store(tmp_path), Task.of("train", Cell.of(PROBLEM, "all_clean"))
    with store.claimed(task, FORM) as mine, Store(tmp_path).claimed(task, FORM) as other:
        assert mine
        assert not other
    with store.claimed(task, FORM) as mine:
        assert mine


def test_time_left_is_what_finished_tasks_of_the_stage_took(tmp_path):
    store = Store(tmp_path)
    wanted = [
        Task.of("train", Cell.of(PROBLEM, arm))
        for arm in ("all_clean", "only_reference", "ambient")
    ]
    store.keep(wanted[0], FORM, {"seconds": 10.0}, {})
    assert run.seconds_left(wanted, FORM, store, 2) == 10.0


# -- arithmetic --------------------------------------------------------------------------------


def test_a_wish_that_fits_no_cell_is_refused_and_told_what_there_is():
    with pytest.raises(BadInput, match=r"no cell of the full form fits 'sharez'.* shares"):
        plan.tasks(plan.FULL, ["headline", "sharez"])


def test_the_gap_closed_is_0_for_only_reference_and_1_for_all_clean():
    assert gap_closed(5.0, 5.0, 3.0) == 0
    assert gap_closed(5.0, 3.0, 3.0) == 1
    assert gap_closed(5.0, 4.5, 3.0) == 0.25
    assert math.isnan(gap_closed(3.0, 2.0, 3.0))


def test_the_interval_of_seeds_is_students():
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2
    # t(0.975, 2) = 4.3027, standard error 1 / sqrt(3)
    assert half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert math.isnan(interval([1.0])[1])


def test_photographs_are_paired_and_weighed_by_their_tiles():
    one, other = _row("pilot", 0, 1.0), _row("only_reference", 0, 1.0)
    one = one.model_copy(update={"loss_of_photo": [[1.0, 2.0], [1.0, 1.0]]})
    other = other.model_copy(update={"loss_of_photo": [[1.0, 1.0], [1.0, 1.0]]})
    mean, half = paired_by_photo(one, other)
    assert mean == pytest.approx(0.25)
    assert half > 0
    assert paired_by_photo(one, one) == (0, 0)


def _row(arm: str, seed: int, loss: float, fd: float = 1.0, validation: float = 1.0) -> Row:
    cell = Cell.of(plan._problem("gaussian_blur", 1.0, seed=seed), arm)
    train = {
        "curve": [[100, 2 * validation], [200, validation], [300, 1.5 * validation]],
        "selected_at": 200,
        "validation_loss": [validation],
        "levels": {"quantiles": [0.1, 0.5, 1.0], "share_everywhere": 0.2, "share_never": 0.1},
        "classifier": {"refused": "no"} if arm == "classifier_hard" else None,
        "cpu_seconds": 1.0,
        "measure_cpu_seconds": 1.0,
    }
    test = {"loss": [loss / 2, loss / 2], "fd": fd, "kid": 0.1, "precision": 0.5, "recall": 0.5}
    near = {"samples_to_training": 12.0, "test_to_training": 15.0}
    return Row(
        cell=cell, key="", train=train, test=test, validation={"fd": fd}, nearest=near, copies=0.0,
        loss_of_photo=[[loss / 2] * 2] * 2, images_of_photo=[1, 3],
    )  # fmt: skip


def _study(rows) -> Study:
    form = plan.FULL.model_copy(update={"test_sigmas": (0.1, 1.0)})
    return Study(
        form=form, machine="two cores", versions={}, code_version="0", date="1", rows=tuple(rows)
    )


def test_the_policy_is_chosen_by_validation_loss_and_never_by_the_tests():
    rows = [_row("only_reference", 0, 4), _row("keep_everything", 0, 4), _row("all_clean", 0, 2)]
    rows += [_row("pilot", 0, 3, validation=0.9), _row("classifier_hard", 0, 1, validation=1.1)]
    group = Group(_study(rows), rows[1].cell.problem)
    assert group.chosen() == "pilot"
    more = [_row(arm, 1, 1) for arm in ("keep_everything", "classifier_hard")]
    # A policy of fewer seeds would be compared on these alone.
    assert Group(_study([*rows, *more]), rows[1].cell.problem).chosen() == "classifier_hard"
    assert group.gaps("pilot", "loss") == [0.5]
    assert group.excess("pilot") == [pytest.approx(-0.25)]


def test_the_policy_for_the_distance_is_chosen_by_distance_to_validation_images():
    rows = [_row("pilot", 0, 1, fd=9.0, validation=0.9), _row("classifier_hard", 0, 1, fd=3.0)]
    group = Group(_study(rows), rows[0].cell.problem)
    assert (group.chosen(), group.chosen_by_distance()) == ("pilot", "classifier_hard")


def test_the_median_level_parts_the_loss_and_null_is_above_every_level():
    rows = [_row("only_reference", 0, 4), _row("keep_everything", 0, 4), _row("all_clean", 0, 2)]
    rows += [_row("pilot", 0, 3), _row("classifier_hard", 0, 3)]
    rows[-2].train["levels"]["quantiles"] = [9.0, 9.0, 9.0]  # the cut is no arm's own
    group = Group(_study(rows), rows[1].cell.problem)
    assert above_and_below(group, "pilot") == ([0.5], [-0.25])
    rows[-1].train["levels"]["quantiles"] = [0.0, None, None]
    assert above_and_below(group, "pilot") == ([], [-0.25])


def test_the_gap_of_several_seeds_is_that_of_their_means():
    rows = [
        _row(arm, seed, loss)
        for seed, losses in enumerate(((5.0, 2.0, 3.5), (2.0, 3.0, 2.5)))
        for arm, loss in zip(("only_reference", "all_clean", "pilot"), losses, strict=True)
    ]
    group = Group(_study(rows), rows[2].cell.problem)
    # Means of 3.5, 2.5 and 3.0; the second seed alone has no gap.
    assert group.gap_of_means("pilot", "loss") == 0.5
    assert gap_told(group, "pilot", "loss") == "50 % (50, –)"
    assert gap_told(group, "classifier_hard", "loss") == "–"


def test_images_needed_are_a_share_of_what_only_reference_took():
    rows = [_row("only_reference", 0, 4, validation=2.0), _row("pilot", 0, 3, validation=1.0)]
    assert images_needed(Group(_study(rows), rows[1].cell.problem), "pilot") == [0.5]
    sooner = rows[1].model_copy(
        update={"train": rows[1].train | {"curve": [[20, 4.0], [40, 1.0], [60, 1.5]]}}
    )
    alone = rows[0].train["selected_at"]
    study = _study([rows[0], sooner])
    # 2 of the 3 from 4.0 down to 1.0.
    assert images_needed(Group(study, sooner.cell.problem), "pilot") == [(20 + 40 / 3) / alone]
    rows[1] = _row("pilot", 0, 3, validation=3.0)
    assert images_needed(Group(_study(rows), rows[1].cell.problem), "pilot") == [math.inf]


def test_the_report_is_made_from_stored_results_alone(tmp_path):
    form = plan.QUICK
    rows = [
        _row(arm, 0, loss, fd, validation=loss)
        for arm, loss, fd in (
            ("only_reference", 4.0, 90), ("all_clean", 2.0, 30), ("keep_everything", 5.0, 80),
            ("classifier_hard", 3.0, 45), ("pilot", 2.5, 60),
        )
    ]  # fmt: skip
    study = _study(rows).model_copy(update={"form": form})
    head = study.model_dump(mode="json", exclude={"rows"})
    head["form"]["test_sigmas"] = [0.1, 1.0]
    lines = [json.dumps(head), *(row.model_dump_json() for row in rows)]
    results.path_of(form, tmp_path).write_text("\n".join(lines))
    report.write(form, tmp_path)
    text = (tmp_path / "quick.md").read_text()
    assert "| pilot | 2.500 | 75 % | 60 | 50 % |" in text
    assert "| classifier hard | 3.000 | 50 % | 45 | 75 % |" in text
    assert "| 12.0 / 15.0 | 0 % |" in text
    assert "| gaussian blur 1 | classifier hard | 75 % (75) ✓ | 50 % (50) |" in text
    assert "| gaussian blur 1 | pilot | 50 % (50) | 75 % (75) |" in text
    assert "positive control refused it for 1 of 1" in text
    assert (tmp_path / "images" / "evidence_levels.png").exists()


def test_a_seed_that_has_no_figure_is_counted():
    assert told([0.5, 0.6, math.inf], ".2f") == "0.55 ± 0.64 (none in 1 of 3)"
    assert told([math.nan]) == "–"


def test_fresh_seeds_are_a_group_of_their_own():
    rows = [_row(arm, seed, 3) for seed in (0, 3) for arm in ("only_reference", "keep_everything")]
    study = _study(rows)
    (old,) = groups_of(study, list(plan.headline_problems()))
    (fresh,) = groups_of(study, plan.again_problems(), plan.FRESH_SEEDS)
    assert [row.cell.problem.seed for row in old.rows("keep_everything")] == [0]
    assert [row.cell.problem.seed for row in fresh.rows("keep_everything")] == [3]


def test_in_a_mixed_pool_filters_are_simple_ways_too():
    def mixed(arm, loss):
        row = _row(arm, 0, loss)
        problem = row.cell.problem.model_copy(update={"damage": images.MIXED, "severity": 0.0})
        return row.model_copy(update={"cell": Cell.of(problem, arm)})

    rows = [mixed("only_reference", 4), mixed("keep_everything", 4), mixed("classifier_hard", 3)]
    group = Group(_study(rows), rows[1].cell.problem)
    assert not group.is_complete()
    rows += [mixed("best_half", 5), mixed("filter_by_level", 2)]
    group = Group(_study(rows), rows[1].cell.problem)
    assert group.excess("classifier_hard") == [0.5]


def test_an_export_keeps_what_is_current_and_drops_what_is_not(finished, tmp_path, monkeypatch):
    cells = [Cell.of(PROBLEM, arm) for arm in ("only_reference", "keep_everything")]
    monkeypatch.setattr(plan, "cells", lambda form: {cell: [] for cell in cells})
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    file = results.export(FORM, finished.folder)
    assert len(results.read(file).rows) == 2
    empty = tmp_path / "another machine"
    empty.mkdir()
    assert len(results.read(results.export(FORM, empty)).rows) == 2
    monkeypatch.setitem(Task.key.__globals__["VERSIONS"], "nearest", 99)
    assert results.read(results.export(FORM, empty)).rows == ()


def test_samples_that_are_shown_outlive_the_cache_and_not_their_inputs(
    finished, tmp_path, monkeypatch
):
    cell = Cell.of(PROBLEM, "only_reference")
    monkeypatch.setattr(plan, "cells", lambda form: {cell: []})
    monkeypatch.setattr(plan, "long_problem", lambda: PROBLEM)
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    results.export(FORM, finished.folder)
    empty = tmp_path / "another machine"
    empty.mkdir()
    results.export(FORM, empty)
    made = finished.arrays(Task.of("measure", cell), FORM)["samples"]
    assert np.array_equal(results.samples_of(FORM, empty, cell), made[:16])
    monkeypatch.setitem(Task.key.__globals__["VERSIONS"], "nearest", 99)
    results.export(FORM, empty)
    assert not list(tmp_path.rglob("*.png"))


def test_a_result_that_is_none_any_more_is_withdrawn(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    arms = {"only_reference": 4, "keep_everything": 5, "all_clean": 2, "classifier_hard": 3}

    def record(fd_of_clean):
        rows = [_row(arm, 0, loss, 90, validation=loss) for arm, loss in arms.items()]
        rows[2] = _row("all_clean", 0, 2, fd_of_clean)
        goals.record_goals(_study(rows))
        return {file.stem for file in tmp_path.iterdir()}

    gap = "gap_closed_gaussian_blur_1"
    assert record(30) == {gap, "never_worse", "images_to_reference_best"}
    assert record(95) == {"never_worse", "images_to_reference_best"}


def test_the_longer_study_takes_only_reference_where_its_loss_turned_within_the_shorter():
    turned, rising = _row("only_reference", 0, 4), _row("only_reference", 1, 4)
    curve = [[100, 3.0], [200, 1.0], [300, 1.01]]  # a wiggle is no turn
    rising = rising.model_copy(update={"train": rising.train | {"curve": curve}})
    longer = [_row(arm, 0, 3) for arm in plan.LONG_ARMS]
    merged = results.with_longer(_study([turned, rising, _row("pilot", 0, 1)]), _study(longer))
    assert [row.cell for row in merged.rows] == [turned.cell, *(row.cell for row in longer)]


def test_a_longer_training_begins_as_a_shorter_one():
    shorter = FORM.training
    longer = shorter.model_copy(
        update={"num_images": 3 * shorter.num_images, "num_checks": 3 * shorter.num_checks}
    )
    scene = scene_of(Cell.of(PROBLEM, "all_clean"), FORM)
    levels = hard(np.zeros(PROBLEM.num_images))
    first, whole = (
        train(scene.images, levels, scene.validation, settings, 0).curve
        for settings in (shorter, longer)
    )
    assert len(whole) == 3 * len(first)
    assert whole[: len(first)] == first


def test_nothing_to_report_says_what_to_run(tmp_path):
    with pytest.raises(SystemExit, match="evidence run"):
        report.write(plan.QUICK, tmp_path)


def test_settings_of_the_study_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        TrainingSettings().num_images = 1
