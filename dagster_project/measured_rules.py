"""Rules whose thresholds are measured once and then frozen: a new batch falls under the same."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from dagster_project.recipe import Recipe
from dagster_project.request import Request
from dagster_project.rules import PilotRule, RankRule, SampleSizeRule, SourceRule, WindowRule
from dagster_project.windows import id_of
from pipelines.freezing import (
    freeze_crop_window,
    freeze_quality_rank,
    freeze_sample_size,
    freeze_source_levels,
)
from pipelines.measures import curves_slice, direction_of, sources_of
from pipelines.pilot.config import PilotConfig
from pipelines.policies import (
    AnyPolicy,
    ClassifierPerSource,
    ClassifierThreshold,
    CropWindow,
    FixedPerSource,
    PilotCalibrated,
    QualityRank,
    SampleSizeAware,
    load,
    register,
)
from schemas.errors import TableMissing
from schemas.root import Root, write_json

_NOT_YET = "arm {arm!r}: {what} were not run yet; they run with the annotations"


@dataclass(frozen=True)
class Place:
    """Where a rule is applied: the arm of a recipe in a root, and whether it may train."""

    root: Root
    request: Request
    recipe: Recipe
    arm: str
    make: bool

    def frozen(self, kind: str) -> Iterator[AnyPolicy]:
        """Yield the arm's registered policies of a kind, in one order for ever."""
        where = {"name": self.arm, "kind": kind}
        rows = self.root.tables.read("policies", ["policy_id"], where)
        for policy_id in sorted(rows["policy_id"].to_pylist()):
            yield load(self.root, policy_id)

    def require_make(self, what: str) -> None:
        """Refuse to train on the way to a question.

        Raises:
            TableMissing: this is not the annotation step.
        """
        if not self.make:
            raise TableMissing(_NOT_YET.format(arm=self.arm, what=what))


def rank(place: Place, rule: RankRule) -> QualityRank:
    """Return the frozen border, or freeze it on the pool's batches.

    Another version of the scorer is another measure, and its border is found anew: a batch that
    comes is measured by the present one alone.
    """
    pack = place.recipe.scores.pack
    version = place.recipe.scores.pack_of(pack).version
    settings = {
        "pack": pack,
        "column": rule.column,
        "scorer_version": version,
        "direction": direction_of(pack, rule.column, None),
        "good_fraction": rule.good_fraction,
        "sigma_min_rest": rule.sigma_min_rest,
        "noise_space": place.recipe.noise_space,
    }
    for policy in place.frozen("quality_rank"):
        assert isinstance(policy, QualityRank)
        if policy.model_dump(include=set(settings)) == settings:
            return policy
    return freeze_quality_rank(
        place.root,
        place.request.of_role("pool"),
        pack=pack,
        column=rule.column,
        good_fraction=rule.good_fraction,
        sigma_min_rest=rule.sigma_min_rest,
        noise_space=place.recipe.noise_space,
        scorer_version=version,
        name=place.arm,
    )


def sample_size(place: Place, rule: SampleSizeRule, classifier_id: str) -> SampleSizeAware:
    """Return the frozen thresholds, or freeze them on the pool's batches."""
    for policy in place.frozen("sample_size"):
        assert isinstance(policy, SampleSizeAware)
        found = (policy.classifier_id, policy.constant, policy.smoothing_octaves)
        if found == (classifier_id, rule.constant, rule.smoothing_octaves):
            return policy
    return freeze_sample_size(
        place.root,
        place.request.of_role("pool"),
        classifier_id=classifier_id,
        constant=rule.constant,
        smoothing_octaves=rule.smoothing_octaves,
        name=place.arm,
    )


def source_levels(
    place: Place, rule: SourceRule, threshold: ClassifierThreshold
) -> ClassifierPerSource:
    """Return the frozen level of every source; sources that came since are added to them."""
    root, batches = place.root, place.request.of_role("pool")
    known = _most_sources(place, rule, threshold)
    if known is not None:
        # One that is not graded yet must not keep the others from their levels.
        where = [curves_slice(threshold.classifier_id, batch) for batch in batches]
        graded = [s["ingest_batch"] for s in where if root.tables.fingerprint("noise_curves", s)]
        batches = tuple(b for b in graded if not sources_of(root, b) <= set(known.levels))
        if not batches:
            return known
    return freeze_source_levels(
        root,
        batches,
        threshold=threshold,
        quantile=rule.quantile,
        name=place.arm,
        known=None if known is None else known.levels,
    )


def _most_sources(
    place: Place, rule: SourceRule, threshold: ClassifierThreshold
) -> ClassifierPerSource | None:
    """Return the arm's policy of these settings that knows most sources."""
    found = [
        policy
        for policy in place.frozen("classifier_per_source")
        if isinstance(policy, ClassifierPerSource)
        and policy.threshold.policy_id == threshold.policy_id
        and policy.quantile == rule.quantile
    ]
    return max(found, key=lambda policy: (len(policy.levels), policy.policy_id), default=None)


def pilot(place: Place, rule: PilotRule, classifier_id: str) -> PilotCalibrated:
    """Return what the arm's pilots set before, or run them.

    Raises:
        TableMissing: they were not run, and this is no time to.
    """
    config = pilot_config(place, rule, classifier_id)
    # Which batches there were is no setting: later ones fall under the same thresholds.
    settings = config.model_dump(mode="json", exclude={"batches"})
    file = place.root.work / "pilots" / f"arm-{place.arm}.json"
    if file.exists():
        known = json.loads(file.read_text())
        if known["settings"] == settings:
            policy = load(place.root, known["policy_id"])
            assert isinstance(policy, PilotCalibrated)
            return policy
    place.require_make("its pilots")
    from pipelines.pilot.run import calibrate

    policy = calibrate(place.root, config).policy.model_copy(update={"name": place.arm})
    register(place.root, policy)
    write_json(file, {"settings": settings, "policy_id": policy.policy_id})
    return policy


def pilot_config(place: Place, rule: PilotRule, classifier_id: str) -> PilotConfig:
    """Return the pilots of an arm: the recipe's training, smaller."""
    recipe = place.recipe
    smaller = {
        "transform": recipe.transform.model_dump(),
        "network": rule.network,
        "num_images": rule.num_images,
        "evaluate_every_images": max(1, rule.num_images // 4),
        "log_every_images": max(1, rule.num_images // 4),
        "samples": {"num_images": 1, "num_steps": 2},
        "trackers": (),
    }
    return PilotConfig(
        classifier_id=classifier_id,
        batches=place.request.of_role("reference", "pool"),
        thresholds=rule.thresholds,
        edges=rule.edges,
        detail_tolerance=rule.detail_tolerance,
        training=recipe.training.model_dump(mode="json") | smaller,
        run_images=recipe.training.num_images,
    )


def window(
    place: Place, rule: WindowRule, floor: FixedPerSource | ClassifierThreshold
) -> CropWindow:
    """Return the windows that were measured for the arm.

    Raises:
        TableMissing: they were not measured yet.
    """
    where = place.root, place.recipe, place.arm
    return freeze_crop_window(
        place.root,
        crop_classifier_id=id_of(*where, "crop_classifier"),
        receptive_field_id=id_of(*where, "receptive_field"),
        floor=floor,
        epsilon=rule.epsilon,
        name=place.arm,
    )
