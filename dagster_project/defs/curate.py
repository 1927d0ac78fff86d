"""Group `curate`: what is trusted, and what can be measured of every image."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from dagster_project.defs.materialize import Result, job_result, run_job
from dagster_project.defs.partitions import INGEST_BATCHES, all_of, same_batch
from dagster_project.defs.project import Project
from dagster_project.describe import described, static_metadata
from dagster_project.request import REFERENCE


@dg.asset(
    deps=[all_of("samples")],
    group_name="curate",
    kinds={"python", "deltalake"},
    description=(
        "The reference images in two parts: trusted (trained on) and validation (never trained "
        "on); and the evaluation images, which only the report looks at.\n\n"
        + described("reference_sets")
    ),
    metadata=static_metadata("reference_sets"),
)
def reference_sets(project: Project) -> Result:
    """Divide the reference batch."""
    from pipelines.references import define_reference_sets

    request = project.request
    report = run_job(
        define_reference_sets,
        project.root,
        REFERENCE,
        validation_fraction=request.full_recipe.validation_fraction,
        evaluation_batch=next(iter(request.of_role("evaluation")), None),
    )
    return job_result(project.root, report, "reference_sets", {})


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            "quality_scores",
            deps=[same_batch("samples")],
            kinds={"spark", "deltalake"},
            description=(
                "Sharpness, blockiness, noise, contrast and the like, a column each.\n\n"
                + described("scores/classical")
            ),
            metadata=static_metadata("scores/classical"),
        ),
        dg.AssetSpec(
            "embeddings",
            deps=[same_batch("samples")],
            kinds={"spark", "torch", "deltalake"},
            description=(
                "What a pretrained network sees in each image, as a vector.\n\n"
                + described("embeddings")
            ),
            metadata=static_metadata("embeddings"),
        ),
    ],
    partitions_def=INGEST_BATCHES,
    group_name="curate",
    name="measure",
    # Embeddings can be switched off in the recipe.
    can_subset=False,
)
def measure(context: dg.AssetExecutionContext, project: Project) -> Iterator[Result]:
    """Score and embed one batch; every image is decoded once."""
    from dagster_project.pictures import score_pictures
    from pipelines.jobs.score import score

    recipe, root, batch = project.request.full_recipe, project.root, context.partition_key
    report = run_job(score, root, batch, recipe.scores, settings=recipe.spark)
    more: dict[str, Any] = {}
    for pack in recipe.scores.packs:
        more |= score_pictures(root, f"scores/{pack}", batch)
    table = f"scores/{recipe.scores.pack}"
    scored = {
        "scorer_version": recipe.scores.pack_of(recipe.scores.pack).version,
        "ingest_batch": batch,
    }
    yield job_result(root, report, table, scored, asset_key="quality_scores", more=more)
    where = {"ingest_batch": batch}
    if recipe.scores.encoder is not None:
        where["encoder_version"] = recipe.scores.encoder.encoder_version
    yield job_result(root, report, "embeddings", where, asset_key="embeddings")


@dg.asset(
    partitions_def=INGEST_BATCHES,
    deps=[same_batch("embeddings"), "reference_sets"],
    group_name="curate",
    kinds={"spark", "deltalake"},
    description=(
        "How far each image lies from the trusted set, in the embedding's space.\n\n"
        + described("ood_scores")
    ),
    metadata=static_metadata("ood_scores"),
)
def ood_scores(context: dg.AssetExecutionContext, project: Project) -> Result:
    """Measure one batch against the trusted set."""
    from dagster_project.pictures import score_pictures
    from pipelines.jobs.ood import ood
    from schemas.reference_sets import TRUSTED

    recipe, root, batch = project.request.full_recipe, project.root, context.partition_key
    report = run_job(ood, root, batch, TRUSTED, recipe.ood, settings=recipe.spark)
    pictures = score_pictures(root, "ood_scores", batch)
    slice_ = {
        "scorer_version": recipe.ood.scorer_version,
        "reference_set": TRUSTED,
        "ingest_batch": batch,
    }
    return job_result(root, report, "ood_scores", slice_, more=pictures)


@dg.asset(
    partitions_def=INGEST_BATCHES,
    deps=[same_batch("samples")],
    group_name="curate",
    kinds={"spark", "numpy"},
    description=(
        "The batch's pixels under the recipe's transform, fixed-size rows that training maps into "
        "memory: nothing is decoded twice. And its latents, where the recipe trains on them."
    ),
)
def training_pack(context: dg.AssetExecutionContext, project: Project) -> Result:
    """Build the pack of one batch."""
    from dagster_project.galleries import score_galleries
    from dagster_project.latents import encode
    from dagster_project.pictures import pack_picture
    from pipelines.jobs.pack import build_pack

    recipe, root, batch = project.request.full_recipe, project.root, context.partition_key
    report = run_job(build_pack, root, batch, recipe.transform, settings=recipe.spark)
    run_job(encode, root, recipe, batch)
    pictures = pack_picture(root, recipe.transform, batch)
    scores = recipe.scores
    versions = {f"scores/{name}": scores.pack_of(name).version for name in scores.packs}
    pictures |= score_galleries(root, recipe.transform, batch, versions)
    more = {"noise_space": recipe.noise_space, **pictures}
    return job_result(root, report, more=more)
