"""Has the annotated pool grown enough for a new model?"""

import json
from dataclasses import dataclass

from dagster_project.arms import policy_of
from dagster_project.request import Request
from schemas.root import Root


@dataclass(frozen=True)
class Growth:
    """The annotated images of the main arm beside those of its last finished run.

    Attributes:
        now: images that have a level under the arm's present policy.
        then: images of the batches that the last finished run of the arm trained on; 0: none was.
        run_id: that run.
    """

    now: int
    then: int
    run_id: str | None

    def is_due(self, growth_fraction: float) -> bool:
        """Say whether the pool grew by that share; a first run is nobody's to propose."""
        return self.then > 0 and self.now >= (1 + growth_fraction) * self.then


def growth_of(root: Root, request: Request) -> Growth:
    """Measure how the annotated pool grew since the main arm was trained.

    Raises:
        TableMissing: the arm's policy reads what is not there yet.
    """
    recipe = request.full_recipe
    batches = request.of_role("reference", "pool")
    policy_id = policy_of(root, request, recipe, recipe.main_arm).policy_id
    where = {"policy_id": policy_id, "ingest_batch": list(batches)}
    now = root.tables.read("noise_annotations", ["sample_row"], where).num_rows
    runs = root.tables.read(
        "training_runs",
        ["run_id", "ingest_batches", "audit"],
        {"name": recipe.main_arm, "status": "finished"},
    ).to_pylist()
    seen = {row["run_id"]: _num_samples(root, row) for row in runs}
    last = max(seen, key=lambda run: seen[run], default=None)
    return Growth(now, seen[last] if last else 0, last)


def _num_samples(root: Root, run: dict[str, str]) -> int:
    audited = json.loads(run["audit"])
    if "num_samples" in audited:
        # Held-out images have a level too, and are not trained on.
        return int(audited["num_samples"]) + int(audited.get("num_held_out", 0))
    where = {"ingest_batch": list(run["ingest_batches"])}
    return int(root.tables.read("samples", ["sample_row"], where).num_rows)
