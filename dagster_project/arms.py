"""Arms of the comparison: which policy each obeys, and which run trained it."""

from pathlib import Path
from typing import TYPE_CHECKING

from ambient_omni.noise.crossing import corrected_tau
from dagster_project import measured_rules
from dagster_project.operations.classifiers import promoted_id
from dagster_project.recipe import Recipe
from dagster_project.request import Request
from dagster_project.rules import (
    ClassifierRule,
    FixedRule,
    PilotRule,
    RankRule,
    SampleSizeRule,
    SourceRule,
)
from pipelines.measures import good_share_of
from pipelines.policies import AnyPolicy, ClassifierThreshold, FixedPerSource, reading_of
from schemas.reference_sets import TRUSTED
from schemas.root import Root

if TYPE_CHECKING:
    from ambient_omni.evaluation import HeldOutLoss
    from ambient_omni.training.config import TrainConfig
    from pipelines.jobs.agreement import Agreement


def classifier_id_of(root: Root, request: Request) -> str:
    """Return the id of the noise classifier that grades: the promoted one, if there is one.

    Else the one that the recipe makes of the root's present data.
    """
    recipe = request.full_recipe
    promoted = promoted_id(root, recipe.noise_space)
    if promoted is not None:
        return promoted
    from ambient_omni.classifier.noise_classifier import classifier_id_for

    return classifier_id_for(
        root,
        recipe.classifier,
        pool_batches=request.of_role("pool"),
        reference_set=TRUSTED,
        transform=recipe.transform,
        latents=recipe.training.latents,
    )


def policies_of(
    root: Root, request: Request, recipe: Recipe, *, make: bool = False
) -> dict[str, AnyPolicy]:
    """Return the policy of each arm.

    Args:
        root: where the measurements are.
        request: the batches.
        recipe: the arms.
        make: run what a rule measures by training on the way (pilots) if it is missing.

    Raises:
        TableMissing: a policy reads a classifier, scores or trainings that are not there yet.
    """
    return {arm: policy_of(root, request, recipe, arm, make=make) for arm in recipe.arms}


def policy_of(
    root: Root, request: Request, recipe: Recipe, arm: str, *, make: bool = False
) -> AnyPolicy:
    """Return the policy of one arm, named as the arm."""
    rule, space = recipe.arms[arm], recipe.noise_space
    if isinstance(rule, ClassifierRule):
        return _threshold(root, request, rule, space, arm)
    if isinstance(rule, FixedRule):
        return FixedPerSource(name=arm, noise_space=space, levels=rule.levels)
    place = measured_rules.Place(root, request, recipe, arm, make)
    if isinstance(rule, RankRule):
        return measured_rules.rank(place, rule)
    if isinstance(rule, SampleSizeRule):
        return measured_rules.sample_size(place, rule, classifier_id_of(root, request))
    if isinstance(rule, SourceRule):
        threshold = _threshold(root, request, rule.threshold, space, "")
        return measured_rules.source_levels(place, rule, threshold)
    if isinstance(rule, PilotRule):
        return measured_rules.pilot(place, rule, classifier_id_of(root, request))
    floor = rule.floor
    if isinstance(floor, FixedRule):
        under: FixedPerSource | ClassifierThreshold = FixedPerSource(
            noise_space=space, levels=floor.levels
        )
    else:
        under = _threshold(root, request, floor, space, "")
    return measured_rules.window(place, rule, under)


def config_of(root: Root, request: Request, recipe: Recipe, arm: str) -> "TrainConfig":
    """Return the configuration of an arm's run."""
    policy_id = policy_of(root, request, recipe, arm).policy_id
    batches = request.of_role("reference", "pool")
    config = recipe.training.of_arm(arm, policy_id, batches, recipe.transform)
    rule = recipe.arms[arm]
    if not (isinstance(rule, ClassifierRule) and rule.soft):
        return config
    sampling = config.sampling.model_copy(update={"soft_floors": True})
    return config.model_copy(update={"sampling": sampling})


def run_id_of(root: Root, request: Request, recipe: Recipe, arm: str) -> str:
    """Return the id of an arm's run on the root's present data.

    Raises:
        AnnotationMissing: the arm's policy was not applied to every batch yet.
    """
    from ambient_omni.training.run_record import RunRecord

    return RunRecord.of(root, config_of(root, request, recipe, arm)).run_id


def evaluate_once(root: Root, run_id: str, reference_set: str, max_images: int) -> "HeldOutLoss":
    """Return a run's held-out loss; measured again only if checkpoint or images changed."""
    from ambient_omni.evaluation import evaluate, read_heldout
    from ambient_omni.training.run_record import find_run

    known = read_heldout(root.runs / run_id).get(reference_set)
    members = root.tables.read("reference_sets", ["sample_row"], {"reference_set": reference_set})
    selected = Path(find_run(root, run_id)["checkpoint"] or "").name
    if (
        known is not None
        and known.checkpoint == selected
        and set(known.sample_rows) <= set(members["sample_row"].to_pylist())
        and known.num_images == min(members.num_rows, max_images)
    ):
        return known
    return evaluate(root, run_id, reference_set)


def agreement_of(root: Root, request: Request, batch: str) -> "Agreement":
    """Hold a batch's curves against the exhaustive search, read as the main arm reads them."""
    from ambient_omni.classifier.annotators import Reading
    from ambient_omni.classifier.config import ExhaustiveConfig
    from pipelines.jobs.agreement import agreement

    recipe, config = request.full_recipe, request.operations.agreement
    rule, reading = recipe.arms[recipe.main_arm], Reading()
    if isinstance(rule, SourceRule):
        rule = rule.threshold
    if isinstance(rule, ClassifierRule):
        reading = reading_of(_threshold(root, request, rule, recipe.noise_space, ""))
    bins = min(ExhaustiveConfig().num_bins, config.num_levels // 2)
    return agreement(
        root,
        batch,
        classifier_id_of(root, request),
        reading,
        num_images=config.num_images,
        search=ExhaustiveConfig(num_levels=config.num_levels, num_bins=bins),
    )


def judging_set(request: Request) -> str:
    """Return the reference set that arms are compared on.

    The evaluation images, which nobody chose by; without them the validation images, which each
    arm chose its checkpoint by.
    """
    return "evaluation" if request.of_role("evaluation") else "validation"


def _threshold(
    root: Root, request: Request, rule: ClassifierRule, space: str, name: str
) -> ClassifierThreshold:
    classifier_id, share = classifier_id_of(root, request), rule.good_share
    if share == "measured":
        share = good_share_of(root, classifier_id)
    return ClassifierThreshold(
        name=name,
        noise_space=space,
        classifier_id=classifier_id,
        tau=corrected_tau(rule.tau, share) if share else rule.tau,
        smoothing_octaves=rule.smoothing_octaves,
        decay_exponent=rule.decay_exponent,
        soft=rule.soft,
    )
