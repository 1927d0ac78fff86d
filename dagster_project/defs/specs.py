"""What all assets say of themselves alike: owners, code versions, when they are due by themselves.

A code version is what a job calls its own: of a scorer pack, of an encoder, of a transform, of the
rules. So the web page marks as stale what a new version would change, and nothing else.
"""

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

from dagster_project.defs.project import Project
from dagster_project.defs.windows import NAMES as WINDOW_ASSETS
from dagster_project.request import has_rule
from dagster_project.steps import WINDOWS
from schemas.errors import AmbientOmniError
from schemas.ids import canonical_hash

OWNERS = {
    "ingest": ["team:data-platform"],
    "curate": ["team:data-platform"],
    "annotate": ["team:data-quality"],
    "train": ["team:training"],
    "evaluate": ["team:training"],
}
# Whatever else is due follows from decisions that people make: references, classifiers, training.
AUTOMATIC = frozenset(
    {
        "samples",
        "quality_scores",
        "embeddings",
        "ood_scores",
        "training_pack",
        "noise_curves",
        "crop_scores",
        "noise_annotations",
    }
)


def due() -> dg.AutomationCondition[Any]:
    """Return when a partition of a batch is materialized by itself.

    It is new, its code version changed, or what it reads has other data than before (not: was
    merely looked at again); all it reads is there, and none of it is being made. The first look
    only learns what is there. What was missing then, and what failed, waits for a person or for the
    nightly schedule. Blocking checks are no part of this: the history knows one verdict per check,
    not one per batch, so a bad batch would stop all others. A batch that is held back refuses by
    itself.
    """
    condition: Any = dg.AutomationCondition
    reason = (
        condition.newly_missing()
        | condition.code_version_changed()
        | condition.any_deps_match(
            condition.data_version_changed() | condition.will_be_requested()
        ).ignore(dg.AssetSelection.assets("reference_sets"))
    )
    whole: Any = (
        reason.since_last_handled()
        & ~condition.any_deps_missing()
        & ~condition.any_deps_in_progress()
        & ~condition.in_progress()
    )
    labelled: dg.AutomationCondition[Any] = whole.with_label("new or stale")
    return labelled


def has_windows(project: Project) -> bool:
    """Say whether the graph has the assets of windows: its recipe asks for them, or there is none.

    Without a recipe the graph documents all that there can be.
    """
    recipe = project.recipe_values
    return not recipe or has_rule(recipe, WINDOWS)


def complete(project: Project) -> Callable[[dg.AssetSpec], dg.AssetSpec]:
    """Return what adds owner, code version and condition to an asset's spec.

    And takes away what the asset would wait for in vain: assets of windows that are not there.
    """
    versions = code_versions(project)
    absent = {dg.AssetKey(name) for name in (() if has_windows(project) else WINDOW_ASSETS)}

    def add(spec: dg.AssetSpec) -> dg.AssetSpec:
        name = spec.key.to_user_string()
        return spec.replace_attributes(
            deps=[dep for dep in spec.deps if dep.asset_key not in absent],
            owners=OWNERS[str(spec.group_name)],
            code_version=versions.get(name),
            automation_condition=due() if name in AUTOMATIC else None,
        )

    return add


def code_versions(project: Project) -> dict[str, str]:
    """Return the code version of each asset that has one, under the root's recipe."""
    recipe: Mapping[str, Any] = project.recipe_values
    transform = recipe.get("transform", {})
    latents = recipe.get("training", {}).get("latents")
    versions = {
        "noise_annotations": canonical_hash(recipe.get("arms", {})),
        "training_pack": canonical_hash([transform, latents] if latents else transform),
        "samples": canonical_hash(recipe.get("ingest", {})),
        "noise_classifier": canonical_hash([recipe.get("classifier", {}), latents]),
        "noise_curves": canonical_hash(recipe.get("annotator", {})),
    }
    arms: Mapping[str, Any] = recipe.get("arms", {})
    windows = {arm: rule for arm, rule in arms.items() if rule.get("kind") == WINDOWS}
    for name, part in (("crop_classifier", "crops"), ("receptive_field", "receptive_field")):
        versions[name] = canonical_hash({arm: rule.get(part) for arm, rule in windows.items()})
    scores: Mapping[str, Any] = recipe.get("scores", {})
    try:
        versions |= _measures(scores)
    except (AmbientOmniError, ImportError, ValueError):
        return versions  # an extra is not installed here: the page can still be looked at
    return versions


def _measures(values: Mapping[str, Any]) -> dict[str, str]:
    from pipelines.jobs.score import ScoreConfig

    scores = ScoreConfig.model_validate(values)
    versions = [scores.pack_of(name).version for name in scores.packs]
    found = {"quality_scores": versions[0] if len(versions) == 1 else canonical_hash(versions)}
    if scores.encoder is not None:
        found["embeddings"] = scores.encoder.encoder_version
        # Distances are made of embeddings alone, by code of theirs that changes their own version.
        found["ood_scores"] = found["embeddings"]
    return found
