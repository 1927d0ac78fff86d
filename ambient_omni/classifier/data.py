"""What a noise classifier is trained and measured on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ambient_omni.classifier.config import ClassifierConfig, Question
from ambient_omni.classifier.groups import groups_of, named
from ambient_omni.data.packs import PackSet, Space
from schemas.errors import BadInput, NotEnoughReferences
from schemas.ids import canonical_hash, hash_fraction
from schemas.known import require_batches, require_reference_set
from schemas.reference_sets import HELD_OUT, VALIDATION
from schemas.root import Root

# Fewer positives than this teach a classifier nothing that its positive control could tell.
MIN_TRUSTED = 32
MIN_VALIDATION = 8
MIN_POOL_PER_FOLD = 16
VERSION = 2
"""Of how classifiers are made and calibrated; another one is another classifier of the same images.
2: each image is calibrated under noises of its own."""

_COLUMNS = ["sample_row", "sample_id", "ingest_batch", "parent_sample_id"]


def fold_of(group: str, num_folds: int) -> int:
    """Return the fold that grades an image: by its group, so that no twin of it was trained on."""
    return int(hash_fraction(group, "classifier-fold") * num_folds)


@dataclass(frozen=True)
class Members:
    """Some samples: `sample_rows` (N,), `sample_ids`, their groups, and the batches with them."""

    sample_rows: NDArray[np.int64]
    sample_ids: tuple[str, ...]
    groups: tuple[str, ...]
    batches: tuple[str, ...]

    @classmethod
    def of(cls, samples: pa.Table, groups: Mapping[str, str]) -> Members:
        """Take them from rows of the samples table."""
        names = tuple(samples["sample_id"].to_pylist())
        return cls(
            samples["sample_row"].to_numpy(),
            names,
            named(names, groups),
            tuple(sorted(pc.unique(samples["ingest_batch"]).to_pylist())),
        )

    def __len__(self) -> int:
        return len(self.sample_ids)

    def images(self, root: Root, space: Space) -> PackedImages:
        """Open their pixels or latents.

        Raises:
            PackMissing: a batch has no complete pack of the space.
        """
        packs = PackSet.open(root.packs, space, self.batches)
        return PackedImages(packs, packs.index_of(self.sample_rows), self.sample_ids, self.groups)


@dataclass(frozen=True)
class PackedImages:
    """N images in packs, by position; `sample_ids` and `groups` in the same order."""

    packs: PackSet
    index: NDArray[np.int64]
    sample_ids: tuple[str, ...]
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.index)

    def take(self, indices: NDArray[np.integer]) -> NDArray[Any]:
        """Return rows of the packs: pixels uint8 (N, H, W, C), or latents float16 (N, C, H, W)."""
        return self.packs.take(self.index[indices])

    def all(self) -> NDArray[Any]:
        """Return all rows."""
        return self.take(np.arange(len(self)))

    def seen_through(self, packs: PackSet) -> PackedImages:
        """Return the same images in packs of another space."""
        index = packs.index_of(self.packs.sample_rows[self.index])
        return PackedImages(packs, index, self.sample_ids, self.groups)

    def subset(self, positions: NDArray[np.integer]) -> PackedImages:
        """Return some of them."""
        names = tuple(self.sample_ids[i] for i in positions)
        groups = tuple(self.groups[i] for i in positions)
        return PackedImages(self.packs, self.index[positions], names, groups)

    def without(self, groups: Collection[str]) -> PackedImages:
        """Return those that belong to none of some groups."""
        return self.subset(np.flatnonzero([group not in groups for group in self.groups]))

    def among(self, groups: Collection[str]) -> PackedImages:
        """Return those that belong to one of some groups."""
        return self.subset(np.flatnonzero([group in groups for group in self.groups]))

    def first_by_content(self, count: int) -> PackedImages:
        """Return at most `count` of them: always the same ones, whatever else is there."""
        places = [hash_fraction(name, "classifier-measure") for name in self.sample_ids]
        return self.subset(np.sort(np.argsort(places, kind="stable")[:count]))


@dataclass(frozen=True)
class ClassifierData:
    """The three sets of samples: positives, held-out references, and the pool without either."""

    trusted: Members
    validation: Members
    pool: Members
    twins: Mapping[str, str]
    """Group by sample_id, of those that do not stand alone."""

    @classmethod
    def read(cls, root: Root, pool_batches: Sequence[str], reference_set: str) -> ClassifierData:
        """Read who is who.

        Images of the pool whose bytes also stand in a reference set are left out: they are no
        evidence of what the pool looks like, and held-out ones are never trained on. The same
        goes for near-duplicates of held-out references, in the pool and among the positives.

        Raises:
            NotEnoughReferences: too few to train on, or to check the classifier with.
            BadInput: there is no such batch or set, or the pool is too small for its folds.
            TableMissing: nothing was ingested yet.
        """
        samples = root.tables.open("samples")
        require_batches(root.tables, pool_batches)
        require_reference_set(root.tables, reference_set)
        members = {name: _members(root, name) for name in dict.fromkeys((reference_set, *HELD_OUT))}
        known = {name for rows in members.values() for name in rows["sample_id"].to_pylist()}
        pool = samples.read(_COLUMNS, {"ingest_batch": list(pool_batches)})
        pool = pool.filter(
            pc.invert(pc.is_in(pool["sample_id"], pa.array(sorted(known), pa.string())))
        )
        tables = [*members.values(), pool]
        groups = groups_of(root, pa.concat_tables([t.select(_COLUMNS) for t in tables]))
        held_out = {
            groups.get(name, name)
            for held in HELD_OUT
            for name in members[held]["sample_id"].to_pylist()
        }
        found = cls(
            Members.of(_outside(members[reference_set], groups, held_out), groups),
            Members.of(members[VALIDATION], groups),
            Members.of(_outside(pool, groups, held_out), groups),
            groups,
        )
        found._require_enough(reference_set, pool_batches)
        return found

    def classifier_id(self, config: ClassifierConfig, space: Space, question: Question) -> str:
        """Return the name of the classifier that these images, pixels and settings make."""
        return canonical_hash(
            {
                "version": VERSION,
                "config": config.model_dump(mode="json"),
                "question": question,
                "transform": space.transform_id,
                "trusted": canonical_hash(sorted(self.trusted.sample_ids)),
                "validation": canonical_hash(sorted(self.validation.sample_ids)),
                "pool": canonical_hash(sorted(self.pool.sample_ids)),
            }
            | ({"twins": canonical_hash(self.twins)} if self.twins else {})
        )

    def _require_enough(self, reference_set: str, pool_batches: Sequence[str]) -> None:
        for members, least, name in (
            (self.trusted, MIN_TRUSTED, reference_set),
            (self.validation, MIN_VALIDATION, VALIDATION),
        ):
            if len(members) < least:
                raise NotEnoughReferences(
                    f"the reference set {name!r} has {len(members)} images; a noise classifier "
                    f"needs {least}: give more reference images, or use a fixed policy"
                )
        if len(self.pool) < 2 * MIN_POOL_PER_FOLD:
            raise BadInput(
                f"the pool ({', '.join(pool_batches)}) has {len(self.pool)} images that are no "
                f"references; a noise classifier needs {2 * MIN_POOL_PER_FOLD}: ingest more"
            )


def _outside(samples: pa.Table, groups: Mapping[str, str], held_out: set[str]) -> pa.Table:
    names = samples["sample_id"].to_pylist()
    return samples.filter(pa.array([groups.get(n, n) not in held_out for n in names], pa.bool_()))


def _members(root: Root, reference_set: str) -> pa.Table:
    rows = root.tables.read("reference_sets", ["sample_row"], {"reference_set": reference_set})
    wanted = rows["sample_row"].to_pylist()
    samples = root.tables.open("samples")
    if not wanted:
        return samples.contract.empty().select(_COLUMNS)
    return samples.read(_COLUMNS, {"sample_row": wanted})
