"""`ambient-omni demo`: the whole graph on bundled drawings."""

from pathlib import Path

from dagster_project.commands.run import execute
from dagster_project.recipe import load_recipe
from dagster_project.request import EVALUATION, REFERENCE, BatchRequest, Request
from schemas.errors import BadInput
from schemas.root import Root

IMAGES = "images"


def demo(root: Path | None, *, quick: bool, until: str | None, dry_run: bool) -> int:
    """Draw the demo's images into the root and run the graph on them."""
    name = "demo_quick" if quick else "demo"
    where = root or Path("demo-quick" if quick else "demo")
    recipe = load_recipe(name)
    if recipe.demo_data is None:
        raise BadInput(f"recipe {name} has no demo_data; it cannot make the demo's images")
    from pipelines import demo_data

    paths = demo_data.DemoPaths.under(where.absolute() / IMAGES)
    if not dry_run:
        Root.create(where)
        demo_data.build(where.absolute() / IMAGES, recipe.demo_data)
    request = Request(
        batches=(
            BatchRequest(name=REFERENCE, role="reference", source=str(paths.reference)),
            BatchRequest(name=EVALUATION, role="evaluation", source=str(paths.evaluation)),
            BatchRequest(name="pool", role="pool", source=str(paths.pool)),
        ),
        recipe=recipe.model_dump(mode="json"),
        truth=str(paths.truth),
    )
    return execute(where, request, until=until, dry_run=dry_run)
