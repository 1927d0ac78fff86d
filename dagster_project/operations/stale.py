"""What is new or stale, asked of the jobs themselves: each says without working if it would.

The tables are the truth: what a slice was made from stands in their log. So a new version of a
scorer, encoder, policy or classifier, an image that came or went, and a lost run history all show
here alike, and nothing else does.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from dagster_project.arms import classifier_id_of, policies_of
from dagster_project.recipe import Recipe
from dagster_project.request import Request
from dagster_project.steps import Step, steps_until
from dagster_project.windows import Part, grade, known_id, window_rules
from pipelines.job import JobReport
from schemas.errors import (
    AnnotationMissing,
    BadInput,
    ClassifierRefused,
    JobAlreadyRunning,
    NotEnoughReferences,
    TableMissing,
)
from schemas.reference_sets import TRUSTED
from schemas.root import Root

LAST_STEP = "annotate"
_NOT_YET = (TableMissing, AnnotationMissing, BadInput, ClassifierRefused, NotEnoughReferences)


@dataclass(frozen=True)
class Stale:
    """One partition of one step that would do something."""

    step: Step
    partition: str | None
    why: str


def stale_work(root: Root, request: Request, until: str = LAST_STEP) -> Iterator[Stale]:
    """Yield what would be done now, in the order of the steps.

    Each step is asked when it is reached, so that a caller who does what is yielded also gets what
    becomes stale by it.
    """
    recipe = request.full_recipe
    for step in steps_until(until):
        for partition in step.partitions(request, list(recipe.arms)):
            why = why_stale(root, request, recipe, step, partition)
            if why:
                yield Stale(step, partition, why)


def why_stale(
    root: Root, request: Request, recipe: Recipe, step: Step, partition: str | None
) -> str:
    """Return why a step would do something for a partition; empty if it would not."""
    ask = _QUESTIONS[step.name]
    try:
        return ask(root, request, recipe, partition or "")
    except JobAlreadyRunning:
        return ""  # it is being done
    except _NOT_YET as error:
        return f"waits: {error}"


def _ingest(root: Root, request: Request, recipe: Recipe, batch: str) -> str:
    known = root.tables.fingerprint("samples", {"ingest_batch": batch})
    return "" if known else "was never ingested"


def _references(root: Root, request: Request, recipe: Recipe, _: str) -> str:
    if not root.tables.read("reference_sets", ["sample_row"], {"reference_set": TRUSTED}).num_rows:
        return "not defined yet"
    # Cheap to define again, and no door says whether it must be: only when their batches changed.
    from pipelines.references import sample_ids_of

    members = sample_ids_of(root, [TRUSTED, "validation", "evaluation"])
    batches = list(request.of_role("reference", "evaluation"))
    ids = root.tables.read("samples", ["sample_id"], {"ingest_batch": batches})["sample_id"]
    return "" if set(ids.to_pylist()) <= members else "its batches changed"


def _score(root: Root, request: Request, recipe: Recipe, batch: str) -> str:
    from pipelines.jobs.score import score

    return _told(score(root, batch, recipe.scores, dry_run=True))


def _ood(root: Root, request: Request, recipe: Recipe, batch: str) -> str:
    from pipelines.jobs.ood import ood

    return _told(ood(root, batch, TRUSTED, recipe.ood, dry_run=True))


def _pack(root: Root, request: Request, recipe: Recipe, batch: str) -> str:
    from dagster_project.latents import is_encoded
    from pipelines.jobs.pack import build_pack

    why = _told(build_pack(root, batch, recipe.transform, dry_run=True))
    return why or ("" if is_encoded(root, recipe, batch) else "its latents are not encoded")


def _classifier(root: Root, request: Request, recipe: Recipe, _: str) -> str:
    from ambient_omni.classifier.stored import is_current

    wanted = classifier_id_of(root, request)
    known = root.tables.read("noise_classifiers", ["status"], {"classifier_id": wanted})
    if not known.num_rows:
        return "the pool or the reference changed, and none is promoted"
    if not is_current(root, wanted):
        return "its files are missing, or another version made it: train a candidate and promote it"
    return ""


def _curves(root: Root, request: Request, recipe: Recipe, batch: str) -> str:
    from pipelines.jobs.curves import curves

    classifier_id = classifier_id_of(root, request)
    return _told(curves(root, batch, classifier_id, annotator=recipe.annotator, dry_run=True))


def _windows(root: Root, request: Request, recipe: Recipe, _: str) -> str:
    return _not_measured(root, recipe, "crop_classifier")


def _context(root: Root, request: Request, recipe: Recipe, _: str) -> str:
    return _not_measured(root, recipe, "receptive_field")


def _not_measured(root: Root, recipe: Recipe, part: Part) -> str:
    unknown = [a for a in window_rules(recipe) if known_id(root, recipe, a, part) is None]
    return f"not made yet under the settings of {', '.join(unknown)}" if unknown else ""


def _crops(root: Root, request: Request, recipe: Recipe, batch: str) -> str:
    reports = grade(root, recipe, batch, dry_run=True).values()
    return next((why for report in reports if (why := _told(report))), "")


def _annotate(root: Root, request: Request, recipe: Recipe, batch: str) -> str:
    from pipelines.jobs.annotate import annotate

    for arm, policy in policies_of(root, request, recipe).items():
        if why := _told(annotate(root, batch, policy, dry_run=True)):
            return f"{arm}: {why}"
    return ""


def _told(report: JobReport) -> str:
    left = report.read - report.unchanged
    return f"{left:,} of {report.read:,} images" if left else ""


_QUESTIONS: Mapping[str, Callable[[Root, Request, Recipe, str], str]] = {
    "ingest": _ingest,
    "references": _references,
    "score": _score,
    "ood": _ood,
    "pack": _pack,
    "classifier": _classifier,
    "curves": _curves,
    "windows": _windows,
    "context": _context,
    "crops": _crops,
    "annotate": _annotate,
}
