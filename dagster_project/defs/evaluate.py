"""Group `evaluate`: which arm is best, on images that nobody trained on."""

import dagster as dg

from dagster_project.defs.materialize import Result
from dagster_project.defs.partitions import ARMS, all_of, same_batch
from dagster_project.defs.project import Project


@dg.asset(
    partitions_def=ARMS,
    deps=[same_batch("trained_models"), "reference_sets"],
    group_name="evaluate",
    kinds={"torch"},
    description="Denoising loss of one arm's model per noise level, on held-out images.",
)
def heldout_evaluation(context: dg.AssetExecutionContext, project: Project) -> Result:
    """Evaluate one arm."""
    raise NotImplementedError


@dg.asset(
    deps=[all_of("heldout_evaluation"), all_of("noise_annotations"), all_of("ood_scores")],
    group_name="evaluate",
    kinds={"html"},
    description="One self-contained page: the pool by level, the classifier, the arms compared.",
)
def report(project: Project) -> Result:
    """Write the report."""
    raise NotImplementedError
