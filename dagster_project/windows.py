"""Arms with windows: which crop classifier and which receptive field each of them obeys.

Both are measured once and then kept, by their settings: a batch that comes later falls under the
same windows, and so does an arm that reads the same crops by another rule.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dagster_project.recipe import Recipe
from dagster_project.request import Request
from dagster_project.rules import WindowRule
from pipelines.freezing import window_levels
from schemas.errors import TableMissing
from schemas.ids import canonical_hash
from schemas.reference_sets import TRUSTED
from schemas.root import Root, write_json

if TYPE_CHECKING:
    from pipelines.job import JobReport

Part = Literal["crop_classifier", "receptive_field"]


def window_rules(recipe: Recipe) -> dict[str, WindowRule]:
    """Return the arms whose rule has windows."""
    return {arm: rule for arm, rule in recipe.arms.items() if isinstance(rule, WindowRule)}


def known_id(root: Root, recipe: Recipe, arm: str, part: Part) -> str | None:
    """Return what was measured under an arm's settings before, None if nothing was."""
    file = _file(root, recipe, arm, part)
    return json.loads(file.read_text())["id"] if file.exists() else None


def id_of(root: Root, recipe: Recipe, arm: str, part: Part) -> str:
    """Return what was measured for an arm.

    Raises:
        TableMissing: it was not yet.
    """
    known = known_id(root, recipe, arm, part)
    if known is None:
        raise TableMissing(
            f"arm {arm!r}: its {part} was not made yet under these settings; materialize {part}, "
            "or go on with `ambient-omni run`"
        )
    return known


def measure(root: Root, request: Request, recipe: Recipe, arm: str, part: Part) -> str:
    """Train an arm's crop classifier or measure its receptive field, once; return the id.

    Raises:
        NotEnoughReferences, BadInput, TableMissing, PackMissing: the data do not suffice.
        ClassifierRefused: the crop classifier does not find shuffled crops.
        TrainingFailed: a loss is not finite.
    """
    known = known_id(root, recipe, arm, part)
    if known is not None:
        return known
    from ambient_omni.windows.crop_training import train_crop_classifier
    from ambient_omni.windows.receptive_field import measure_receptive_field

    rule, pool = window_rules(recipe)[arm], request.of_role("pool")
    if part == "crop_classifier":
        found = train_crop_classifier(
            root, rule.crops, foreign_batches=pool, reference_set=TRUSTED, space=recipe.space
        )
    else:
        found = measure_receptive_field(
            root,
            rule.receptive_field,
            foreign_batches=pool,
            reference_set=TRUSTED,
            space=recipe.space,
        )
    write_json(
        _file(root, recipe, arm, part), {"settings": _settings(recipe, arm, part), "id": found}
    )
    return found


def grade(
    root: Root, recipe: Recipe, batch: str, *, dry_run: bool = False
) -> dict[str, "JobReport"]:
    """Let the arms' crop classifiers look at the crops of a batch; return a report of each by id.

    Raises:
        TableMissing: an arm's was not trained yet, or the batch was never ingested.
        PackMissing: the batch has no pack.
    """
    from pipelines.jobs.windows import crops

    return {
        name: crops(root, batch, name, dry_run=dry_run)
        for name in crop_classifiers_of(root, recipe)
    }


def crop_classifiers_of(root: Root, recipe: Recipe) -> dict[str, list[str]]:
    """Return the crop classifiers of the recipe with their arms.

    Raises:
        TableMissing: an arm's was not trained yet.
    """
    found: dict[str, list[str]] = {}
    for arm in window_rules(recipe):
        found.setdefault(id_of(root, recipe, arm, "crop_classifier"), []).append(arm)
    return found


def borders_of(recipe: Recipe, arms: Iterable[str]) -> list[float]:
    """Return the mean probabilities above which crops pass, of some arms."""
    rules = window_rules(recipe)
    return sorted({0.5 - rules[arm].epsilon for arm in arms})


def reach_of(row: Mapping[str, Any], recipe: Recipe, arm: str) -> dict[int, float]:
    """Return up to which level each of an arm's crop sizes is context enough; 0: at none.

    Args:
        row: of `receptive_fields`.
        recipe: where the arm is.
        arm: which.
    """
    sizes = window_rules(recipe)[arm].crops.sizes_in(min(recipe.space.x0_shape[1:]))
    sigmas, needed = np.array(row["sigmas"], np.float64), np.array(row["needed_context"])
    levels = window_levels(sigmas, needed, np.array(sizes, np.int64))
    return dict(zip(sizes, levels.tolist(), strict=True))


def _settings(recipe: Recipe, arm: str, part: Part) -> Mapping[str, Any]:
    rule = window_rules(recipe)[arm]
    config = rule.crops if part == "crop_classifier" else rule.receptive_field
    return {"noise_space": recipe.noise_space, **config.model_dump(mode="json")}


def _file(root: Root, recipe: Recipe, arm: str, part: Part) -> Path:
    return root.work / "windows" / f"{part}-{canonical_hash(_settings(recipe, arm, part))}.json"
