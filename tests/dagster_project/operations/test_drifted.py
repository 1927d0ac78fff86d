"""Which batches ask for a classifier, and what a look at them costs."""

import dagster as dg
import numpy as np
import pytest

from ambient_omni import rng
from dagster_project.arms import policy_of
from dagster_project.definitions import build_definitions
from dagster_project.defs.project import Project
from dagster_project.operations import drifted
from dagster_project.operations.drift import accepted_before
from dagster_project.operations.drifted import drifted_batches
from dagster_project.recipe import parse_recipe
from dagster_project.request import BatchRequest, Request, Verdict
from schemas.registry import contract
from tests.dagster_project.operations.test_classifiers import trained

RECIPE = {
    "arms": {"everything": {"kind": "fixed_per_source", "levels": {"*": 0.0}}},
    "main_arm": "everything",
    "baseline_arm": "everything",
    "operations": {"drift": {"num_bins": 4, "min_images": 20, "columns": ["sharpness"]}},
}


@pytest.fixture
def measured(monkeypatch):
    """The batches whose rows are read, as they are."""
    seen, whole = [], drifted.drift_of

    def drift_of(root, request, batch, *args, **more):
        seen.append(batch)
        return whole(root, request, batch, *args, **more)

    monkeypatch.setattr(drifted, "drift_of", drift_of)

    def since():
        found = sorted(set(seen))
        seen.clear()
        return found

    return since


def asked(*names, **more):
    recipe = parse_recipe(RECIPE, "drifted").model_dump(mode="json")
    batches = tuple(BatchRequest(name=n, role="pool", source="x", stream=n[0]) for n in names)
    return Request(batches=batches, recipe=recipe, **more)


def score(root, batch, shift=0.0, again=0):
    """Give a batch 40 sharpnesses, shifted by standard deviations."""
    table, count = contract("scores/classical"), 40
    version = asked().full_recipe.scores.pack_of("classical").version
    values = rng.generator(again, f"sharpness-{batch}").standard_normal(count)
    slice_ = {"scorer_version": version, "ingest_batch": batch}
    first = int(batch[1:]) * 2**32
    rows = {column.name: [None] * count for column in table.columns} | {
        "sample_row": list(range(first, first + count)),
        "sharpness": np.exp(values + shift).tolist(),
        "unscored_reason": ["not asked"] * count,
        **{name: [value] * count for name, value in slice_.items()},
    }
    inputs = {"shift": shift, "again": again}
    root.tables.commit(table.name, table.table(rows), slice=slice_, inputs=inputs, job="tests")


@pytest.fixture
def pool(root):
    """Four batches; the classifier learned from the first, and the third is another one."""
    trained(root, "c", batches=("a1",))
    for number, shift in enumerate((0, 0, 5, 5), 1):
        score(root, f"a{number}", shift)
    return root


def test_a_batch_is_measured_once_and_told_again_without_reading_it(pool, measured):
    request = asked("a1", "a2", "a3", "a4")
    assert drifted_batches(pool, request, "c") == ["a3"]
    assert measured() == ["a2", "a3", "a4"]
    assert drifted_batches(pool, request, "c") == ["a3"]
    assert measured() == []
    score(pool, "a5")
    assert drifted_batches(pool, asked("a1", "a2", "a3", "a4", "a5"), "c") == ["a3", "a5"]
    assert measured() == ["a5"]


def test_what_changed_is_measured_again_and_so_is_what_is_held_against_it(pool, measured):
    request = asked("a1", "a2", "a3", "a4")
    drifted_batches(pool, request, "c")
    measured()
    score(pool, "a3", shift=0, again=1)
    assert drifted_batches(pool, request, "c") == ["a4"]
    assert measured() == ["a3", "a4"]
    held = asked("a1", "a2", "a3", "a4", verdicts={"a3": Verdict(status="held", why="odd")})
    assert drifted_batches(pool, held, "c") == ["a4"]
    assert measured() == ["a4"]  # against a2 now


def test_a_new_scorer_or_another_limit_measures_all_again(pool, measured):
    request = asked("a1", "a2", "a3")
    drifted_batches(pool, request, "c")
    measured()
    recipe = {**request.recipe, "operations": {"drift": RECIPE["operations"]["drift"]}}
    recipe["operations"]["drift"] = recipe["operations"]["drift"] | {"max_psi": 50.0}
    assert drifted_batches(pool, request.model_copy(update={"recipe": recipe}), "c") == []
    assert measured() == ["a2", "a3"]


def test_one_look_measures_a_bounded_number_and_later_ones_the_rest(pool, measured):
    request = asked("a1", "a2", "a3", "a4")
    told = [drifted_batches(pool, request, "c", max_measured=1) for _ in range(4)]
    assert told == [[], ["a3"], ["a3"], ["a3"]]
    assert measured() == ["a2", "a3", "a4"]


def test_what_was_found_may_be_lost(pool, measured):
    request = asked("a1", "a2", "a3")
    drifted_batches(pool, request, "c")
    (pool.work / "drift.json").write_text("{half")
    measured()
    assert drifted_batches(pool, request, "c") == ["a3"]
    assert measured() == ["a2", "a3"]


def test_levels_count_as_scores_do(pool, measured):
    request = asked("a1", "a2")
    policy = policy_of(pool, request, request.full_recipe, "everything").policy_id
    table, count = contract("noise_annotations"), 40
    for batch, level in (("a1", 0.1), ("a2", 3.0)):
        first = int(batch[1:]) * 2**32
        slice_ = {"policy_id": policy, "ingest_batch": batch}
        rows = {column.name: [None] * count for column in table.columns} | {
            "sample_row": list(range(first, first + count)),
            "sigma_min": [level + i / 1000 for i in range(count)],
            "sigma_max": [0.0] * count,
            "noise_space": ["s"] * count,
            "reason": ["fixed_per_source"] * count,
            **{name: [value] * count for name, value in slice_.items()},
        }
        pool.tables.commit(table.name, table.table(rows), slice=slice_, inputs={}, job="tests")
    assert drifted_batches(pool, request, "c") == ["a2"]


def test_each_batch_is_held_against_the_last_of_its_stream_that_was_let_in(root):
    trained(root, "c", batches=())
    verdicts = {"a2": Verdict(status="held", why="odd")}
    request = asked("a1", "b1", "a2", "b2", "a3", verdicts=verdicts)
    pairs = dict(drifted._unlearned(root, request, "c"))
    assert pairs == {"b2": "b1", "a3": "a1"}
    assert all(accepted_before(request, batch) == before for batch, before in pairs.items())


def test_the_sensor_asks_once_because_of_the_same_batches(pool):
    request = asked("a1", "a2", "a3", "a4")
    request.save(pool)
    project = Project(root_path=str(pool.path))
    sensor = build_definitions(project).get_repository_def().get_sensor_def("classifier_candidate")

    def tick(cursor):
        instance, resources = dg.DagsterInstance.ephemeral(), {"project": project}
        with dg.build_sensor_context(
            instance=instance, cursor=cursor, resources=resources
        ) as context:
            return sensor.evaluate_tick(context)

    assert "no classifier is promoted" in tick(None).skip_message
    trained(
        pool, "c", space=request.full_recipe.noise_space, status="promoted", batches=("a1", "a2")
    )
    first = tick(None)
    (asked_for,) = first.run_requests
    assert asked_for.tags["ambient-omni/drifted"] == "a3"
    again = tick(first.cursor)
    assert not again.run_requests
    assert again.skip_message == "a candidate was asked for because of a3"
    score(pool, "a4", shift=-5, again=1)
    (other,) = tick(again.cursor).run_requests
    assert other.tags["ambient-omni/drifted"] == "a3, a4"
    assert other.run_key != asked_for.run_key
