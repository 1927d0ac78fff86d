"""A recipe that trains on latents: levels, classifiers and models are in them."""

import numpy as np
import pytest

from ambient_omni.data.pack_writer import PackWriter
from ambient_omni.training.trainer import train
from dagster_project.arms import classifier_id_of, config_of, policies_of
from dagster_project.latents import encode, is_encoded
from dagster_project.operations.stale import why_stale
from dagster_project.recipe import parse_recipe
from dagster_project.request import BatchRequest, Request
from dagster_project.steps import STEPS
from pipelines.job import JobReport
from pipelines.jobs.annotate import annotate
from tests.ambient_omni.conftest import build_pack, define_set
from tests.conftest import store_batch, tiny_images
from tests.data.tiny_vae import save_tiny_vae
from tests.data.trainables import RECIPE

SIZES = {"reference": 40, "pool": 40}


@pytest.fixture
def latents(root, tmp_path):
    """A root with pixel packs of 8 x 8, and a request whose training is on latents of 4 x 4."""
    training = RECIPE["training"] | {"latents": {"vae": save_tiny_vae(tmp_path / "vae")}}
    recipe = parse_recipe(RECIPE | {"training": training}, "latents")
    batches = tuple(BatchRequest(name=name, role=name, source="tests") for name in SIZES)
    for seed, (role, count) in enumerate(SIZES.items()):
        images = tiny_images(count, 8, seed)
        rows = store_batch(root, role, images, role=role)["sample_row"].to_pylist()
        if role == "reference":
            define_set(root, "trusted", rows[8:])
            define_set(root, "validation", rows[:8])
        build_pack(root, role, rows, recipe.transform)
    return Request(batches=batches, recipe=recipe.model_dump(mode="json"))


def test_a_model_is_trained_in_the_latents_that_its_levels_are_in(root, latents):
    recipe = latents.full_recipe
    assert recipe.noise_space.startswith("latent:3x4x4:")
    policies = policies_of(root, latents, recipe)
    assert {policy.noise_space for policy in policies.values()} == {recipe.noise_space}
    for batch in SIZES:
        encode(root, recipe, batch)
        for policy in policies.values():
            annotate(root, batch, policy)
    train(root, config_of(root, latents, recipe, "everything"))
    (run,) = root.tables.read("training_runs").to_pylist()
    assert (run["status"], run["noise_space"]) == ("finished", recipe.noise_space)


def test_a_classifier_of_latents_is_not_that_of_pixels(root, latents):
    pixels = latents.model_copy(
        update={"recipe": {**latents.recipe, "training": RECIPE["training"]}}
    )
    assert pixels.full_recipe.noise_space == pixels.full_recipe.transform.noise_space
    assert classifier_id_of(root, latents) != classifier_id_of(root, pixels)


def test_latents_are_stale_until_they_are_those_of_the_pixels(root, latents, monkeypatch):
    recipe, current = latents.full_recipe, JobReport("pack", "pool")
    monkeypatch.setattr("pipelines.jobs.pack.build_pack", lambda *_, **__: current)
    pack = next(step for step in STEPS if step.name == "pack")
    assert why_stale(root, latents, recipe, pack, "pool") == "its latents are not encoded"
    encode(root, recipe, "pool")
    assert why_stale(root, latents, recipe, pack, "pool") == ""
    writer = PackWriter(root.packs, recipe.transform, "pool", "other pixels")
    writer.begin()
    with writer.chunk(0) as chunk:
        chunk.add(1, np.zeros((8, 8, 3), np.uint8))
    writer.finish([chunk.info])
    assert not is_encoded(root, recipe, "pool")
