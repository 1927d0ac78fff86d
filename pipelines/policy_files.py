"""Policies written by people: YAML or JSON with what can be found out left out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipelines import policies
from pipelines.measures import freeze_quality_rank, noise_space_of
from pipelines.policies import AnyPolicy
from schemas.errors import BadInput
from schemas.root import Root


def policy_from_file(root: Root, path: Path, batches: Sequence[str]) -> AnyPolicy:
    """Read a policy; fill in what follows from the root.

    A `classifier_threshold` takes its noise space from the classifier. A `quality_rank` without
    a `cut_score` gets its border frozen on `batches`; to apply that border to later batches,
    name the policy by its id.

    Raises:
        BadInput: the file cannot be read, or a setting is missing, unknown or out of range.
        TableMissing: the classifier or the scores that it needs are not there.
    """
    values = _read(path)
    kind = values.get("kind")
    try:
        if kind == "quality_rank" and "cut_score" not in values:
            return _frozen(root, path, values, batches)
        if kind == "classifier_threshold" and "noise_space" not in values:
            values["noise_space"] = noise_space_of(root, str(values.get("classifier_id")))
        return policies.from_values(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "policy"
        raise BadInput(f"{path}: {where}: {first['msg']}") from error


def _frozen(root: Root, path: Path, values: dict[str, Any], batches: Sequence[str]) -> AnyPolicy:
    wanted = {"column", "good_fraction", "sigma_min_rest", "noise_space"}
    given = set(values) - {"kind", "name", "pack"}
    if given != wanted:
        raise BadInput(
            f"{path}: a quality_rank to be frozen needs {sorted(wanted)}; "
            f"missing {sorted(wanted - given)}, unknown {sorted(given - wanted)}"
        )
    settings = {name: value for name, value in values.items() if name != "kind"}
    return freeze_quality_rank(root, batches, **settings)


def _read(path: Path) -> dict[str, Any]:
    try:
        values: Any = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise BadInput(f"cannot read the policy {path}: {said}") from error
    if not isinstance(values, dict):
        raise BadInput(f"the policy {path} must be a mapping of settings to values")
    return values
