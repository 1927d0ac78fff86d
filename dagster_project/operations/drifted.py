"""Which batches ask for a new noise classifier.

A batch is measured when it comes, or when its rows or those of the batch before it changed; what
was found is kept (`<root>/work/drift.json`, which may be deleted), so that a look costs the same
after ten batches and after ten thousand.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dagster_project.arms import policy_of
from dagster_project.operations.drift import drift_of
from dagster_project.recipe import Recipe
from dagster_project.request import Request
from schemas.errors import AmbientOmniError
from schemas.ids import canonical_hash
from schemas.registry import contract
from schemas.root import Root, write_json
from schemas.snapshot import slice_paths

# Batches measured in one look; what is more, after a new scorer say, is for the next looks.
MAX_MEASURED = 50


def drifted_batches(
    root: Root, request: Request, promoted: str, max_measured: int = MAX_MEASURED
) -> list[str]:
    """Return the pool batches that the promoted classifier did not learn from and that drift.

    Held-back batches do not count: what is not let in needs no classifier. Of batches that changed
    at most `max_measured` are measured; the others count when a later call has measured them.
    """
    policy_id = _main_policy(root, request)
    rows_of = _Rows(root, request.full_recipe, policy_id)
    common = [request.operations.drift.model_dump(mode="json"), policy_id]
    before, measured, after, drifted = _read(root), 0, dict[str, dict[str, Any]](), list[str]()
    for batch, other in _unlearned(root, request, promoted):
        made_of = canonical_hash([*common, other, rows_of.of(other), rows_of.of(batch)])
        found = before.get(batch)
        if found is None or found["made_of"] != made_of:
            if measured == max_measured:
                continue
            measured += 1
            found = {"made_of": made_of, "drifts": _drifts(root, request, batch, policy_id)}
        after[batch] = found
        if found["drifts"]:
            drifted.append(batch)
    if after != before:
        write_json(_file(root), after)
    return drifted


class _Rows:
    """The data files that hold what drift is measured by, batch by batch; each log is read once."""

    def __init__(self, root: Root, recipe: Recipe, policy_id: str | None) -> None:
        scores, columns = recipe.scores, set(recipe.operations.drift.columns)
        wanted = [
            (f"scores/{pack}", "scorer_version", scores.pack_of(pack).version)
            for pack in scores.packs
            if columns & set(contract(f"scores/{pack}").names)
        ]
        if policy_id is not None:
            wanted.append(("noise_annotations", "policy_id", policy_id))
        self._files: dict[str, list[str]] = {}
        for table, key, value in wanted:
            if not root.tables.exists(table):
                continue
            for slice_, paths in slice_paths(root.tables.open(table).delta):
                if slice_[key] == value:
                    self._files.setdefault(slice_["ingest_batch"], []).extend(sorted(paths))

    def of(self, batch: str) -> list[str]:
        return self._files.get(batch, [])


def _unlearned(root: Root, request: Request, promoted: str) -> Iterator[tuple[str, str]]:
    """Yield each pool batch that a classifier did not learn from, with the one it is held against.

    That is `drift.accepted_before`, of all batches in one pass.
    """
    rows = root.tables.read("noise_classifiers", ["pool_batches"], {"classifier_id": promoted})
    learned = {name for names in rows["pool_batches"].to_pylist() for name in names}
    newest: dict[str, str] = {}
    for batch in request.batches:
        if batch.role != "pool" or request.is_held(batch.name):
            continue
        before = newest.get(batch.stream)
        newest[batch.stream] = batch.name
        if before is not None and batch.name not in learned:
            yield batch.name, before


def _main_policy(root: Root, request: Request) -> str | None:
    recipe = request.full_recipe
    try:
        return policy_of(root, request, recipe, recipe.main_arm).policy_id
    except AmbientOmniError:
        return None  # nothing is annotated yet; scores tell enough


def _drifts(root: Root, request: Request, batch: str, policy_id: str | None) -> bool:
    config = request.operations.drift
    findings = drift_of(root, request, batch, config)
    if policy_id is not None:
        findings += drift_of(root, request, batch, config, levels_of=policy_id)
    return any(finding.exceeds(config.max_psi) for finding in findings)


def _read(root: Root) -> dict[str, dict[str, Any]]:
    try:
        found: dict[str, dict[str, Any]] = json.loads(_file(root).read_text())
    except (FileNotFoundError, ValueError):
        return {}  # measured anew
    return found


def _file(root: Root) -> Path:
    return root.work / "drift.json"
