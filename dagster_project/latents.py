"""Latents of a recipe that trains on them: encoded beside the pixels that they are made from."""

from ambient_omni.data.packs import Pack, PackMissing
from dagster_project.recipe import Recipe
from schemas.root import Root


def encode(root: Root, recipe: Recipe, batch: str) -> None:
    """Make a batch's latent pack; what is current is left alone. Nothing for a recipe of pixels.

    Raises:
        BadInput: the autoencoder cannot be used.
        PackMissing: the batch has no complete pack of pixels.
        JobAlreadyRunning: another process encodes the batch.
    """
    if recipe.training.latents is None:
        return
    from ambient_omni.data.latent_packs import EncodeLatentsJob, encode_batches

    latents, transform = recipe.training.latents, recipe.transform
    encode_batches(root, EncodeLatentsJob(batches=(batch,), latents=latents, transform=transform))


def is_encoded(root: Root, recipe: Recipe, batch: str) -> bool:
    """Say whether a batch's latents are those of its pixels as they are now."""
    if recipe.training.latents is None:
        return True
    pixels = Pack.open(root.packs, recipe.transform.transform_id, batch)
    try:
        latents = Pack.open(root.packs, recipe.space.transform_id, batch)
    except PackMissing:
        return False
    return latents.inputs == pixels.inputs
