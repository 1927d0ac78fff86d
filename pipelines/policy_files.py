"""Policies written by people: YAML or JSON with what can be found out left out."""

from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ambient_omni.config import explained, read_settings
from ambient_omni.noise.crossing import corrected_tau
from pipelines import policies
from pipelines.freezing import (
    freeze_crop_window,
    freeze_quality_rank,
    freeze_sample_size,
    freeze_source_levels,
)
from pipelines.measures import direction_of, good_share_of, noise_space_of, the_version
from pipelines.policies import AnyPolicy, ClassifierThreshold, FixedPerSource
from pipelines.policies.by_window import Floor
from schemas.errors import BadInput
from schemas.known import instead_of
from schemas.root import Root

_FLOOR: TypeAdapter[ClassifierThreshold | FixedPerSource] = TypeAdapter(Floor)


def policy_from_file(root: Root, path: Path, batches: Sequence[str]) -> AnyPolicy:
    """Read a policy; fill in what follows from the root.

    Rules that read a classifier take their noise space from it. A rule without its frozen numbers
    gets them here: a `quality_rank` its border, a `sample_size` its thresholds and a
    `classifier_per_source` its levels from `batches`, a `crop_window` its levels from the receptive
    field. To apply them to later batches, name the
    policy by its id.

    `good_share` of a `classifier_threshold` corrects tau for a pool of which that share is as good
    as the reference; "measured" takes the classifier's own estimate.

    Raises:
        BadInput: the file cannot be read, or a setting is missing, unknown or out of range.
        TableMissing: the classifier or the scores that it needs are not there.
    """
    return _from_values(root, str(path), read_settings(path, "policy"), batches)


def _from_values(
    root: Root, where: str, values: dict[str, Any], batches: Sequence[str]
) -> AnyPolicy:
    kind = values.get("kind")
    if kind in ("classifier_threshold", "pilot_calibrated", "sample_size"):
        _require_classifier(root, where, values)
    try:
        if kind == "classifier_threshold" and "good_share" in values:
            values = _corrected(root, values)
        if kind in ("classifier_threshold", "pilot_calibrated") and "noise_space" not in values:
            values["noise_space"] = noise_space_of(root, str(values.get("classifier_id")))
        if kind == "quality_rank" and "cut_score" not in values:
            needed = {"column", "good_fraction", "sigma_min_rest", "noise_space"}
            _require(where, values, needed, {"scorer_version", "direction"})
            return freeze_quality_rank(root, batches, **_settings(values))
        if kind == "best_of_duplicates":
            return _best_of_duplicates(root, where, values, batches)
        if kind == "sample_size" and "max_evidence" not in values:
            _require(where, values, {"classifier_id", "constant"}, {"smoothing_octaves"})
            return freeze_sample_size(root, batches, **_settings(values))
        if kind == "classifier_per_source" and "levels" not in values:
            return _per_source(root, where, values, batches)
        if kind == "crop_window" and "sigma_max" not in values:
            ids = {"crop_classifier_id", "receptive_field_id"}
            _require(where, values, {*ids, "floor"}, {"epsilon"})
            floor = _FLOOR.validate_python(values["floor"])
            return freeze_crop_window(root, **_settings(values) | {"floor": floor})
        return policies.from_values(values)
    except ValidationError as error:
        raise BadInput(f"{where}: {explained(error, AnyPolicy)}") from error


def _per_source(
    root: Root, where: str, values: dict[str, Any], batches: Sequence[str]
) -> AnyPolicy:
    _require(where, values, {"threshold"}, {"quantile"})
    given = values["threshold"]
    if not isinstance(given, dict) or given.get("kind") != "classifier_threshold":
        raise BadInput(f"{where}: threshold: it must be of kind classifier_threshold")
    threshold = _from_values(root, f"{where}: threshold", dict(given), batches)
    return freeze_source_levels(root, batches, **_settings(values) | {"threshold": threshold})


def _best_of_duplicates(
    root: Root, where: str, values: dict[str, Any], batches: Sequence[str]
) -> AnyPolicy:
    """Fill in the rule of what is kept, and the version of the score that chooses."""
    floor = values.get("floor")
    if not isinstance(floor, dict):
        raise BadInput(f"{where}: best_of_duplicates needs a floor, the rule for what is kept")
    decided = _from_values(root, f"{where}: floor", dict(floor), batches)
    pack, column = str(values.get("pack", "classical")), str(values.get("column", ""))
    found = {
        "floor": decided.model_dump(mode="json"),
        "pack": pack,
        "direction": direction_of(pack, column, values.get("direction")),
        "noise_space": decided.noise_space,
    }
    if "scorer_version" not in values:
        found["scorer_version"] = the_version(root, batches, pack)
    return policies.from_values(values | found)


def _corrected(root: Root, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with the tau that means for the pool's bad part what tau says."""
    rest = {name: value for name, value in values.items() if name != "good_share"}
    share = values["good_share"]
    if share == "measured":
        share = good_share_of(root, str(values.get("classifier_id")))
    tau = rest.get("tau", ClassifierThreshold.model_fields["tau"].default)
    try:
        return rest | {"tau": corrected_tau(float(tau), float(share))}
    except (TypeError, ValueError) as error:
        raise BadInput(
            f'good_share {share!r} with tau {tau!r}: give a share from 0 to 1 or "measured"'
        ) from error


def _require(
    where: str, values: dict[str, Any], needed: set[str], optional: Set[str] = frozenset()
) -> None:
    given = set(values) - {"kind", "name", "pack"}
    if given - optional != needed:
        raise BadInput(
            f"{where}: a {values['kind']} to be frozen needs {sorted(needed)}; missing "
            f"{sorted(needed - given)}, unknown {sorted(given - needed - optional)}"
        )


def _require_classifier(root: Root, where: str, values: dict[str, Any]) -> None:
    named = values.get("classifier_id")
    if not isinstance(named, str):
        known = root.tables.read("noise_classifiers", ["classifier_id"])["classifier_id"]
        raise BadInput(
            f"{where}: classifier_id: the id of a noise classifier is needed"
            + instead_of("", known.to_pylist())
        )


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "kind"}
