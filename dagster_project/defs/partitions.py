"""What assets are partitioned by: ingest batches (never images), and arms of the comparison."""

import dagster as dg

from dagster_project.steps import ARM, INGEST_BATCH

INGEST_BATCHES = dg.DynamicPartitionsDefinition(name=INGEST_BATCH)
ARMS = dg.DynamicPartitionsDefinition(name=ARM)


def all_of(asset: str) -> dg.AssetDep:
    """Depend on every partition of an asset."""
    return dg.AssetDep(asset, partition_mapping=dg.AllPartitionMapping())


def same_batch(asset: str) -> dg.AssetDep:
    """Depend on the same ingest batch of an asset."""
    return dg.AssetDep(asset, partition_mapping=dg.IdentityPartitionMapping())
