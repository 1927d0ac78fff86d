"""The members of duplicate clusters with what decides between them, for policies."""

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.dedup.components import clusters_of
from pipelines.measures import read_scores, scores_slice
from pipelines.policies.by_duplicates import BestOfDuplicates, worse_members
from schemas.errors import TableMissing
from schemas.ids import canonical_hash, split_sample_row
from schemas.root import Root

TABLE = "duplicate_clusters"
_TRUSTED_ROLES = ("reference", "evaluation")
_FOREIGN = "foreign"


def worse_copies(root: Root, policy: BestOfDuplicates) -> NDArray[np.int64]:
    """Return the sample rows, of all batches, that give way to a better copy; ascending.

    Raises:
        TableMissing: duplicates of a kind were never looked for, or a batch with a member of a
            cluster was not scored by the policy's scorer.
    """
    members, clusters = _clusters(root, policy.clusters)
    batches = _batches(root)
    scores = np.full(len(members), np.nan)
    ordinals = np.array([split_sample_row(row)[0] for row in members.tolist()], np.int64)
    for ordinal in np.unique(ordinals).tolist():
        here = ordinals == ordinal
        name, role = batches[ordinal]
        if role not in _TRUSTED_ROLES:  # a reference needs no score to stay
            found = read_scores(root, name, policy.pack, policy.column, policy.scorer_version)
            scores[here] = found.of(members[here])
    is_reference = np.isin(members, _reference_rows(root, members, ordinals, batches))
    return worse_members(policy, members, clusters, scores, is_reference)


def made_from(root: Root, policy: BestOfDuplicates) -> dict[str, str | None]:
    """Return what the choice between copies is made from, for staleness."""
    fingerprint = root.tables.fingerprint
    table = f"scores/{policy.pack}"
    found = {f"{TABLE}/{kind}": fingerprint(TABLE, {"kind": kind}) for kind in policy.clusters}
    for name, _ in _batches(root).values():
        found[f"{table}/{name}"] = fingerprint(table, scores_slice(policy.scorer_version, name))
    sets = root.tables.read("reference_sets", ["sample_row", "role"])
    trusted = sets.filter(pc.not_equal(sets["role"], _FOREIGN))["sample_row"]
    return found | {"all_references": canonical_hash(sorted(set(trusted.to_pylist())))}


def _clusters(root: Root, kinds: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the members of clusters and their cluster, kinds joined where they share a member."""
    firsts, seconds = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for kind in kinds:
        if root.tables.fingerprint(TABLE, {"kind": kind}) is None:
            raise TableMissing(
                f"{kind} duplicates were never looked for; run `dedup --kind {kind}` first"
            )
        rows = root.tables.read(TABLE, ["sample_row", "cluster_row"], {"kind": kind})
        firsts.append(rows["sample_row"].to_numpy())
        seconds.append(rows["cluster_row"].to_numpy())
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    # The first of a cluster may have been taken down since, and has no row then.
    members, clusters = clusters_of(first, second)
    there = np.isin(members, first)
    return members[there], clusters[there]


def _batches(root: Root) -> dict[int, tuple[str, str]]:
    rows = root.tables.read("ingest_batches", ["ingest_batch", "batch_ordinal", "role"])
    return {row["batch_ordinal"]: (row["ingest_batch"], row["role"]) for row in rows.to_pylist()}


def _reference_rows(
    root: Root,
    members: NDArray[np.int64],
    ordinals: NDArray[np.int64],
    batches: dict[int, tuple[str, str]],
) -> NDArray[np.int64]:
    trusted = [ordinal for ordinal, (_, role) in batches.items() if role in _TRUSTED_ROLES]
    sets = root.tables.read("reference_sets", ["sample_row", "role"])
    named = sets.filter(pc.not_equal(sets["role"], _FOREIGN))["sample_row"].to_numpy()
    return np.concatenate([named, members[np.isin(ordinals, trusted)]])
