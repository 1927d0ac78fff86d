"""Group `annotate`: from which noise level on each image may be used."""

import dagster as dg

from dagster_project.defs.materialize import Result, job_result, run_job
from dagster_project.defs.partitions import INGEST_BATCHES, all_of, same_batch
from dagster_project.defs.project import Project
from dagster_project.describe import described, preview, static_metadata
from dagster_project.pictures import classifier_picture, level_pictures


@dg.asset(
    deps=[all_of("training_pack"), "reference_sets"],
    group_name="annotate",
    kinds={"torch"},
    description=(
        "Networks that tell trusted images from the pool's at every noise level; no image is "
        "graded by one that trained on it. A classifier that does not find planted damage is "
        "refused.\n\n" + described("noise_classifiers")
    ),
    metadata=static_metadata("noise_classifiers"),
)
def noise_classifier(project: Project) -> Result:
    """Train the classifier of the recipe."""
    raise NotImplementedError


@dg.asset(
    partitions_def=INGEST_BATCHES,
    deps=["noise_classifier", same_batch("training_pack")],
    group_name="annotate",
    kinds={"spark", "torch", "deltalake"},
    description=(
        "What the noise classifier says of every image at each level.\n\n"
        + described("noise_curves")
    ),
    metadata=static_metadata("noise_curves"),
)
def noise_curves(context: dg.AssetExecutionContext, project: Project) -> Result:
    """Grade one batch."""
    raise NotImplementedError


@dg.asset(
    partitions_def=INGEST_BATCHES,
    deps=[same_batch("noise_curves"), same_batch("quality_scores"), "reference_sets"],
    group_name="annotate",
    kinds={"numpy", "deltalake"},
    description=(
        "The decision, one row per image and policy of the recipe: computed from tables, without "
        "touching a pixel or a network.\n\n" + described("noise_annotations", "policies")
    ),
    metadata=static_metadata("noise_annotations"),
)
def noise_annotations(context: dg.AssetExecutionContext, project: Project) -> Result:
    """Apply every policy of the recipe to one batch."""
    raise NotImplementedError


__all__ = ["all_of", "classifier_picture", "job_result", "level_pictures", "preview", "run_job"]
