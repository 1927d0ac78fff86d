"""Statuses of noise classifiers, on rows; `test_operations_week` trains real ones."""

import json

import pytest

from ambient_omni.classifier.data import VERSION
from dagster_project.operations.classifiers import (
    Comparison,
    newest_candidate,
    promote,
    promoted_id,
    rival_id,
)
from dagster_project.operations.config import ClassifierLife
from schemas.errors import BadInput, ClassifierRefused
from schemas.registry import contract
from schemas.root import write_json

SPACE = "pixel:16x16"
LIFE = ClassifierLife()


def trained(
    root,
    name,
    *,
    space=SPACE,
    found=True,
    batches=("pool",),
    status="candidate",
    version=VERSION,
    question="reference_against_pool",
):
    table = contract("noise_classifiers")
    row = {
        "classifier_id": name,
        "question": question,
        "reference_set": "trusted",
        "pool_batches": list(batches),
        "noise_space": space,
        "num_folds": 2,
        "sigmas": [0.1],
        "balanced_accuracy": [0.9],
        "tv_lower_bound": [0.8],
        "tv_standard_error": [0.01],
        "control": json.dumps({"planted": {"gaussian_blur": {"found": found}}}),
        "config": "{}",
        "weights_sha256": "0" * 64,
        "status": status,
        "code_version": "1",
    }
    known = {column.name: None for column in table.columns}
    root.tables.upsert("noise_classifiers", table.table([known | row]), job="tests")
    write_json(root.classifiers / name / "classifier.json", {"version": version})


def statuses(root):
    rows = root.tables.read("noise_classifiers", ["classifier_id", "status"]).to_pylist()
    return {row["classifier_id"]: row["status"] for row in rows}


def test_the_first_is_promoted_and_the_next_retires_it(root):
    trained(root, "a")
    trained(root, "b")
    assert promoted_id(root, SPACE) is None
    assert promote(root, "a", SPACE, LIFE) is None
    assert promote(root, "b", SPACE, LIFE, Comparison(0.2, 0.01, (9, 9))) == "a"
    assert statuses(root) == {"a": "retired", "b": "promoted"}
    assert promoted_id(root, SPACE) == "b"


def test_promoting_the_promoted_one_again_changes_nothing(root):
    trained(root, "a")
    promote(root, "a", SPACE, LIFE)
    version = root.tables.version("noise_classifiers")
    assert promote(root, "a", SPACE, LIFE) is None
    assert root.tables.version("noise_classifiers") == version


def test_one_that_does_not_beat_the_promoted_one_is_refused(root):
    trained(root, "a")
    trained(root, "b")
    promote(root, "a", SPACE, LIFE)
    with pytest.raises(ClassifierRefused, match="--force"):
        promote(root, "b", SPACE, LIFE, Comparison(0.01, 0.02, (9, 9)))
    assert statuses(root) == {"a": "promoted", "b": "candidate"}


def test_a_promoted_one_of_another_version_is_no_rival_and_no_choice(root):
    trained(root, "old", status="promoted", version=1)
    trained(root, "old candidate", batches=("one", "two"), version=1)
    trained(root, "new")
    assert (promoted_id(root, SPACE), rival_id(root, SPACE)) == ("old", None)
    assert newest_candidate(root, SPACE) == "new"
    with pytest.raises(ClassifierRefused, match="another version"):
        promote(root, "old candidate", SPACE, LIFE)
    assert promote(root, "new", SPACE, LIFE) == "old"
    assert rival_id(root, SPACE) == "new"


def test_one_without_its_positive_control_is_refused(root):
    trained(root, "a", found=False)
    with pytest.raises(ClassifierRefused, match="planted"):
        promote(root, "a", SPACE, LIFE)


def test_one_of_another_noise_space_is_refused(root):
    trained(root, "a", space="latent")
    with pytest.raises(BadInput, match="latent"):
        promote(root, "a", SPACE, LIFE)


def test_an_unknown_one_is_named_with_those_that_are_known(root):
    trained(root, "a")
    with pytest.raises(BadInput, match=r"\['a'\]"):
        promote(root, "z", SPACE, LIFE)


def test_the_newest_candidate_is_the_one_that_saw_most_batches(root):
    with pytest.raises(BadInput, match="no candidate"):
        newest_candidate(root, SPACE)
    trained(root, "a", batches=("pool",))
    trained(root, "b", batches=("pool", "later"))
    trained(root, "c", batches=("pool", "later", "last"), status="retired")
    assert newest_candidate(root, SPACE) == "b"


@pytest.mark.parametrize(("gain", "error", "beats"), [(0.1, 0.01, True), (0.1, 0.06, False)])
def test_a_gain_counts_beyond_two_standard_errors(gain, error, beats):
    assert Comparison(gain, error, (9, 9)).beats(0.0) is beats


def test_one_of_another_question_does_not_take_the_place_of_the_one_that_grades(root):
    trained(root, "a", status="promoted")
    trained(root, "control", question="clean_against_damage")
    with pytest.raises(BadInput, match="clean_against_damage"):
        promote(root, "control", SPACE, LIFE)
    assert promoted_id(root, SPACE) == "a"


def test_two_that_are_promoted_are_named_and_promoting_one_mends_it(root):
    for name in ("a", "b", "c"):
        trained(root, name, status="promoted")
    with pytest.raises(BadInput, match="a, b, c are all promoted"):
        promoted_id(root, SPACE)
    assert promote(root, "b", SPACE, LIFE) == "a, c"
    assert statuses(root) == {"a": "retired", "b": "promoted", "c": "retired"}
