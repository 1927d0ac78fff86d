"""Group `train`: one model per arm of the comparison."""

import dagster as dg

from dagster_project.defs.materialize import Result
from dagster_project.defs.partitions import ARMS, all_of
from dagster_project.defs.project import Project
from dagster_project.describe import described, static_metadata


@dg.asset(
    partitions_def=ARMS,
    deps=[all_of("noise_annotations"), all_of("training_pack"), "reference_sets"],
    group_name="train",
    kinds={"torch", "safetensors"},
    description=(
        "A diffusion model that obeyed one policy; arms differ in nothing else. Stopped, it goes "
        "on from its checkpoint.\n\n" + described("training_runs")
    ),
    metadata=static_metadata("training_runs"),
)
def trained_models(context: dg.AssetExecutionContext, project: Project) -> Result:
    """Train one arm."""
    raise NotImplementedError
