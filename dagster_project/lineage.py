"""Which columns a column is made from, where that is more than a key that is carried along."""

import dagster as dg

from schemas.contract import Contract
from schemas.registry import contract

KEYS = ("sample_row", "ingest_batch")
BYTES = ("shard", "byte_offset", "num_bytes")
# Table to (upstream asset, its table, the columns that all but the keys are made from).
SOURCES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "reference_sets": ("samples", "samples", ("sample_id",)),
    "scores/classical": ("samples", "samples", BYTES),
    "embeddings": ("samples", "samples", BYTES),
    "ood_scores": ("embeddings", "embeddings", ("embedding",)),
    "noise_curves": ("training_pack", "samples", BYTES),
    "crop_scores": ("training_pack", "samples", BYTES),
    "noise_annotations": ("noise_curves", "noise_curves", ("logits", "logit_standard_error")),
}
_MADE = {
    "reference_sets": ("reference_set", "role"),
    "embeddings": ("embedding",),
    "ood_scores": ("mahalanobis", "knn_distance"),
    "noise_curves": ("logits", "logit_standard_error"),
    "crop_scores": ("mean_probability", "standard_error"),
    "noise_annotations": ("sigma_min", "slope", "sigma_min_standard_error_octaves", "reason"),
}
# Columns that are made from an asset of windows, where the graph has those.
_OF_WINDOWS = {"noise_annotations": {"sigma_max": ("crop_scores", "mean_probability")}}


def column_lineage(table: str, *, with_windows: bool = False) -> dg.TableColumnLineage | None:
    """Return what the columns of a table are made from; None for a table that begins a road."""
    if table not in SOURCES:
        return None
    asset, upstream, made_from = SOURCES[table]
    wanted, above = contract(table), contract(upstream)
    deps = {name: [_dep(asset, name)] for name in KEYS if {name} <= _names(wanted) & _names(above)}
    for name in _MADE.get(table) or _floats(wanted):
        deps[name] = [_dep(asset, column) for column in made_from]
    if with_windows:
        for name, (other, column) in _OF_WINDOWS.get(table, {}).items():
            deps[name] = [_dep(other, column)]
    return dg.TableColumnLineage(deps_by_column=deps)


def _dep(asset: str, column: str) -> dg.TableColumnDep:
    return dg.TableColumnDep(asset_key=dg.AssetKey(asset), column_name=column)


def _names(table: Contract) -> set[str]:
    return set(table.names)


def _floats(table: Contract) -> tuple[str, ...]:
    """Return the names of the scores of a pack."""
    return tuple(column.name for column in table.columns if str(column.type) == "double")
