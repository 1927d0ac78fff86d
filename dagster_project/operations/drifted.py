"""Which batches ask for a new noise classifier."""

from dagster_project.arms import policy_of
from dagster_project.operations.drift import drift_of
from dagster_project.request import Request
from schemas.errors import AmbientOmniError
from schemas.root import Root


def drifted_batches(root: Root, request: Request, promoted: str) -> list[str]:
    """Return the pool batches that the promoted classifier did not learn from and that drift.

    Held-back batches do not count: what is not let in needs no classifier.
    """
    rows = root.tables.read("noise_classifiers", ["pool_batches"], {"classifier_id": promoted})
    learned = {name for names in rows["pool_batches"].to_pylist() for name in names}
    recipe, config = request.full_recipe, request.operations.drift
    found = []
    for batch in request.of_role("pool"):
        if batch in learned:
            continue
        findings = drift_of(root, request, batch, config)
        try:
            policy = policy_of(root, request, recipe, recipe.main_arm)
            findings += drift_of(root, request, batch, config, levels_of=policy.policy_id)
        except AmbientOmniError:
            pass  # not annotated yet; its scores tell enough
        if any(finding.exceeds(config.max_psi) for finding in findings):
            found.append(batch)
    return found
