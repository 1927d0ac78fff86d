"""Which images are one picture: near-duplicates, and an image with what was restored from it.

A classifier must not grade what it trained on, nor a twin of that; so folds, and the split between
training and stopping, are made by group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from schemas.root import Root

# Semantic clusters are left out: the same subject twice is two pictures.
_KINDS = ("exact", "perceptual")


def groups_of(root: Root, samples: pa.Table) -> dict[str, str]:
    """Return the group of every sample that does not stand alone: sample_id -> smallest of it.

    Args:
        root: where `duplicate_clusters` may be; without it only equal bytes and parents group.
        samples: `sample_row`, `sample_id` and `parent_sample_id` of all samples that matter.
    """
    name_of = dict(
        zip(samples["sample_row"].to_pylist(), samples["sample_id"].to_pylist(), strict=True)
    )
    pairs = [
        (child, parent)
        for child, parent in zip(
            samples["sample_id"].to_pylist(), samples["parent_sample_id"].to_pylist(), strict=True
        )
        if parent is not None
    ]
    clusters: dict[tuple[str, int], str] = {}
    for row in _cluster_rows(root):
        name = name_of.get(row["sample_row"])
        if name is not None:
            first = clusters.setdefault((row["kind"], row["cluster_row"]), name)
            pairs.append((first, name))
    return join(pairs)


def join(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return name -> smallest name that pairs connect it with; names connected to none are out."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    for one, other in pairs:
        low, high = sorted((find(one), find(other)))
        parent[high] = low
    found = {name: find(name) for name in parent}
    sizes: dict[str, int] = {}
    for group in found.values():
        sizes[group] = sizes.get(group, 0) + 1
    return {name: group for name, group in found.items() if sizes[group] > 1}


def named(sample_ids: Sequence[str], groups: Mapping[str, str]) -> tuple[str, ...]:
    """Return the group of each sample; what stands alone is its own."""
    return tuple(groups.get(name, name) for name in sample_ids)


def _cluster_rows(root: Root) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = root.tables.read(
        "duplicate_clusters", ["kind", "sample_row", "cluster_row"], {"kind": list(_KINDS)}
    ).to_pylist()
    return rows
