import pytest
import yaml

from ambient_omni.data.transforms import Transform
from dagster_project.recipe import Recipe, load_recipe, parse_recipe, recipe_names
from schemas.errors import BadInput

SMALL = {
    "arms": {
        "only_reference": {"kind": "fixed_per_source", "levels": {"*": None}},
        "annotated": {"kind": "classifier_threshold"},
    }
}


@pytest.mark.parametrize("name", recipe_names())
def test_a_bundled_recipe_loads_and_survives_being_written_and_read(name):
    recipe = load_recipe(name)
    assert parse_recipe(recipe.model_dump(mode="json"), name) == recipe
    assert {"only_reference", "everything", "annotated"} <= set(recipe.arms)


def test_the_three_recipes_are_bundled():
    assert recipe_names() == ["default", "demo", "demo_quick"]


def test_a_recipe_file_of_ones_own_is_taken(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(SMALL | {"validation_fraction": 0.3}))
    assert load_recipe(str(file)).validation_fraction == 0.3


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"colour": 1}, "colour"),
        ({"validation_fraction": 2}, "validation_fraction"),
        ({"training": {"batch": 3}}, "training.batch"),
        ({"training": {"policy_id": "p"}}, "policy_id is filled in by the graph"),
        ({"main_arm": "no_such"}, "no_such"),
        ({"transform": {"resolution": 33}}, "33"),
        ({"scores": {"encoder": {"resolution": 96}}}, "ood.encoder"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(change, place):
    with pytest.raises(BadInput) as error:
        parse_recipe(SMALL | change, "mine.yaml")
    assert place in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_recipe_says_which_there_are():
    with pytest.raises(BadInput, match="default, demo, demo_quick"):
        load_recipe("nope")


def test_an_arm_trains_with_the_recipes_settings_and_its_own_policy():
    recipe = Recipe.model_validate(
        SMALL | {"training": {"num_images": 640, "batch_size": 64}, "transform": {"resolution": 16}}
    )
    config = recipe.training.of_arm(
        "annotated", "policy-1", ("reference", "pool"), recipe.transform
    )
    assert (config.name, config.policy_id, config.num_steps) == ("annotated", "policy-1", 10)
    assert config.transform == Transform(resolution=16)


def test_a_recipe_cannot_be_changed_by_accident():
    recipe = load_recipe("default")
    with pytest.raises(ValueError, match="frozen"):
        recipe.validation_fraction = 0.5
