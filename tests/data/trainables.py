"""Roots that can be trained on in seconds: no Spark, no classifier, levels by fixed rules."""

from dagster_project.arms import policies_of
from dagster_project.request import Request
from pipelines.jobs.annotate import annotate
from tests.ambient_omni.conftest import build_pack

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


def make_trainable(root, transform):
    """Build packs of drawn colours and annotate all batches of a root under the recipe's arms."""
    request = Request.load(root)
    policies = policies_of(root, request, request.full_recipe)
    for batch in request.of_role("reference", "pool"):
        rows = root.tables.read("samples", ["sample_row"], {"ingest_batch": batch})
        build_pack(root, batch, rows["sample_row"].to_pylist(), transform)
        for policy in policies.values():
            annotate(root, batch, policy)
