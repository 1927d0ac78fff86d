"""Roots that can be trained on in seconds: no Spark, no classifier, levels by fixed rules."""

from dagster_project.arms import policies_of
from dagster_project.recipe import parse_recipe
from dagster_project.request import BatchRequest, Request
from pipelines.jobs.annotate import annotate
from tests.ambient_omni.conftest import build_pack, define_set
from tests.conftest import store_batch, tiny_images

RECIPE = {
    "transform": {"resolution": 8},
    "arms": {
        "everything": {"kind": "fixed_per_source", "levels": {"*": 0.0}},
        "only_reference": {"kind": "fixed_per_source", "levels": {"*": None}},
    },
    "main_arm": "everything",
    "training": {
        "network": {"patch": 2, "widths": [16], "attention": False, "norm_groups": 4},
        "optimizer": {"warmup_images": 0},
        "batch_size": 8,
        "num_images": 96,
        "evaluate_every_images": 48,
        "log_every_images": 16,
        "held_out": {"sigmas": [0.2, 1.0], "num_noises": 1, "max_images": 8},
        "samples": {"num_images": 4, "num_steps": 3},
    },
}


def fill_trainable(root):
    """Ask for a reference of 12 images, 4 of them held out, and a pool of 20; make them ready."""
    recipe, sizes = parse_recipe(RECIPE, "trainables"), {"reference": 12, "pool": 20}
    batches = tuple(BatchRequest(name=role, role=role, source="tests") for role in sizes)
    Request(batches=batches, recipe=recipe.model_dump(mode="json")).save(root)
    for seed, (role, count) in enumerate(sizes.items()):
        rows = store_batch(root, role, tiny_images(count, 8, seed), role=role)["sample_row"]
        if role == "reference":
            define_set(root, "trusted", rows.to_pylist()[4:])
            define_set(root, "validation", rows.to_pylist()[:4])
    make_trainable(root, recipe.transform)


def make_trainable(root, transform):
    """Build packs of drawn colours and annotate all batches of a root under the recipe's arms."""
    request = Request.load(root)
    policies = policies_of(root, request, request.full_recipe)
    for batch in request.of_role("reference", "pool"):
        rows = root.tables.read("samples", ["sample_row"], {"ingest_batch": batch})
        build_pack(root, batch, rows["sample_row"].to_pylist(), transform)
        for policy in policies.values():
            annotate(root, batch, policy)
