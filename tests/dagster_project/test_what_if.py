"""Rules that were not applied yet, held against the present one from tables alone."""

import pytest

from dagster_project import cli
from dagster_project.arms import policy_of
from dagster_project.commands.what_if import _policy, asked_rule, what_if
from dagster_project.request import BatchRequest
from pipelines.jobs.annotate import annotate
from schemas.errors import BadInput
from tests.dagster_project.conftest import add_pool


@pytest.fixture
def asked(root, request_):
    request_.save(root)
    return root


def cells(said):
    """Return a text table as {row: [numbers]}."""
    lines = said.splitlines()[1:]
    split = [[c.strip() for c in line.split("  ") if c.strip()] for line in lines]
    return {row[0]: [int(c.replace(",", "")) for c in row[1:]] for row in split}


def test_a_stricter_threshold_leaves_every_band_fewer_images_or_as_many(asked):
    found = cells(what_if(asked.path, ["tau=0.49"]))
    for now, then, change in found.values():
        assert then - now == change
    bands = [row for name, row in found.items() if " - " in name]
    assert all(then <= now for now, then, _ in bands)
    assert any(then < now for now, then, _ in bands)
    assert sum(found[name][0] for name in list(found)[-3:]) == 6 + 8


def test_nothing_is_written(asked):
    before = asked.tables.versions(["policies", "noise_annotations"])
    what_if(asked.path, ["tau=0.4,decay_exponent=null", "only_reference"])
    assert asked.tables.versions(["policies", "noise_annotations"]) == before


def test_an_arm_a_rule_and_a_file_are_taken_alike(asked, tmp_path):
    rule = "{kind: fixed_per_source, levels: {'*': null}}"
    (tmp_path / "rule.yaml").write_text(rule)
    asks = ["only_reference", rule, str(tmp_path / "rule.yaml")]
    tables = [list(cells(what_if(asked.path, [ask])).values()) for ask in asks]
    assert tables[0] == tables[1] == tables[2]
    assert tables[0][-1][1] == 8  # none of the pool at any high level


def test_the_present_rule_changes_nothing(asked):
    assert {row[2] for row in cells(what_if(asked.path, ["annotated"])).values()} == {0}


def test_an_arm_whose_thresholds_are_frozen_is_shown_as_it_is_trained(
    asked, request_, make_batch, images
):
    recipe = request_.full_recipe
    frozen = policy_of(asked, request_, recipe, "counted")
    annotate(asked, "pool", frozen)
    add_pool(asked, make_batch, images, "later", 40)
    grown = request_.with_batches([BatchRequest(name="later", role="pool", source="x")])
    grown.save(asked)
    for ask in ("counted", "{kind: sample_size, constant: 3.0}"):
        assert _policy(asked, grown, recipe, asked_rule(recipe, ask)) == frozen


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no-such", "neither an arm"),
        ("tau=2", "tau"),
        ("{kind: [", "cannot be read"),
        ("gone.yaml", "cannot be read"),
        ("colour=1", "colour"),
    ],
)
def test_what_is_no_policy_is_named(asked, text, words):
    with pytest.raises(BadInput, match=words):
        what_if(asked.path, [text])


def test_changes_are_of_the_main_arms_rule(request_):
    assert asked_rule(request_.full_recipe, "tau=0.4")["tau"] == 0.4


def test_the_command_takes_several_rules(asked, capsys):
    words = ["what-if", "--root", str(asked.path), "--policy", "tau=0.4", "--policy", "tau=0.49"]
    assert cli.main(words) == 0
    header = capsys.readouterr().out.splitlines()[0]
    assert "now (annotated)" in header
    assert "tau=0.49: change" in header
