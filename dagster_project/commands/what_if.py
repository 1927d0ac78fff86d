"""`ambient-omni what-if`: what each policy would train on, without training."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from ambient_omni.noise.usable import effective_samples_per_band
from dagster_project.bands import BANDS
from dagster_project.commands.lookup import text_table
from pipelines.references import held_out_sample_ids
from schemas.errors import BadInput
from schemas.root import Root

if TYPE_CHECKING:
    from dagster_project.recipe import Recipe
    from pipelines.policies import AnyPolicy

_COLUMNS = ["sample_row", "policy_id", "sigma_min", "sigma_max"]
_MAX_LABEL = 28


def what_if(root_path: Path, policies: Sequence[str] = ()) -> str:
    """Return how many samples each noise band gets under each policy, as text.

    Samples that are held out of training, and their twins in other batches, do not count.

    Args:
        root_path: the root's folder.
        policies: rules that were not applied yet, to hold against the main arm's: see `asked_rule`.
            None: the policies that were applied.

    Raises:
        BadInput: nothing was annotated yet; or a policy is none.
    """
    root = Root.open(root_path)
    if policies:
        return _against_the_present(root, policies)
    annotations = root.tables.read("noise_annotations", _COLUMNS)
    if not annotations.num_rows:
        raise BadInput(
            f"{root.path} has no annotations yet; run `ambient-omni run --until annotate`"
        )
    annotations = _trained_on(root, annotations)
    columns: dict[str, list[int]] = {}
    for policy_id, label in _labels(root, annotations).items():
        rows = annotations.filter(pc.equal(annotations["policy_id"], policy_id))
        columns[label] = _per_band(rows)
    return text_table(
        ("noise level", *columns), list(zip(_bands(), *columns.values(), strict=True))
    )


def asked_rule(recipe: "Recipe", text: str) -> dict[str, Any] | str:
    """Return the rule that a person means, or the name of an arm or the id of a policy.

    An arm's name (`everything`); changes to the main arm's rule (`tau=0.4`, several with commas);
    a whole rule as YAML, or a file of one (`{kind: quality_rank, column: sharpness, ...}`);
    or else a policy_id.

    Raises:
        BadInput: the YAML cannot be read.
    """
    if text in recipe.arms:
        return text
    file = Path(text).expanduser()
    try:
        if text.endswith((".yaml", ".yml", ".json")):
            return dict(yaml.safe_load(file.read_text(encoding="utf-8")))
        if text.lstrip().startswith("{"):
            return dict(yaml.safe_load(text))
        if "=" in text:
            pairs = [part.split("=", 1) for part in text.split(",")]
            changes = {name.strip(): yaml.safe_load(value) for name, value in pairs}
            return recipe.arms[recipe.main_arm].model_dump(mode="json") | changes
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise BadInput(f"--policy {text}: cannot be read as a rule: {said}") from error
    return text


def _against_the_present(root: Root, asked: Sequence[str]) -> str:
    from dagster_project.arms import policy_of
    from dagster_project.defs.project import Project

    request = Project(root_path=str(root.path)).request
    recipe, batches = request.full_recipe, request.of_role("reference", "pool")
    now = policy_of(root, request, recipe, recipe.main_arm)
    columns = {f"now ({recipe.main_arm})": _counts(root, batches, now)}
    for text in asked:
        rule = asked_rule(recipe, text)
        policy = _policy(root, request, recipe, rule)
        counts, label = _counts(root, batches, policy), _label(text)
        present = next(iter(columns.values()))
        columns[label] = counts
        columns[f"{label}: change"] = {name: counts[name] - present[name] for name in counts}
    names = list(next(iter(columns.values())))
    body = [
        (name, *(_signed(column[name], label) for label, column in columns.items()))
        for name in names
    ]
    return text_table(("images at noise level", *columns), body)


def _policy(
    root: Root, request: Any, recipe: "Recipe", rule: Mapping[str, Any] | str
) -> "AnyPolicy":
    """Return the policy of a rule under the root's present measurements; nothing is written."""
    from dagster_project.arms import policy_of
    from dagster_project.recipe import parse_recipe
    from pipelines.policies import load

    if isinstance(rule, str) and rule in recipe.arms:
        return policy_of(root, request, recipe, rule)  # with what was frozen for it
    if isinstance(rule, str):
        known = root.tables.read("policies", ["policy_id"])["policy_id"].to_pylist()
        if rule not in known:
            raise BadInput(
                f"--policy {rule}: neither an arm ({', '.join(recipe.arms)}), nor changes to "
                "the main arm's rule (tau=0.4), nor a rule as YAML, nor a policy_id of this root"
            )
        return load(root, rule)
    arm = "asked"
    changed = recipe.model_dump(mode="json")
    changed["arms"] |= {arm: dict(rule)}
    asked = parse_recipe(changed, "--policy")
    same = [name for name in recipe.arms if asked.arms[name] == asked.arms[arm]]
    return policy_of(root, request, asked, (*same, arm)[0])


def _counts(root: Root, batches: Sequence[str], policy: "AnyPolicy") -> dict[str, int]:
    from pipelines.jobs.annotate import preview

    decided = pa.concat_tables(preview(root, batch, policy).select(_COLUMNS) for batch in batches)
    rows = _trained_on(root, decided)
    level = rows["sigma_min"]
    everywhere = int(pc.sum(pc.equal(level, 0.0)).as_py() or 0)
    return dict(zip(_bands(), _per_band(rows), strict=True)) | {
        "usable at every level": everywhere,
        "from some level on": len(level) - everywhere - level.null_count,
        "at no high level": level.null_count,
    }


def _per_band(rows: pa.Table) -> list[int]:
    low, high = rows["sigma_min"].to_numpy(), rows["sigma_max"].to_numpy()
    return [int(n) for n in np.rint(effective_samples_per_band(low, high, BANDS))]


def _bands() -> list[str]:
    return [f"{low:g} - {high:g}" for low, high in pairwise(BANDS)]


def _signed(value: int, label: str) -> int | str:
    return f"{value:+,}" if label.endswith(": change") else value


def _label(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _MAX_LABEL else words[: _MAX_LABEL - 1] + "…"


def _trained_on(root: Root, annotations: pa.Table) -> pa.Table:
    held_out = sorted(held_out_sample_ids(root))
    rows = root.tables.read("samples", ["sample_row"], {"sample_id": held_out})["sample_row"]
    return annotations.filter(pc.invert(pc.is_in(annotations["sample_row"], rows)))


def _labels(root: Root, annotations: pa.Table) -> dict[str, str]:
    """Name each policy by what people call it, with its id where several share the name."""
    named = {p["policy_id"]: p["name"] for p in root.tables.read("policies").to_pylist()}
    found = {i: named.get(i) or i for i in pc.unique(annotations["policy_id"]).to_pylist()}
    times = Counter(found.values())
    labels = {i: name if times[name] == 1 else f"{name} {i[-6:]}" for i, name in found.items()}
    return dict(sorted(labels.items(), key=lambda item: item[1]))
